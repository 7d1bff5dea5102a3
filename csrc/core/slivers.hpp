// Source rows -> slivers (core/micro_kernel.hpp) of z = (x * row_scale - shift) * scale.
#pragma once

#include <cstdint>

#include "matrix_view.hpp"

namespace simkit {

// Rows [row0, row1) x columns [col0, col1) of the block; rows that fill up the last sliver are zero. out holds
// round_up(row1 - row0, width) * (col1 - col0) elements.
template <class T>
void pack_slivers(const BlockView& block, std::int64_t row0, std::int64_t row1, std::int64_t col0, std::int64_t col1,
                  T* out);

// The same for rows that lie ready: in [rows, depth], leading dimension ld.
template <class T>
void pack_slivers(const T* in, std::int64_t rows, std::int64_t ld, std::int64_t depth, T* out);

// Columns in slivers, of in [rows, cols], to rows [row, row + rows) of slivers `depth` long; those that fill up the
// last sliver are zero.
void column_slivers(const double* in, std::int64_t rows, std::int64_t cols, std::int64_t depth, double* out,
                    std::int64_t row);

}  // namespace simkit
