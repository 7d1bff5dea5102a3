// For each of some rows of a matrix the k nearest among others: by direction, and by a residue of low rank.
//
//   score_ij = balance (1 - cos(x_i, x_j)) + (1 - balance) minmax_j r_ij,    r_ij = s_i s_j |a_i + b_j + c_i d_j|
//
// minmax over the admissible others j of i: (r - min) / (max - min), and 0 where all are equal, to kFlat of the largest
// |a_i| + |b_j| + |c_i d_j| among them (simkit/backends/nearest.py says why that). Admissible are j != i
// with a finite r_ij and s_i s_j != 0, or > 0 where the sign is to be the same; without residues all j != i. The best
// first; scores within kTie are equal, and the lowest row comes first.
//
// On a device alone: on the host the products are NumPy's (simkit/backends/cpu_partners.py).
// Types: products of unit rows in float32, or float64 for a float64 matrix, over 2048 entries at most and across; what
// their error bound cannot tell from the k best is scored again in float64 from the rows.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "core/matrix_view.hpp"
#include "core/place.hpp"

namespace simkit {

constexpr double kTie = 1e-12;
constexpr double kFlat = 32 * std::numeric_limits<double>::epsilon();
constexpr std::int64_t kMostNearest = 128;

struct NearestProblem {
    MatrixView x;                            // [n, p]
    const double* norms;                     // [n] of whole rows; positive for those of `rows` and `others`
    const double* last;                      // [n] one more entry of every row, or null
    const double* residues;                  // [5, n]: s, a, b, c and d, or null
    bool same_sign;                          // of s_i and s_j
    double balance;                          // in [0, 1]; 1 without residues
    std::vector<std::int64_t> rows, others;  // ascending, not empty
    std::int64_t k;                          // 1 to kMostNearest
};

// Row numbers (-1: there is none), cosines and scores (NaN), all [rows, k].
struct NearestRows {
    std::vector<std::int64_t> row;
    std::vector<double> cosine, score;
};

namespace cuda {
NearestRows nearest_rows(const Place& place, const NearestProblem& problem);
}  // namespace cuda

}  // namespace simkit
