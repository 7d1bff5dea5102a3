// Greedy CKA damage in closed form on the all-pairs matrix A [u, u] of a layer's units, A_ij = <K_i, K_j>.
//
// With kept set S, r = A 1, q = A 1_S, R = sum_{i in S} r_i, Q = 1_S^T A 1_S, T = 1^T A 1:
//   CKA(all, S \ k) = (R - r_k) / sqrt(T (Q - 2 q_k + A_kk)),   then R -= r_k, Q -= 2 q_k - A_kk, q -= A[:, k].
// O(u) a step. So that rounding does not grow as it shrinks, Q is formed afresh, with R and q, whenever a quarter is
// left, and, on the host, without a unit that leaves less than an eighth. Scores within 1e-12 of the best tie, to the
// lowest index. All sums float64. Follows from the bilinearity of HSIC.
#pragma once

#include <cstdint>
#include <vector>

#include "core/matrix_view.hpp"
#include "core/place.hpp"

namespace simkit {

struct Elimination {
    std::vector<std::int64_t> order;  // [removed]
    std::vector<double> cka;          // [removed], after each removal; NaN for the empty set
    double smallest_gap;              // best score minus second best, the smallest over the steps; inf when none
    bool lost = false;  // a device's: a unit left so little of Q that scores have lost digits to its rounding
};

// greedy: the best unit at every step; otherwise one ranking by the first step's scores.
// Stops after `count` removals or before the first score below min_cka (NaN: no threshold).
Elimination eliminate(const double* a, std::int64_t u, bool greedy, std::int64_t count, double min_cka);

// On a device (core/place.hpp): symmetric matrices that lie there, all searched at once, by one block of threads each.
namespace cuda {

struct SquareProblem {
    const double* a;  // [u, u]
    std::int64_t u, count;
};

std::vector<Elimination> eliminate(const Place& place, const std::vector<SquareProblem>& problems, bool greedy,
                                   double min_cka);

// The all-pairs sums of ops/hsic.hpp of a layer's units: unit k is columns [offsets[k], offsets[k + 1]) of a linear
// block. values [u, u] stay on the device; what they were before centring, and the diagonal, comes to the host. tensor:
// products by tensor cores, as there.
struct OwnSums {
    std::vector<double> self, raw;  // [u]
    DeviceMemory values = nullptr;
};
OwnSums unit_sums(const Place& place, const BlockView& block, const std::vector<std::int64_t>& offsets, bool debiased,
                  bool sample_space, bool double_products, bool tensor, std::int64_t bytes);

// [rows, columns], contiguous, on the device: columns of x there, in the order of `index`.
DeviceMemory gather_columns(const Place& place, const MatrixView& x, const std::vector<std::int64_t>& index);

// 1^T A 1, float64.
double total(const Place& place, const double* a, std::int64_t u);

}  // namespace cuda

}  // namespace simkit
