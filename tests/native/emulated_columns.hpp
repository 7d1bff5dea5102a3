// Products of columns as ctypes asks for them.
#pragma once

#include "cuda/columns.hpp"
#include "emulated.hpp"

namespace emulated {

inline simkit::cuda::ColumnProblem columns_of(const Matrix& x, const double* squares, int exact, int tensor,
                                              int squared) {
    return {block_of(x), narrow(x),   {x.shift, x.shift + x.cols}, {squares, squares + x.cols}, exact != 0,
            tensor != 0, squared != 0};
}

}  // namespace emulated
