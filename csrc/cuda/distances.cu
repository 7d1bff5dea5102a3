#include "cuda/distances.hpp"
#include "cuda/sent_block.cuh"

namespace simkit::cuda {

double distance_median(const Place& place, const BlockView& block) {
    return at_place(place, kDistancesRoom, [&](Machine& machine, Index room) {
        const Sent sent(machine, block);
        return distance_median(machine, samples_of(sent.block(), false), Index{1} << 20, room);
    });
}

}  // namespace simkit::cuda
