#include <cuda_runtime_api.h>

#include <cstdlib>
#include <string>

#include "core/device_report.hpp"
#include "cuda/architectures.hpp"

namespace simkit {
namespace {

std::string as_version(int number) {  // 13020: 13.2
    return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

// Why no device is seen.
std::string reason_of(cudaError_t error) {
    int driver = 0;
    if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) return "no NVIDIA driver (libcuda.so.1) was found";
    const std::string known = "the driver knows CUDA " + as_version(driver);
    if (error == cudaErrorInsufficientDriver) return known + ", this build needs " + as_version(CUDART_VERSION);
    const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
    const std::string hidden = visible ? ", CUDA_VISIBLE_DEVICES is \"" + std::string(visible) + "\"" : "";
    return known + ": " + cudaGetErrorString(error) + hidden;
}

}  // namespace

DeviceReport device_report() {
    DeviceReport report;
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaSuccess && count == 0) error = cudaErrorNoDevice;
    if (error != cudaSuccess) {
        cudaGetLastError();  // the question must not leave an error behind for the next call
        report.reason = reason_of(error);
        return report;
    }
    bool usable = false;
    for (int i = 0; i < count; ++i) {
        cudaDeviceProp prop;
        if (cudaGetDeviceProperties(&prop, i) != cudaSuccess) {
            cudaGetLastError();
            report.devices.push_back("device " + std::to_string(i) + " does not describe itself");
            report.reason = report.devices.back();
            continue;
        }
        const bool runs = cuda::has_code_for(SIMKIT_CUDA_CODE, prop.major * 10 + prop.minor);
        std::string device = std::string(prop.name) + ", capability " + std::to_string(prop.major) + "." +
                             std::to_string(prop.minor) + ", " + std::to_string(prop.totalGlobalMem >> 30) + " GiB";
        if (!runs) {
            device += ", for which this build has no code: it was built for " SIMKIT_CUDA_CODE;
            report.reason = device;
        }
        usable = usable || runs;
        report.devices.push_back(std::move(device));
    }
    if (usable)
        report.reason.clear();
    else
        report.devices.clear();
    return report;
}

}  // namespace simkit
