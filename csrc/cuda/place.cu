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

void check_address(const std::byte* address, int device) {
    cudaPointerAttributes found{};
    check(cudaPointerGetAttributes(&found, address), "look up an array's address");
    const bool managed = found.type == cudaMemoryTypeManaged;
    if (!managed && (found.type != cudaMemoryTypeDevice || found.device != device))
        throw std::invalid_argument("the array's memory is not that of CUDA device " + std::to_string(device));
}

std::shared_ptr<std::byte> device_copy(const Place& place, const void* from, std::size_t bytes) {
    const Visit visit(place.device);
    void* data = nullptr;
    if (const cudaError_t error = cudaMalloc(&data, bytes); error != cudaSuccess)
        fail(error, "allocate " + std::to_string(bytes) + " bytes on the device");
    std::shared_ptr<std::byte> owner(static_cast<std::byte*>(data), [](std::byte* held) { cudaFree(held); });
    check(cudaMemcpy(data, from, bytes, cudaMemcpyHostToDevice), "copy to the device");
    return owner;
}

}  // namespace simkit::cuda
