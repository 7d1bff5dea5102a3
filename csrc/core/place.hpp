// Where an op of namespace simkit::cuda runs, and memory there. Such ops take matrices whose data lies on the place's
// device, and everything else (shifts, row scales, results) on the host, but for results that are a DeviceMemory; they
// return when their results are there. Where the device's memory is full, they try once more with the smallest
// workspace, and then say so (cuda/machine.hpp).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "core/tiles.hpp"

namespace simkit {

struct Place {
    int device;
    void* stream;               // the caller's cudaStream_t: everything runs on it, in its order
    std::vector<void*> before;  // streams whose work so far must be done first
    Poll poll = {};             // called now and then while the calling thread waits, if it is there
};

// How matrices that lie on the host go to a place: in strips of rows, one after another. The smallest: all zero.
struct Strips {
    std::int64_t resident = 0;  // rows that stay while others pass them (all pairs in sample space)
    std::int64_t passing =
        0;                   // rows of each of the two strips that pass; whole tiles or chunks are taken, at least one
    std::int64_t bytes = 0;  // of workspace beside them, about
    int threads = 1;         // that bring rows into pinned memory
};

namespace cuda {

// There is no room for `bytes` more. Python sees a MemoryError.
struct OutOfMemory : std::runtime_error {
    explicit OutOfMemory(const std::string& what) : std::runtime_error(what) {}
    OutOfMemory(std::size_t bytes, const std::string& where)
        : OutOfMemory("CUDA cannot allocate " + std::to_string(bytes) + " bytes " + where + ": its memory is full") {}
};

int current_device();

// The compute capability, (9, 0) say, of a device or the current one; (0, 0) where it cannot be asked.
std::pair<int, int> capability(std::optional<int> device);

struct MemoryInfo {
    std::size_t free, total;  // bytes
};
MemoryInfo memory_info(int device);

// Throws unless a device's kernels may read the address.
void check_address(const std::byte* address, int device);

// A stream of a device for what lies on none of the caller's, made when it is first asked for: work on it waits for no
// other stream. Memory that outlives an op is freed on it.
void* own_stream(int device);

// Memory on a device, freed with its last owner.
using DeviceMemory = std::shared_ptr<std::byte>;

// A copy of host memory there, and of such memory on the host.
DeviceMemory device_copy(const Place& place, const std::byte* from, std::size_t bytes);
void host_copy(const Place& place, const std::byte* from, std::byte* to, std::size_t bytes);

}  // namespace cuda

}  // namespace simkit
