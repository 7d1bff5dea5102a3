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
    return info;
}

void check_address(const std::byte* address, int device) {
    cudaPointerAttributes found{};
    check(cudaPointerGetAttributes(&found, address), "look up an array's address");
    const bool managed = found.type == cudaMemoryTypeManaged;
    if (!managed && (found.type != cudaMemoryTypeDevice || found.device != device))
        throw std::invalid_argument("the array's memory is not that of CUDA device " + std::to_string(device));
}

std::shared_ptr<std::byte> device_memory(const Place& place, std::size_t bytes) {
    const Visit visit(place.device);
    void* data = nullptr;
    check_allocation(cudaMalloc(&data, bytes), bytes, "on the device");
    return {static_cast<std::byte*>(data), [](std::byte* held) { cudaFree(held); }};
}

std::shared_ptr<std::byte> device_copy(const Place& place, const void* from, std::size_t bytes) {
    const Visit visit(place.device);
    std::shared_ptr<std::byte> owner = device_memory(place, bytes);
    check(cudaMemcpy(owner.get(), from, bytes, cudaMemcpyHostToDevice), "copy to the device");
    return owner;
}

void host_copy(const Place& place, const void* from, void* to, std::size_t bytes) {
    const Visit visit(place.device);
    check(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "copy from the device");
}

}  // namespace simkit::cuda
