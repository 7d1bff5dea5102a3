// Which CUDA devices are seen, or why none: an answer, never a crash.
#pragma once

#include <string>
#include <vector>

namespace simkit {

struct DeviceReport {
    std::vector<std::string> devices;  // "name, capability 9.0, 139 GiB"
    std::string reason;                // why `devices` is empty: none is seen, or this build has code for none
};

DeviceReport device_report();

}  // namespace simkit
