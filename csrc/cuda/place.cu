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
    if (const cudaMemPool_t pool = own_pool(device)) {  // what it keeps for the next op is free for that
        std::uint64_t reserved = 0, used = 0;
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

// What a device has one of, made when it is first asked for and never destroyed: what is freed last needs it.
template <class Handle, class Make>
Handle one_of(int device, const Make& make) {
    static auto& mutex = *new std::mutex;
    static auto& made = *new std::map<int, Handle>;
    const std::lock_guard<std::mutex> alone(mutex);
    if (const auto found = made.find(device); found != made.end()) return found->second;
    const Visit visit(device);
    return made[device] = make();
}

void* own_stream(int device) {
    return one_of<cudaStream_t>(device, [] {
        cudaStream_t stream = nullptr;
        check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "make a stream");
        return stream;
    });
}

cudaMemPool_t own_pool(int device) {
    constexpr std::size_t share = 32;  // of the device's memory stays with the pool, at most
    return one_of<cudaMemPool_t>(device, [device]() -> cudaMemPool_t {
        int pools = 0;
        check(cudaDeviceGetAttribute(&pools, cudaDevAttrMemoryPoolsSupported, device), "describe the device");
        if (!pools) return nullptr;
        std::size_t free = 0, total = 0;
        check(cudaMemGetInfo(&free, &total), "tell how much memory is free");
        cudaMemPoolProps wanted{};
        wanted.allocType = cudaMemAllocationTypePinned;
        wanted.location.type = cudaMemLocationTypeDevice;
        wanted.location.id = device;
        cudaMemPool_t pool = nullptr;
        check(cudaMemPoolCreate(&pool, &wanted), "make a pool of memory");
        std::uint64_t kept = total / share;
        if (cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &kept) != cudaSuccess)
            cudaGetLastError();  // it costs time only
        return pool;
    });
}

DeviceMemory lasting_memory(int device, cudaStream_t stream, cudaMemPool_t pool, std::size_t bytes) {
    const auto last = static_cast<cudaStream_t>(own_stream(device));
    void* data = nullptr;
    check_allocation(allocate(&data, bytes, pool, stream), bytes, "on the device");
    return {static_cast<std::byte*>(data), [last, pool](std::byte* held) { give_back(held, pool, last); }};
}

DeviceMemory device_copy(const Place& place, const std::byte* from, std::size_t bytes) {
    return at_place(place, Index{0},
                    [&](Machine& machine, Index) { return copied(machine, from, static_cast<Index>(bytes)); });
}

void host_copy(const Place& place, const std::byte* from, std::byte* to, std::size_t bytes) {
    at_place(place, Index{0}, [&](Machine& machine, Index) { machine.fetch(to, from, static_cast<Index>(bytes)); });
}

}  // namespace simkit::cuda
