#include "cuda/device.cuh"
#include "cuda/largest_entries.hpp"

namespace simkit::cuda {

std::vector<double> largest_entries(const Place& place, const std::vector<MatrixView>& matrices) {
    return at_place(place, Index{0}, [&](Machine& machine, Index) { return largest_entries(machine, matrices); });
}

}  // namespace simkit::cuda
