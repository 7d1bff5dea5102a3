#include <pybind11/stl.h>

#include <type_traits>

#include "bind/candidate_problem.hpp"
#include "ops/candidates.hpp"
#include "ops/hsic.hpp"

namespace simkit {
namespace {

template <class T>
CandidateProblem<T> problem_of(const py::array_t<T, py::array::c_style>& z, const IndexArray& offsets,
                               const std::string& kernel, double length, double coef0, int degree, bool debiased,
                               const std::optional<DoubleArray>& centre, bool small_centre, std::uintptr_t function,
                               int threads) {
    if (function && !std::is_same_v<T, double>) throw std::invalid_argument("a custom kernel needs z in float64");
    if (z.ndim() != 2 || z.shape(1) < 1) throw std::invalid_argument("z must be a non-empty [p, n]");
    return candidate_problem(z.data(), z.shape(0), z.shape(1), offsets, kernel, length, coef0, degree, debiased, centre,
                             small_centre, threads, reinterpret_cast<KernelFunction>(function));
}

// What Python raises as an error that names the layer: (product, squared distance, value).
py::tuple out_of_range(const KernelOutOfRange& found) {
    return py::make_tuple(found.product, found.squared_distance, found.value);
}

template <class T>
void bind_for(py::module_& m) {
    using namespace py::literals;
    using Array = py::array_t<T, py::array::c_style>;
    m.def(
        "candidate_sums",
        [](const Array& z, const IndexArray& offsets, const IndexArray& kept, const IndexArray& candidates,
           const std::string& kernel, double length, double coef0, int degree, bool debiased, const DoubleArray& levels,
           bool small, const std::optional<DoubleArray>& centre, bool small_centre, std::uintptr_t function,
           const std::optional<Array>& packed, int threads) -> py::tuple {
            auto problem = problem_of<T>(z, offsets, kernel, length, coef0, degree, debiased, centre, small_centre,
                                         function, threads);
            const auto units = static_cast<std::int64_t>(problem.offsets.size()) - 1;
            problem.kept = indices(kept, 0, units, "kept");
            problem.candidates = candidate_units(candidates, problem.kept, units);
            problem.levels = levels.data();
            problem.levels_each = levels_each(levels, problem.n, problem.candidates.size());
            problem.small = small;
            if (packed && (packed->ndim() != 1 || packed->shape(0) != packed_size(problem.n)))
                throw std::invalid_argument("packed has another size");
            problem.packed = packed ? packed->data() : nullptr;
            CandidateSums out;
            try {
                py::gil_scoped_release release;
                out = candidate_sums(problem, interrupt_poll());
            } catch (const KernelOutOfRange& found) {
                return py::make_tuple(py::none(), out_of_range(found));
            }
            const auto count = static_cast<py::ssize_t>(problem.candidates.size());
            const auto sums =
                py::make_tuple(to_array(std::move(out.cross), {count}), to_array(std::move(out.squares), {count}),
                               to_array(std::move(out.rows), {count, problem.n}));
            return py::make_tuple(sums, py::none());
        },
        py::kw_only(), "z"_a.noconvert(), "offsets"_a, "kept"_a, "candidates"_a, "kernel"_a, "length"_a, "coef0"_a,
        "degree"_a, "debiased"_a, "levels"_a, "small"_a, "centre"_a, "small_centre"_a, "function"_a,
        "packed"_a.noconvert(), "threads"_a);
    m.def(
        "pack_centred",
        [](const Array& z, const IndexArray& offsets, const std::string& kernel, double length, double coef0,
           int degree, const DoubleArray& centre, bool small_centre, std::uintptr_t function,
           int threads) -> py::tuple {
            const auto problem = problem_of<T>(z, offsets, kernel, length, coef0, degree, false, centre, small_centre,
                                               function, threads);
            py::array_t<T> out(packed_size(problem.n));
            T* data = out.mutable_data();
            try {
                py::gil_scoped_release release;
                pack_centred(problem, interrupt_poll(), data);
            } catch (const KernelOutOfRange& found) {
                return py::make_tuple(py::none(), out_of_range(found));
            }
            return py::make_tuple(out, py::none());
        },
        py::kw_only(), "z"_a.noconvert(), "offsets"_a, "kernel"_a, "length"_a, "coef0"_a, "degree"_a, "centre"_a,
        "small_centre"_a, "function"_a, "threads"_a);
}

}  // namespace

void bind_candidates(py::module_& m) {
    bind_for<float>(m);
    bind_for<double>(m);
}

}  // namespace simkit
