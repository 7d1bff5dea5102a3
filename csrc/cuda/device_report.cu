#include <cuda_runtime_api.h>

#include <algorithm>
#include <string>

#include "core/device_report.hpp"

namespace simkit {
namespace {

// The oldest capability that this build has code for, in the compiler's units: 800 is 8.0.
constexpr int kOldest = std::min({__CUDA_ARCH_LIST__});

std::string as_version(int capability) {
    return std::to_string(capability / 100) + "." + std::to_string(capability % 100 / 10);
}

}  // namespace

DeviceReport device_report() {
    DeviceReport report;
    int count = 0;
    if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) {
        cudaGetLastError();  // the question must not leave an error behind for the next call
        report.reason = cudaGetErrorString(error);
        return report;
    }
    report.reason = "the driver reports no device";
    bool usable = false;
    for (int i = 0; i < count; ++i) {
        cudaDeviceProp prop;
        if (cudaGetDeviceProperties(&prop, i) != cudaSuccess) {
            cudaGetLastError();
            report.devices.push_back("device " + std::to_string(i) + " does not describe itself");
            continue;
        }
        const int capability = prop.major * 100 + prop.minor * 10;
        std::string device = std::string(prop.name) + ", capability " + as_version(capability) + ", " +
                             std::to_string(prop.totalGlobalMem >> 30) + " GiB";
        if (capability < kOldest) {
            device += ", too old: this build has code from capability " + as_version(kOldest) + " on";
            report.reason = device;
        }
        usable = usable || capability >= kOldest;
        report.devices.push_back(std::move(device));
    }
    if (usable)
        report.reason.clear();
    else
        report.devices.clear();
    return report;
}

}  // namespace simkit
