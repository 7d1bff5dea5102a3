#include <pybind11/stl.h>

#include <stdexcept>

#include "bind/candidate_problem.hpp"
#include "bind/cuda_arrays.hpp"

namespace simkit {
namespace {

// Units that lie on a device, until Python forgets them.
struct DeviceCandidates {
    std::int64_t units, n;
    std::unique_ptr<cuda::HeldCandidates> held;
};

template <class T>
std::unique_ptr<DeviceCandidates> hold(const py::array_t<T, py::array::c_style>& z, const IndexArray& offsets,
                                       const std::string& kernel, double length, double coef0, int degree,
                                       bool debiased, const DoubleArray& centre, double mean, std::int64_t at_once,
                                       std::int64_t packed, std::int64_t bytes, int device) {
    if (at_once < 1) throw std::invalid_argument("at_once must be positive");
    const auto problem = candidate_problem<T>(z, offsets, kernel, length, coef0, degree, debiased, centre, mean, 1);
    if (problem.kernel == Kernel::polynomial && degree < 1) throw std::invalid_argument("degree must be positive");
    auto out = std::make_unique<DeviceCandidates>();
    out->units = static_cast<std::int64_t>(problem.offsets.size()) - 1;
    out->n = problem.n;
    const Place place{device, nullptr, {}};
    py::gil_scoped_release release;
    out->held = cuda::hold_candidates(place, problem, {at_once, packed, bytes});
    return out;
}

py::tuple sums(DeviceCandidates& of, const IndexArray& kept, const IndexArray& candidates, double level, bool rows) {
    const auto units = indices(kept, 0, of.units, "kept");
    if (units.empty()) throw std::invalid_argument("there are no kept units");
    const auto chosen = candidate_units(candidates, units, of.units);
    cuda::CandidateTotals out;
    {
        py::gil_scoped_release release;
        out = of.held->sums(units, chosen, level, rows);
    }
    const auto count = static_cast<py::ssize_t>(chosen.size());
    py::object all = py::none();
    if (rows) all = to_array(std::move(out.rows), {count, static_cast<py::ssize_t>(of.n)});
    return py::make_tuple(to_array(std::move(out.cross), {count}), to_array(std::move(out.squares), {count}),
                          to_array(std::move(out.totals), {count}), to_array(std::move(out.row_squares), {count}), all);
}

}  // namespace

void bind_cuda_candidates(py::module_& m) {
    using namespace py::literals;
    py::class_<DeviceCandidates> candidates(m, "Candidates");
    const auto bind_for = [&](auto made) {
        candidates.def(py::init(made), py::kw_only(), "z"_a.noconvert(), "offsets"_a, "kernel"_a, "length"_a, "coef0"_a,
                       "degree"_a, "debiased"_a, "centre"_a, "mean"_a, "at_once"_a, "packed"_a, "bytes"_a, "device"_a);
    };
    bind_for(&hold<float>);
    bind_for(&hold<double>);
    candidates.def("sums", &sums, py::kw_only(), "kept"_a, "candidates"_a, "level"_a, "rows"_a)
        .def_property_readonly("nbytes", [](const DeviceCandidates& of) { return of.held->packed_bytes(); });
}

}  // namespace simkit
