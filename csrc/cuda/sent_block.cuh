// A block whose matrix lies on the device, made ready for programs.
#pragma once

#include <vector>

#include "core/pack.hpp"
#include "cuda/device.cuh"
#include "cuda/placed.hpp"

namespace simkit::cuda {

// A block's shift and row scale on the device, beside its matrix.
class Sent {
  public:
    Sent(Machine& machine, const BlockView& block)
        : shift_(machine.array<double>(block.x.cols)),
          narrow_shift_(sent(machine, std::vector<float>(block.shift, block.shift + block.x.cols))),
          scale_(machine.array<double>(block.row_scale ? block.x.rows : 1)),
          block_{block, narrow_shift_.data(), shifts_in_float(block), block.shift} {
        machine.send(shift_, block.shift, block.x.cols);
        if (block.row_scale) machine.send(scale_, block.row_scale, block.x.rows);
        block_.view.shift = shift_.data();
        block_.view.row_scale = block.row_scale ? scale_.data() : nullptr;
    }

    const PlacedBlock& block() const { return block_; }

  private:
    Machine::Array<double> shift_;
    Machine::Array<float> narrow_shift_;
    Machine::Array<double> scale_;
    PlacedBlock block_;
};

}  // namespace simkit::cuda
