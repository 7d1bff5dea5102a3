#include "cuda/device.cuh"
#include "cuda/unit_features.hpp"

namespace simkit::cuda {

DeviceUnits form_units(const Place& place, const UnitProblem& problem, bool wide) {
    DeviceUnits units{place, static_cast<Index>(problem.columns.size()), problem.x.rows, wide, nullptr};
    const auto count = static_cast<std::size_t>(units.features * units.samples);
    units.z = device_memory(place, count * (wide ? sizeof(double) : sizeof(float)));
    Machine machine(place);
    if (wide)
        form_units(machine, problem, reinterpret_cast<double*>(units.z.get()));
    else
        form_units(machine, problem, reinterpret_cast<float*>(units.z.get()));
    machine.settle();
    units.place = {place.device, nullptr, {}};  // whose stream may be gone when they are used
    return units;
}

}  // namespace simkit::cuda
