#include "cuda/adjacency.hpp"
#include "cuda/device.cuh"

namespace simkit::cuda {

DeviceGraphs adjacency(const Place& place, const MatrixView& x, const std::vector<double>& squared) {
    const auto thresholds = static_cast<std::int64_t>(squared.size());
    const std::int64_t bytes = 8 * thresholds * x.rows * words_of(x.rows);
    try {
        const auto memory = device_memory(place, static_cast<std::size_t>(bytes));
        const std::shared_ptr<std::uint64_t> bits(memory, reinterpret_cast<std::uint64_t*>(memory.get()));
        Machine machine(place);
        DeviceGraphs graphs{adjacency(machine, x, squared, bits.get()), bits};
        machine.settle();
        return graphs;
    } catch (const OutOfMemory& error) {
        throw OutOfMemory(std::string(error.what()) + "; the graphs of " + std::to_string(x.rows) + " rows at " +
                          std::to_string(thresholds) + " thresholds take " + std::to_string(bytes) +
                          " bytes there, less with fewer thresholds at a time");
    }
}

}  // namespace simkit::cuda
