#include "cuda/device.cuh"
#include "cuda/partners.hpp"

namespace simkit::cuda {
namespace {

constexpr Index kRoom = Index{1} << 30;  // bytes of workspace, about

}  // namespace

// With the smallest room one tile of rows at a time.
NearestRows nearest_rows(const Place& place, const NearestProblem& problem) {
    return at_place(place, kRoom, [&](Machine& machine, Index room) {
        NearestSearch<Machine> search(machine, problem);
        return search.find(room);
    });
}

}  // namespace simkit::cuda
