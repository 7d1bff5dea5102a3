#include "cuda/distances.hpp"
#include "cuda/sent_block.cuh"

namespace simkit::cuda {

double distance_median(const Place& place, const BlockView& block) {
    Machine machine(place);
    const Sent sent(machine, block);
    return distance_median(machine, samples_of(sent.block(), false));
}

}  // namespace simkit::cuda
