#include <cuda_runtime_api.h>

#include "core/device_report.hpp"

namespace simkit {

DeviceReport device_report() {
    DeviceReport report;
    int count = 0;
    if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess) {
        cudaGetLastError();  // the question must not leave an error behind for the next call
        report.reason = cudaGetErrorString(error);
        return report;
    }
    for (int i = 0; i < count; ++i) {
        cudaDeviceProp prop;
        if (cudaGetDeviceProperties(&prop, i) != cudaSuccess) continue;
        report.devices.push_back(std::string(prop.name) + ", capability " + std::to_string(prop.major) + "." +
                                 std::to_string(prop.minor) + ", " + std::to_string(prop.totalGlobalMem >> 30) +
                                 " GiB");
    }
    if (report.devices.empty()) report.reason = "the driver reports no device";
    return report;
}

}  // namespace simkit
