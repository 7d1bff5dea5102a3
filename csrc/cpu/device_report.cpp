#include "core/device_report.hpp"

namespace simkit {

DeviceReport device_report() {
    return {false, {}, "this build has no CUDA code (SIMKIT_CUDA=OFF, or no nvcc was found)"};
}

}  // namespace simkit
