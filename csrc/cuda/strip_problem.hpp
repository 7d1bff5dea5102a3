// A problem of ops/hsic.hpp whose rows come in strips (cuda/strips.hpp).
#pragma once

#include <vector>

#include "cuda/strips.hpp"

namespace simkit::cuda {

// The blocks of a problem on the host: shifts on the machine, rows in strips.
template <class M>
class StripProblem {
  public:
    // whole_weights: the weights of all rows lie on the machine, instead of coming with the rows.
    StripProblem(M& machine, const PairProblem& problem, Index bytes, bool whole_weights)
        : blocks_(problem.blocks), placed_{{}, problem.left, problem.debiased, bytes, problem.tensor} {
        for (BlockView& block : blocks_) {
            PlacedBlock placed{block, nullptr, shifts_in_float(block), block.shift};
            const std::vector<double> shift(block.shift, block.shift + block.x.cols);
            placed.view.shift = wide_.emplace_back(sent(machine, shift)).data();
            placed.narrow_shift =
                narrow_.emplace_back(sent(machine, std::vector<float>(shift.begin(), shift.end()))).data();
            if (block.row_scale && whole_weights) {
                wide_.push_back(machine.template array<double>(block.x.rows));
                machine.send(wide_.back(), block.row_scale, block.x.rows);
                placed.view.row_scale = wide_.back().data();
                block.row_scale = nullptr;
            }
            placed_.blocks.push_back(placed);
        }
    }

    const std::vector<BlockView>& on_host() const { return blocks_; }
    const PlacedProblem& placed() const { return placed_; }

    // The problem of the rows that lie in a strip.
    PlacedProblem in(const Strip<M>& strip, Index rows) const {
        PlacedProblem here = placed_;
        for (Index b = 0; b < here.m(); ++b) {
            BlockView& view = here.blocks[b].view;
            view.x = strip.view(blocks_, b, rows);
            if (view.row_scale) view.row_scale = strip.weights(blocks_, b);
        }
        return here;
    }

  private:
    std::vector<BlockView> blocks_;
    PlacedProblem placed_;
    std::vector<typename M::template Array<double>> wide_;
    std::vector<typename M::template Array<float>> narrow_;
};

}  // namespace simkit::cuda
