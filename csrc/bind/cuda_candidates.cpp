#include <pybind11/stl.h>

#include <stdexcept>

#include "bind/candidate_problem.hpp"
#include "bind/cuda_arrays.hpp"

namespace simkit {
namespace {

using cuda::DeviceUnits;

// Units that lie on a device with what candidates need of them, until Python forgets it.
struct DeviceCandidates {
    std::shared_ptr<DeviceUnits> units;
    std::int64_t count;
    std::unique_ptr<cuda::HeldCandidates> held;
};

std::shared_ptr<DeviceUnits> make_units(const std::shared_ptr<DeviceArray>& x, const IndexArray& columns,
                                        const std::optional<DoubleArray>& shift, double scale, double unit, bool wide) {
    if (!x) throw std::invalid_argument("the units have no array");
    cuda::UnitProblem problem{x->view, indices(columns, 0, x->view.cols, "columns"), nullptr, scale, unit};
    if (problem.columns.empty()) throw std::invalid_argument("there are no columns");
    if (shift && (shift->ndim() != 1 || shift->shape(0) != columns.shape(0)))
        throw std::invalid_argument("shift must have a value for each column");
    problem.shift = shift ? shift->data() : nullptr;
    py::gil_scoped_release release;
    return std::make_shared<DeviceUnits>(cuda::form_units(place_of({x.get()}), problem, wide));
}

template <class T>
void hold(DeviceCandidates& out, const IndexArray& offsets, const std::string& kernel, double length, double coef0,
          int degree, bool debiased, const DoubleArray& centre, bool small_centre, const cuda::CandidateRoom& room) {
    const DeviceUnits& units = *out.units;
    const auto problem = candidate_problem(reinterpret_cast<const T*>(units.z.get()), units.features, units.samples,
                                           offsets, kernel, length, coef0, degree, debiased, centre, small_centre, 1);
    out.count = static_cast<std::int64_t>(problem.offsets.size()) - 1;
    py::gil_scoped_release release;
    out.held = cuda::hold_candidates(units.place, problem, room);
}

std::unique_ptr<DeviceCandidates> make_candidates(const std::shared_ptr<DeviceUnits>& units, const IndexArray& offsets,
                                                  const std::string& kernel, double length, double coef0, int degree,
                                                  bool debiased, const DoubleArray& centre, bool small_centre,
                                                  std::int64_t at_once, std::int64_t packed, std::int64_t bytes) {
    if (!units) throw std::invalid_argument("there are no units");
    if (at_once < 1) throw std::invalid_argument("at_once must be positive");
    if (kernel == "custom") throw std::invalid_argument("a device runs no custom kernel");
    if (kernel == "polynomial" && degree < 1) throw std::invalid_argument("degree must be positive");
    auto out = std::make_unique<DeviceCandidates>();
    out->units = units;
    const auto held = units->wide ? &hold<double> : &hold<float>;
    held(*out, offsets, kernel, length, coef0, degree, debiased, centre, small_centre, {at_once, packed, bytes});
    return out;
}

py::tuple sums(DeviceCandidates& of, const IndexArray& kept, const IndexArray& candidates, const DoubleArray& levels,
               bool small, bool rows) {
    const auto units = indices(kept, 0, of.count, "kept");
    if (units.empty()) throw std::invalid_argument("there are no kept units");
    const auto chosen = candidate_units(candidates, units, of.count);
    const cuda::CandidateLevels about{levels.data(), levels_each(levels, of.units->samples, chosen.size()), small};
    cuda::CandidateTotals out;
    {
        py::gil_scoped_release release;
        out = of.held->sums(units, chosen, about, rows);
    }
    const auto count = static_cast<py::ssize_t>(chosen.size());
    py::object all = py::none();
    if (rows) all = to_array(std::move(out.rows), {count, static_cast<py::ssize_t>(of.units->samples)});
    return py::make_tuple(to_array(std::move(out.cross), {count}), to_array(std::move(out.squares), {count}),
                          to_array(std::move(out.totals), {count}), to_array(std::move(out.row_squares), {count}), all);
}

}  // namespace

void bind_cuda_candidates(py::module_& m) {
    using namespace py::literals;
    py::class_<DeviceUnits, std::shared_ptr<DeviceUnits>>(m, "Units")
        .def(py::init(&make_units), py::kw_only(), "x"_a, "columns"_a, "shift"_a, "scale"_a, "unit"_a, "double"_a);
    py::class_<DeviceCandidates>(m, "Candidates")
        .def(py::init(&make_candidates), py::kw_only(), "units"_a, "offsets"_a, "kernel"_a, "length"_a, "coef0"_a,
             "degree"_a, "debiased"_a, "centre"_a, "small_centre"_a, "at_once"_a, "packed"_a, "bytes"_a)
        .def("sums", &sums, py::kw_only(), "kept"_a, "candidates"_a, "levels"_a, "small"_a, "rows"_a)
        .def_property_readonly("nbytes", [](const DeviceCandidates& of) { return of.held->packed_bytes(); });
}

}  // namespace simkit
