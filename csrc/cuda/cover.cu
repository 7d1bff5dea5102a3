#include "cuda/components.hpp"
#include "cuda/cover.hpp"
#include "cuda/device.cuh"
#include "ops/adjacency.hpp"

namespace simkit::cuda {

void components(const Place& place, const std::uint64_t* bits, std::int64_t graphs, std::int64_t n,
                std::int64_t* labels, std::int64_t* edges) {
    at_place(place, Index{0},
             [&](Machine& machine, Index) { components(machine, {bits, graphs, n, words_of(n)}, labels, edges); });
}

std::vector<Cover> covers(const Place& place, const std::uint64_t* bits, std::int64_t graphs, std::int64_t n) {
    return at_place(place, Index{0},
                    [&](Machine& machine, Index) { return covers(machine, {bits, graphs, n, words_of(n)}); });
}

}  // namespace simkit::cuda
