#include "cuda/device.cuh"
#include "cuda/elimination_run.hpp"

namespace simkit::cuda {

std::vector<Elimination> eliminate(const Place& place, const std::vector<SquareProblem>& problems, bool greedy,
                                   double min_cka) {
    return at_place(place, Index{0},
                    [&](Machine& machine, Index) { return eliminate(machine, problems, greedy, min_cka); });
}

double total(const Place& place, const double* a, std::int64_t u) {
    return at_place(place, Index{0}, [&](Machine& machine, Index) { return total(machine, a, u); });
}

}  // namespace simkit::cuda
