// Where an op of namespace simkit::cuda runs, and memory there. Such ops take matrices whose data lies on the place's
// device, and everything else (shifts, row scales, results) on the host; they return when their results are there.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace simkit {

struct Place {
    int device;
    void* stream;               // the caller's cudaStream_t: everything runs on it, in its order
    std::vector<void*> before;  // streams whose work so far must be done first
};

namespace cuda {

int current_device();

// Throws unless a device's kernels may read the address.
void check_address(const std::byte* address, int device);

// Memory on the device, freed with its last owner; a copy of host memory there; and a copy of it on the host.
std::shared_ptr<std::byte> device_memory(const Place& place, std::size_t bytes);
std::shared_ptr<std::byte> device_copy(const Place& place, const void* from, std::size_t bytes);
void host_copy(const Place& place, const std::byte* from, void* to, std::size_t bytes);

}  // namespace cuda

}  // namespace simkit
