#include "cuda/device.cuh"
#include "cuda/unit_features.hpp"

namespace simkit::cuda {

DeviceUnits form_units(const Place& place, const UnitProblem& problem, bool wide) {
    auto z = at_place(place, Index{0}, [&](Machine& machine, Index) { return form_units(machine, problem, wide); });
    // Not the caller's stream: it may be gone when they are used.
    return {{place.device, own_stream(place.device), {}},
            static_cast<Index>(problem.columns.size()),
            problem.x.rows,
            wide,
            std::move(z)};
}

}  // namespace simkit::cuda
