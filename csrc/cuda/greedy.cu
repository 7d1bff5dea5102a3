#include "cuda/device.cuh"
#include "cuda/elimination.hpp"

namespace simkit::cuda {

std::vector<Elimination> eliminate(const Place& place, const std::vector<SquareProblem>& problems, bool greedy,
                                   double min_cka) {
    Machine machine(place);
    return eliminate(machine, problems, greedy, min_cka);
}

double total(const Place& place, const double* a, std::int64_t u) {
    Machine machine(place);
    return total(machine, a, u);
}

}  // namespace simkit::cuda
