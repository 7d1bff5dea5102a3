#include "cuda/device.cuh"
#include "cuda/partners.hpp"

namespace simkit::cuda {
namespace {

constexpr Index kRoom = Index{1} << 30;  // bytes of workspace, about

}  // namespace

// Where the device's memory is full, again with one tile of rows at a time.
NearestRows nearest_rows(const Place& place, const NearestProblem& problem) {
    Machine machine(place);
    NearestSearch<Machine> search(machine, problem);
    try {
        return search.find(kRoom);
    } catch (const OutOfMemory&) {
    }
    return search.find(0);
}

}  // namespace simkit::cuda
