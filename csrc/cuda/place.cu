#include <map>
#include <mutex>

#include "core/place.hpp"
#include "cuda/device.cuh"

namespace simkit::cuda {

int current_device() {
    int device = 0;
    check(cudaGetDevice(&device), "tell the current device");
    return device;
}

std::pair<int, int> capability(std::optional<int> device) {
    int major = 0, minor = 0, current = 0;
    if ((!device && cudaGetDevice(&current) != cudaSuccess) ||
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device.value_or(current)) != cudaSuccess ||
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device.value_or(current)) != cudaSuccess) {
        cudaGetLastError();  // the question must not leave an error behind for the next call
        return {0, 0};
    }
    return {major, minor};
}

MemoryInfo memory_info(int device) {
    const Visit visit(device);
    MemoryInfo info{};
    check(cudaMemGetInfo(&info.free, &info.total), "tell how much memory is free");
    if (has_pools(device)) {  // what the pool of ordered allocations keeps for the next ones is free for them
        cudaMemPool_t pool = nullptr;
        std::uint64_t reserved = 0, used = 0;
        check(cudaDeviceGetDefaultMemPool(&pool, device), "find the pool of memory");
        check(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrReservedMemCurrent, &reserved),
              "describe the pool of memory");
        check(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrUsedMemCurrent, &used), "describe the pool of memory");
        info.free += static_cast<std::size_t>(reserved - used);
    }
    return info;
}

void check_address(const std::byte* address, int device) {
    cudaPointerAttributes found{};
    check(cudaPointerGetAttributes(&found, address), "look up an array's address");
    const bool managed = found.type == cudaMemoryTypeManaged;
    if (!managed && (found.type != cudaMemoryTypeDevice || found.device != device))
        throw std::invalid_argument("the array's memory is not that of CUDA device " + std::to_string(device));
}

// Never destroyed: what is freed last is freed on them.
void* own_stream(int device) {
    static std::mutex mutex;
    static std::map<int, cudaStream_t> streams;
    const std::lock_guard<std::mutex> alone(mutex);
    cudaStream_t& stream = streams[device];
    if (!stream) {
        const Visit visit(device);
        check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "make a stream");
    }
    return stream;
}

DeviceMemory lasting_memory(int device, cudaStream_t stream, bool ordered, std::size_t bytes) {
    const auto last = static_cast<cudaStream_t>(own_stream(device));
    void* data = nullptr;
    check_allocation(ordered ? cudaMallocAsync(&data, bytes, stream) : cudaMalloc(&data, bytes), bytes,
                     "on the device");
    return {static_cast<std::byte*>(data), [last, ordered](std::byte* held) {
                if (ordered)
                    cudaFreeAsync(held, last);
                else
                    cudaFree(held);
            }};
}

DeviceMemory device_copy(const Place& place, const std::byte* from, std::size_t bytes) {
    return at_place(place, Index{0},
                    [&](Machine& machine, Index) { return copied(machine, from, static_cast<Index>(bytes)); });
}

void host_copy(const Place& place, const std::byte* from, std::byte* to, std::size_t bytes) {
    at_place(place, Index{0}, [&](Machine& machine, Index) { machine.fetch(to, from, static_cast<Index>(bytes)); });
}

}  // namespace simkit::cuda
