// Float64 sums over float32 slivers (core/micro_kernel.hpp, here by rows: sliver[r * width + c] = z(r, c)), and over
// rows.
#pragma once

#include <cstdint>

namespace simkit {

inline constexpr int kMostWeights = 6;  // that stay in registers

// sums[k * width + c] += sum over rows r of weights[r * count + k] z(r, c), for k < count <= kMostWeights.
void add_weighted(std::int64_t rows, const float* sliver, std::int64_t width, const double* weights, int count,
                  double* sums);

// sums[c] += sum over rows of z(r, c)^2.
void add_squares(std::int64_t rows, const float* sliver, std::int64_t width, double* sums);

// sums[k] = sum over columns c of signs[k * ld + c] z[c], for k < kSigned: of one row.
inline constexpr int kSigned = 4;
void signed_sums(std::int64_t cols, const float* z, const double* signs, std::int64_t ld, double* sums);
void signed_sums(std::int64_t cols, const double* z, const double* signs, std::int64_t ld, double* sums);

}  // namespace simkit
