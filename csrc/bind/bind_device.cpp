#include <pybind11/stl.h>

#include "bind/arrays.hpp"
#include "core/device_report.hpp"

namespace simkit {

void bind_device(py::module_& m) {
    m.def("device_report", [] {
        const DeviceReport report = device_report();
        return py::make_tuple(report.compiled, report.devices, report.reason);
    });
}

}  // namespace simkit
