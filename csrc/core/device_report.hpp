// Which CUDA devices this build can see, or why none: an answer, never a crash.
#pragma once

#include <string>
#include <vector>

namespace simkit {

struct DeviceReport {
    bool compiled;                     // built with CUDA
    std::vector<std::string> devices;  // "name, capability 9.0, 139 GiB"
    std::string reason;                // why `devices` is empty
};

DeviceReport device_report();

}  // namespace simkit
