// A problem of ops/hsic.hpp whose matrices, shifts and row scales lie on a machine.
#pragma once

#include <vector>

#include "cuda/operand.hpp"
#include "ops/hsic.hpp"

namespace simkit::cuda {

// A block whose view, shift and row_scale lie on the machine, with the shift in float32 too, and on the host.
struct PlacedBlock {
    BlockView view;
    const float* narrow_shift;
    bool narrow;
    const double* shift;  // on the host

    bool linear() const { return view.kernel == Kernel::linear; }
};

inline Operand samples_of(const PlacedBlock& block, bool single) {
    const BlockView& v = block.view;
    const bool narrow = single && block.narrow;
    return {v.x.data,
            v.x.rows,
            v.x.cols,
            v.x.row_stride,
            v.x.col_stride,
            v.x.dtype,
            narrow,
            false,
            v.shift,
            v.row_scale,
            narrow ? block.narrow_shift : nullptr,
            v.scale};
}

struct PlacedProblem {
    std::vector<PlacedBlock> blocks;
    Index left;  // as in PairProblem
    bool debiased;
    Index bytes;                   // of workspace, about
    bool tensor = false;           // products by tensor cores, which the machine must have
    bool halves = false;           // as in PairProblem
    std::vector<bool> apart = {};  // of feature space, as in ops/hsic.hpp

    Index n() const { return blocks.front().view.x.rows; }
    Index m() const { return static_cast<Index>(blocks.size()); }
    bool formed(Index a, Index b) const { return apart.empty() || !(apart[a] && apart[b]); }
};

}  // namespace simkit::cuda
