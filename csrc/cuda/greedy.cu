#include "cuda/device.cuh"
#include "cuda/elimination.hpp"

namespace simkit::cuda {

Elimination eliminate(const Place& place, const double* a, std::int64_t u, bool greedy, std::int64_t count,
                      double min_cka) {
    return at_place(place, Index{0},
                    [&](Machine& machine, Index) { return eliminate(machine, a, u, greedy, count, min_cka); });
}

}  // namespace simkit::cuda
