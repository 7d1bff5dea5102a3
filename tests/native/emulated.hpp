// What the emulated programs share: errors as messages, and matrices as ctypes passes them.
#pragma once

#include <exception>
#include <string>

#include "cuda/placed.hpp"
#include "emulator.hpp"

namespace emulated {

using simkit::cuda::Index;

inline std::string message;

template <class Call>
int guarded(Call&& call) {
    try {
        call();
        return 0;
    } catch (const std::exception& error) {
        message = error.what();
        return 1;
    }
}

struct Matrix {
    const void* data;
    Index rows, cols, row_stride, col_stride;
    int dtype;  // of Dtype
    const double* shift;
    const double* row_scale;
    double scale;
    int kernel;  // of Kernel
    double length, coef0;
    int degree;
};

inline simkit::MatrixView view_of(const Matrix& x) {
    return {static_cast<const std::byte*>(x.data), x.rows, x.cols, x.row_stride, x.col_stride,
            static_cast<simkit::Dtype>(x.dtype),   false};
}

inline simkit::BlockView block_of(const Matrix& x) {
    return {view_of(x), x.shift, x.row_scale, x.scale, static_cast<simkit::Kernel>(x.kernel),
            x.length,   x.coef0, x.degree,    nullptr};
}

inline bool narrow(const Matrix& x) { return x.dtype != static_cast<int>(simkit::Dtype::f64) && !x.row_scale; }

}  // namespace emulated

extern "C" const char* last_error() { return emulated::message.c_str(); }
extern "C" simkit::cuda::Index fetched_bytes() { return emulator::fetched_bytes; }
