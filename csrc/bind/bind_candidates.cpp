#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>

#include "bind/arrays.hpp"
#include "ops/candidates.hpp"

namespace simkit {
namespace {

Kernel kernel_of(const std::string& name) {
    if (name == "rbf") return Kernel::rbf;
    if (name == "laplacian") return Kernel::laplacian;
    if (name == "polynomial") return Kernel::polynomial;
    throw std::invalid_argument("kernel must be rbf, laplacian or polynomial, not " + name);
}

std::vector<std::int64_t> indices(const IndexArray& array, std::int64_t low, std::int64_t high, const char* what) {
    if (array.ndim() != 1) throw std::invalid_argument(std::string(what) + " must be one-dimensional");
    std::vector<std::int64_t> out(array.data(), array.data() + array.size());
    for (std::int64_t value : out)
        if (value < low || value >= high) throw std::invalid_argument(std::string(what) + " is out of range");
    return out;
}

template <class T>
CandidateProblem<T> problem_of(const py::array_t<T, py::array::c_style>& z, const IndexArray& offsets,
                               const IndexArray& kept, const IndexArray& candidates, const std::string& kernel,
                               double length, double coef0, int degree, bool debiased, double level,
                               const DoubleArray& centre, double mean, int threads) {
    check_threads(threads);
    if (z.ndim() != 2 || z.shape(1) < 1) throw std::invalid_argument("z must be a non-empty [p, n]");
    if (centre.ndim() != 1 || centre.shape(0) != z.shape(1)) throw std::invalid_argument("centre must be [n]");
    CandidateProblem<T> problem{};
    problem.z = z.data();
    problem.n = z.shape(1);
    problem.offsets = indices(offsets, 0, z.shape(0) + 1, "offsets");
    const auto units = static_cast<std::int64_t>(problem.offsets.size()) - 1;
    if (units < 1 || problem.offsets.front() != 0 || problem.offsets.back() != z.shape(0))
        throw std::invalid_argument("offsets must lead from 0 to p");
    for (std::int64_t u = 0; u < units; ++u)
        if (problem.offsets[u] >= problem.offsets[u + 1]) throw std::invalid_argument("a unit has no rows");
    problem.kept = indices(kept, 0, units, "kept");
    problem.candidates = indices(candidates, -1, units, "candidates");
    for (std::int64_t unit : problem.candidates)
        if (unit >= 0 && std::find(problem.kept.begin(), problem.kept.end(), unit) == problem.kept.end())
            throw std::invalid_argument("a candidate is not among the kept units");
    problem.kernel = kernel_of(kernel);
    problem.length = length;
    problem.coef0 = coef0;
    problem.degree = degree;
    problem.debiased = debiased;
    problem.level = level;
    problem.centre = centre.data();
    problem.mean = mean;
    problem.threads = threads;
    return problem;
}

template <class T>
void bind_for(py::module_& m) {
    using namespace py::literals;
    using Array = py::array_t<T, py::array::c_style>;
    m.def(
        "candidate_sums",
        [](const Array& z, const IndexArray& offsets, const IndexArray& kept, const IndexArray& candidates,
           const std::string& kernel, double length, double coef0, int degree, bool debiased, double level,
           const DoubleArray& centre, double mean, const std::optional<Array>& packed, int threads) {
            auto problem = problem_of<T>(z, offsets, kept, candidates, kernel, length, coef0, degree, debiased, level,
                                         centre, mean, threads);
            if (packed && (packed->ndim() != 1 || packed->shape(0) != packed_size(problem.n)))
                throw std::invalid_argument("packed has another size");
            problem.packed = packed ? packed->data() : nullptr;
            CandidateSums out;
            {
                py::gil_scoped_release release;
                out = candidate_sums(problem, interrupt_poll());
            }
            const auto count = static_cast<py::ssize_t>(problem.candidates.size());
            return py::make_tuple(to_array(std::move(out.cross), {count}), to_array(std::move(out.squares), {count}),
                                  to_array(std::move(out.rows), {count, problem.n}));
        },
        py::kw_only(), "z"_a.noconvert(), "offsets"_a, "kept"_a, "candidates"_a, "kernel"_a, "length"_a, "coef0"_a,
        "degree"_a, "debiased"_a, "level"_a, "centre"_a, "mean"_a, "packed"_a.noconvert(), "threads"_a);
    m.def(
        "pack_centred",
        [](const Array& z, const IndexArray& offsets, const std::string& kernel, double length, double coef0,
           int degree, const DoubleArray& centre, double mean, int threads) {
            const IndexArray none(0);
            const auto problem =
                problem_of<T>(z, offsets, none, none, kernel, length, coef0, degree, false, 0.0, centre, mean, threads);
            py::array_t<T> out(packed_size(problem.n));
            T* data = out.mutable_data();
            {
                py::gil_scoped_release release;
                pack_centred(problem, interrupt_poll(), data);
            }
            return out;
        },
        py::kw_only(), "z"_a.noconvert(), "offsets"_a, "kernel"_a, "length"_a, "coef0"_a, "degree"_a, "centre"_a,
        "mean"_a, "threads"_a);
}

}  // namespace

void bind_candidates(py::module_& m) {
    bind_for<float>(m);
    bind_for<double>(m);
}

}  // namespace simkit
