#include "cuda/adjacency.hpp"
#include "cuda/device.cuh"

namespace simkit::cuda {

DeviceGraphs adjacency(const Place& place, const MatrixView& x, const std::vector<double>& squared) {
    return adjacency_there([&] { return Machine(place); }, x, squared);
}

}  // namespace simkit::cuda
