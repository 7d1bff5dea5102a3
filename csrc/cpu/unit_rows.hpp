// Rows brought to unit length in float64, read where they lie.
#pragma once

#include <cstdint>
#include <vector>

#include "core/matrix_view.hpp"
#include "core/tiles.hpp"

namespace simkit {

// 1 / |x_i| for every row, without overflow of squares; 0 for a zero row, NaN for one that is not finite.
std::vector<double> unit_scales(const MatrixView& x, int threads, const Poll& poll);

// |a x_i - b x_j|^2, from differences.
double unit_distance(const MatrixView& x, std::int64_t i, double a, std::int64_t j, double b);

}  // namespace simkit
