// Where an op of namespace simkit::cuda runs, and memory there. Such ops take matrices whose data lies on the place's
// device, and everything else (shifts, row scales, results) on the host; they return when their results are there.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

namespace simkit {

struct Place {
    int device;
    void* stream;               // the caller's cudaStream_t: everything runs on it, in its order
    std::vector<void*> before;  // streams whose work so far must be done first
};

namespace cuda {

int current_device();

// The compute capability, (9, 0) say, of a device or the current one; (0, 0) where it cannot be asked.
std::pair<int, int> capability(std::optional<int> device);

// Throws unless a device's kernels may read the address.
void check_address(const std::byte* address, int device);

// A copy of host memory on the device, freed with its last owner.
std::shared_ptr<std::byte> device_copy(const Place& place, const void* from, std::size_t bytes);

}  // namespace cuda

}  // namespace simkit
