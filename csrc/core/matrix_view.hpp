// Views of a caller's memory. Nothing here owns or writes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace simkit {

enum class Dtype { f16, bf16, f32, f64 };

inline std::int64_t item_size(Dtype dtype) { return dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2; }

// x [rows, cols], any strides (bytes). `mapped`: pages of a file that may be dropped after use.
struct MatrixView {
    const std::byte* data;
    std::int64_t rows;
    std::int64_t cols;
    std::int64_t row_stride;
    std::int64_t col_stride;
    Dtype dtype;
    bool mapped;
};
static_assert(sizeof(MatrixView) == 48 && offsetof(MatrixView, dtype) == 40 && offsetof(MatrixView, mapped) == 44,
              "devices read it as it lies here");

// Bytes from one row to the next, or of a row where rows lie closer.
inline std::int64_t row_span(const MatrixView& x) {
    const std::int64_t apart = x.row_stride < 0 ? -x.row_stride : x.row_stride, own = x.cols * item_size(x.dtype);
    return apart < own ? own : apart;
}

enum class Kernel { linear, rbf, laplacian, polynomial, custom };

// A user's kernel: values[i] = k(products[i], squared_distances[i]), i < count, of raw rows. Called from many threads.
using KernelFunction = void (*)(const double* products, const double* squared_distances, double* values,
                                std::intptr_t count);

// z = (x * row_scale - shift) * scale, then the kernel on rows of z. `length` is the kernel's scale in z's units.
struct BlockView {
    MatrixView x;
    const double* shift;      // [cols]
    const double* row_scale;  // [rows] or null
    double scale;             // a power of two
    Kernel kernel;
    double length;
    double coef0;  // of a polynomial; RBF and Laplacian: 0, or -1 where their values are formed less 1
    int degree;
    KernelFunction function;  // of a custom kernel, whose scale is 1; else null
};

}  // namespace simkit
