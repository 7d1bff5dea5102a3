// Source rows -> z = (x * row_scale - shift) * scale in a small contiguous buffer, float32 or float64.
#pragma once

#include <cstdint>

#include "matrix_view.hpp"

namespace simkit {

// Rows [row0, row1) x columns [col0, col1) of the block into out [row1 - row0, ld].
// Into float64, the subtraction is done in float64 whatever the source's type.
void pack(const BlockView& block, std::int64_t row0, std::int64_t row1, std::int64_t col0, std::int64_t col1,
          float* out, std::int64_t ld);
void pack(const BlockView& block, std::int64_t row0, std::int64_t row1, std::int64_t col0, std::int64_t col1,
          double* out, std::int64_t ld);

// A row of a matrix as z = (x - shift) * scale, formed in float64 and rounded once; returns |z|^2 of what is written.
double pack_row(const MatrixView& x, std::int64_t row, const double* shift, double scale, float* out);

// Whether z may be formed in float32: (x - shift) * scale stays inside float32 for what float32 holds. A shift rounded
// to float32 moves every sample alike, and (x - shift) is rounded once either way.
inline bool shifts_in_float(const BlockView& block) {
    return block.x.dtype != Dtype::f64 && !block.row_scale && block.scale < 0x1p100 && block.scale > 0x1p-100;
}

// A row segment in its own type, half types widened to float32: the source itself where it is contiguous, otherwise
// a copy in `scratch`.
const float* float_row(const MatrixView& x, std::int64_t row, std::int64_t col0, std::int64_t count, float* scratch);
const double* double_row(const MatrixView& x, std::int64_t row, std::int64_t col0, std::int64_t count, double* scratch);

// One row segment as float64, without shift or scale.
void load_row(const MatrixView& x, std::int64_t row, std::int64_t col0, std::int64_t col1, double* out);

// Bytes that a fault on a mapped file brings in at most, and that stay resident around rows in use, on either side.
constexpr std::int64_t kFolio = std::int64_t{1} << 21;

// What a worker of a pass over one matrix in a mapped file reads at a time: so many bytes, or rows if they are longer.
constexpr std::int64_t kPassing = std::int64_t{1} << 20;
constexpr std::int64_t kPassingRows = 8;

// Tells the kernel that rows [row0, row1) of a mapped file are not needed for now, so that they do not stay resident,
// nor what was brought in around them of the same matrix (another matrix in the same map may keep a folio).
void release_rows(const MatrixView& x, std::int64_t row0, std::int64_t row1);

}  // namespace simkit
