// Graphs of a layer's filters for several thresholds, in one pass over the pairs.
//
// With unit rows u_i = x_i / |x_i|: i and j != i are adjacent at threshold t iff |u_i - u_j|^2 <= squared[t]. Zero rows
// have no direction: they are adjacent to one another and to no other row.
//
// A pair is decided by its product, |u_i - u_j|^2 = 2 - 2 u_i . u_j, where the product's error bound cannot turn the
// verdict, and by float64 differences of the rows otherwise: the bits are those of the differences, whatever the tile
// and the team. (Between a processor, a device and the reference differences round differently: squared carries slack,
// so that pairs that lie on a threshold lie within it.) Accumulators: float32 (float64 for float64 rows) over 256
// columns and across them; the bound is (256 + p / 256 + 12) units of rounding, at least 1e-5 (1e-11) of a cosine;
// differences float64. Source: Wang, Li, Wang 2021 (arXiv:2104.03438), for one threshold.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/matrix_view.hpp"
#include "core/place.hpp"
#include "core/tiles.hpp"

namespace simkit {

inline std::int64_t words_of(std::int64_t n) { return (n + 63) / 64; }

struct Adjacency {
    bool finite = true;               // false: some entry is not, and nothing was formed
    double nearest = 0.0;             // squared distance of the closest pair of non-zero rows, to within the bound
    double farthest = 0.0;            // of the farthest pair; both NaN where there is no pair
    std::vector<std::int64_t> zeros;  // the zero rows
};

// x [n, p], squared [thresholds] -> bits [thresholds, n, words_of(n)], all zero on entry: bit j % 64 of word j / 64 of
// row i. tile: rows of a tile, a multiple of 64.
Adjacency adjacency(const MatrixView& x, const std::vector<double>& squared, std::int64_t tile, int threads,
                    const Poll& poll, std::uint64_t* bits);

// On a device (core/place.hpp), by the same rules: the bits stay there, freed with their last owner.
namespace cuda {
struct DeviceGraphs {
    Adjacency found;
    std::shared_ptr<std::uint64_t> bits;
};
DeviceGraphs adjacency(const Place& place, const MatrixView& x, const std::vector<double>& squared);
}  // namespace cuda

}  // namespace simkit
