// One tile of a block's Gram matrix: the product, then the kernel, elementwise.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "core/buffer.hpp"
#include "core/matrix_view.hpp"
#include "core/micro_kernel.hpp"

namespace simkit {

inline constexpr std::int64_t kChunk = 256;  // columns packed at a time

// Per-thread buffers for packing two strips of `tile` rows of blocks with at most `cols` columns.
template <class T>
struct PackedStrips {
    PackedStrips(std::int64_t tile, std::int64_t cols)
        : a(round_up(tile, micro_kernel<T>().width) * std::min(cols, kChunk)),
          b(round_up(tile, micro_kernel<T>().width) * std::min(cols, kChunk)) {}
    Buffer<T> a, b;
};

// C [ti, tj] (leading dimension tj) = z_i . z_j for rows i0.. of `rows` and j0.. of `cols` (views of one block).
// same: both strips are the same rows. next: the block whose tile of the same rows comes afterwards, or null. pause:
// called after every chunk of columns; may throw to stop.
template <class T>
void product_tile(const BlockView& rows, std::int64_t i0, std::int64_t ti, const BlockView& cols, std::int64_t j0,
                  std::int64_t tj, bool same, PackedStrips<T>& strips, T* c, const BlockView* next = nullptr,
                  const std::function<void()>& pause = {});

// Products -> squared distances, exact zeros where the rows are one, small ones formed again from differences.
// step: row j of `cols` is row j * step of `rows` (1 for the block itself), and so are the norms.
void distances_from_products(const BlockView& rows, const BlockView& cols, const double* norms, std::int64_t i0,
                             std::int64_t ti, std::int64_t j0, std::int64_t tj, std::int64_t step, double* c);

// Squared distances (RBF, Laplacian) or products (polynomial) -> kernel values.
void apply_kernel(const BlockView& block, double* c, std::int64_t count);

inline bool needs_distances(Kernel kernel) {
    return kernel == Kernel::rbf || kernel == Kernel::laplacian || kernel == Kernel::custom;
}

inline constexpr double kLargest = 1e144;  // of a custom kernel; simkit/kernels.py says so too

// Per-thread buffers for what a custom kernel is given.
struct Arguments {
    std::vector<double> products, distances;
};

// Products of z -> values of a custom kernel, which sees products of the raw rows. zeros: [cols], or null where z has
// no shift. Returns the place of the first value that is NaN or 1e144 in size, or -1; its arguments are then in
// `arguments`.
std::int64_t apply_custom(const BlockView& rows, const double* norms, const double* zeros, std::int64_t i0,
                          std::int64_t ti, const BlockView& cols, std::int64_t j0, std::int64_t tj, std::int64_t step,
                          bool same, PackedStrips<double>& strips, Arguments& arguments, double* c);

}  // namespace simkit
