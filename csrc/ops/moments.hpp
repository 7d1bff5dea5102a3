// Float64 moments of a stream of rows, enough for the exact debiased HSIC of every pair of layers in one pass.
//
// With z = (x - shift) * scale, a_i = |z_i|^2 per layer, the sums over rows of
//   z, a, a^2, a z (own layer), z^T z (own layer), and across sides: x^T y, a b, a y, b x.
// Derivation: HSIC_debiased needs tr, row sums and diagonals only through these (see simkit/streaming/moments.py).
// All products and sums are float64.
#pragma once

#include <cstdint>
#include <vector>

#include "core/matrix_view.hpp"
#include "core/tiles.hpp"

namespace simkit {

// The layers of one side, laid side by side: layer l is columns offsets[l]..offsets[l+1].
struct MomentSide {
    const double* z;  // [rows, p]
    const double* a;  // [rows, layers]
    std::int64_t p;
    std::vector<std::int64_t> offsets;
    double *sum_z, *sum_az;     // [p]
    double *sum_a, *sum_aa;     // [layers]
    std::vector<double*> gram;  // per layer [p_l, p_l], upper triangles; empty where `cross` holds them

    std::int64_t layers() const { return static_cast<std::int64_t>(offsets.size()) - 1; }
};

struct MomentCross {
    double* cross;   // [p_left, p_right]; one side alone: [p, p], upper triangle by tiles
    double* sum_ab;  // [layers_left, layers_right]
    double* sum_ay;  // [layers_left, p_right]
    double* sum_bx;  // [layers_right, p_left]; unused with one side alone
};

// Rows of one side in the units of its sums.
struct MomentUnits {
    std::vector<MatrixView> layers;  // raw, side by side
    const double* shift;             // [p]
    const double* scale;             // [p], one value in a layer
    double* z;                       // [rows, p] out: (x - shift) * scale
    double* a;                       // [rows, layers] out: |z|^2 per layer
};

void moments_rows(const std::vector<MomentUnits>& sides, int threads, const Poll& poll);

// Adds `rows` rows to the sums. right == nullptr: the left side with itself.
void moments_add(std::int64_t rows, const MomentSide& left, const MomentSide* right, const MomentCross& cross,
                 int threads, const Poll& poll);

}  // namespace simkit
