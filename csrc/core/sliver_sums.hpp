// Float64 sums over float32 slivers (core/micro_kernel.hpp, here by rows: sliver[r * width + c] = z(r, c)).
#pragma once

#include <cstdint>

namespace simkit {

inline constexpr int kMostWeights = 6;  // that stay in registers

// sums[k * width + c] += sum over rows r of weights[r * count + k] z(r, c), for k < count <= kMostWeights.
void add_weighted(std::int64_t rows, const float* sliver, std::int64_t width, const double* weights, int count,
                  double* sums);

// sums[c] += sum over rows of z(r, c)^2.
void add_squares(std::int64_t rows, const float* sliver, std::int64_t width, double* sums);

}  // namespace simkit
