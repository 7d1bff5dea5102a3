#include "cuda/distances.hpp"
#include "cuda/sent_block.cuh"
#include "cuda/strip_distances.hpp"

namespace simkit::cuda {

double distance_median(const Place& place, const BlockView& block) {
    return at_place(place, kDistancesRoom, [&](Machine& machine, Index room) {
        const Sent sent(machine, block);
        return distance_median(machine, samples_of(sent.block(), false), kMostCollected, room);
    });
}

double distance_median(const Place& place, const BlockView& block, const Strips& strips) {
    return at_place(place, strips,
                    [&](Machine& machine, const Strips& fit) { return distance_median(machine, block, fit); });
}

}  // namespace simkit::cuda
