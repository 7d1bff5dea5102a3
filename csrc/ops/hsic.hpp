// All-pairs centred inner products of Gram matrices: the sums behind HSIC and CKA.
//
//   biased    S_ab = <H K_a H, H K_b H>          = P_ab - 2/n r_a.r_b + s_a s_b / n^2
//   debiased  S_ab = n(n-3) HSIC_Song(K_a, K_b)  = P_ab - 2/(n-2) r_a.r_b + s_a s_b / ((n-1)(n-2)),  diagonals zero
//
// P_ab = <K_a, K_b>, r = K 1, s = 1.r. Both are unchanged when K_ij becomes K_ij - c_i - c_j + const, which is used to
// keep P small. Sources: Gretton et al. 2005; Song et al. 2012, eq. 5; Kornblith et al. 2019, eq. 3-5.
//
// Accumulators: products in float32 or float64 (the caller says which) over one tile; r, s, P across tiles in float64.
#pragma once

#include <cstdint>
#include <vector>

#include "core/matrix_view.hpp"
#include "core/place.hpp"
#include "core/tiles.hpp"

namespace simkit {

// `left` row blocks, then the column blocks; left == blocks.size() pairs the rows with themselves.
struct PairProblem {
    std::vector<BlockView> blocks;
    std::int64_t left;
    bool debiased;
    bool double_products;
    std::int64_t tile;
    int threads;
    bool shared;          // sample space: all workers on one tile, instead of one tile each
    bool tensor = false;  // on a device of capability 8.0 or later: products by tensor cores
    bool halves = false;  // there, in sample space: of layers of one 16-bit type as they lie, centred afterwards

    std::int64_t n() const { return blocks.front().x.rows; }
    std::int64_t m() const { return static_cast<std::int64_t>(blocks.size()); }
    bool symmetric() const { return left == m(); }
    std::int64_t right() const { return symmetric() ? left : m() - left; }
};

// values [left, right], self and raw [m]; raw is P_aa before centring.
struct PairSums {
    std::vector<double> values, self, raw;
};

// Thrown where a custom kernel of block number `block` is NaN or too large to sum squares of: the first such pair in
// the order of tiles.
struct KernelOutOfRange {
    std::int64_t block;
    double product, squared_distance, value;
};

// Sample space: tiles of the n x n plane, upper half; cost n^2 sum(p)/2 + n^2 m^2/4 multiply-adds, memory O(m tile^2).
PairSums pair_sums_sample(const PairProblem& problem, const Poll& poll);

// Feature space, linear kernels: S_ab = |X_a^T X_b|^2 by tiles of the cross-products; float64 products. apart [m]
// (empty: none): pairs of two such blocks, each with itself among them, are not formed and their sums are zero.
PairSums pair_sums_feature(const PairProblem& problem, const Poll& poll, const std::vector<bool>& apart = {});

// |z_i|^2 for every row, float64.
std::vector<double> row_norms(const BlockView& block, int threads, const Poll& poll);

// Over the samples s, with a_is = |z_s|^2 of block i and r_is the sum of row s of its linear K without the diagonal:
// squares [m, m] = sum_s a_is a_js and sums [m, m] = sum_s r_is r_js (upper triangles), totals [m] = sum_s r_is.
// All float64; memory does not grow with the number of samples.
struct RowGrams {
    std::vector<double> squares, sums, totals;
};
RowGrams row_grams(const std::vector<BlockView>& blocks, int threads, const Poll& poll);

// Median of the full n x n matrix of |z_i - z_j|^2, zero diagonal included, found by passes over tiles: more of them
// where there is little room, in bytes, which a single worker may exceed.
double distance_median(const BlockView& block, int threads, std::int64_t room, const Poll& poll);

// On a device (core/place.hpp), no custom kernels. The problem's tile and threads are not used; `bytes` of workspace,
// about, which change no bit.
namespace cuda {
PairSums pair_sums_sample(const Place& place, const PairProblem& problem, std::int64_t bytes);
PairSums pair_sums_feature(const Place& place, const PairProblem& problem, std::int64_t bytes,
                           const std::vector<bool>& apart = {});
std::vector<double> row_norms(const Place& place, const BlockView& block);
double distance_median(const Place& place, const BlockView& block);

// The same of matrices that lie on the host (core/place.hpp): in feature space, for norms and medians the same bits,
// in sample space those of another order of tiles.
PairSums pair_sums_sample(const Place& place, const PairProblem& problem, const Strips& strips);
PairSums pair_sums_feature(const Place& place, const PairProblem& problem, const Strips& strips);
std::vector<double> row_norms(const Place& place, const BlockView& block, const Strips& strips);
double distance_median(const Place& place, const BlockView& block, const Strips& strips);  // without row weights
}  // namespace cuda

}  // namespace simkit
