// What Python hands over of a problem of ops/candidates.hpp, checked.
#pragma once

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bind/arrays.hpp"
#include "ops/candidates.hpp"

namespace simkit {

inline Kernel candidate_kernel(const std::string& name, KernelFunction function) {
    if ((name == "custom") != (function != nullptr)) throw std::invalid_argument("a custom kernel is a function");
    if (function) return Kernel::custom;
    if (name == "rbf") return Kernel::rbf;
    if (name == "laplacian") return Kernel::laplacian;
    if (name == "polynomial") return Kernel::polynomial;
    throw std::invalid_argument("kernel must be rbf, laplacian or polynomial, not " + name);
}

inline std::vector<std::int64_t> indices(const IndexArray& array, std::int64_t low, std::int64_t high,
                                         const char* what) {
    if (array.ndim() != 1) throw std::invalid_argument(std::string(what) + " must be one-dimensional");
    std::vector<std::int64_t> out(array.data(), array.data() + array.size());
    for (std::int64_t value : out)
        if (value < low || value >= high) throw std::invalid_argument(std::string(what) + " is out of range");
    return out;
}

inline std::vector<std::int64_t> candidate_units(const IndexArray& candidates, const std::vector<std::int64_t>& kept,
                                                 std::int64_t units) {
    const auto out = indices(candidates, -1, units, "candidates");
    for (std::int64_t unit : out)
        if (unit >= 0 && std::find(kept.begin(), kept.end(), unit) == kept.end())
            throw std::invalid_argument("a candidate is not among the kept units");
    return out;
}

// Whether they are those of each candidate.
inline bool levels_each(const DoubleArray& levels, std::int64_t samples, std::size_t candidates) {
    const bool each = levels.ndim() == 2 && levels.shape(0) == static_cast<py::ssize_t>(candidates);
    if ((!each && levels.ndim() != 1) || levels.shape(levels.ndim() - 1) != samples)
        throw std::invalid_argument("levels must be [n] or [candidates, n]");
    return each;
}

// Of z [features, samples]; without kept units, candidates and levels.
template <class T>
CandidateProblem<T> candidate_problem(const T* z, std::int64_t features, std::int64_t samples,
                                      const IndexArray& offsets, const std::string& kernel, double length, double coef0,
                                      int degree, bool debiased, const std::optional<DoubleArray>& centre,
                                      bool small_centre, int threads, KernelFunction function = nullptr) {
    check_threads(threads);
    if (centre && (centre->ndim() != 1 || centre->shape(0) != samples))
        throw std::invalid_argument("centre must be [n]");
    CandidateProblem<T> problem{};
    problem.z = z;
    problem.n = samples;
    problem.offsets = indices(offsets, 0, features + 1, "offsets");
    const auto units = static_cast<std::int64_t>(problem.offsets.size()) - 1;
    if (units < 1 || problem.offsets.front() != 0 || problem.offsets.back() != features)
        throw std::invalid_argument("offsets must lead from 0 to p");
    for (std::int64_t u = 0; u < units; ++u)
        if (problem.offsets[u] >= problem.offsets[u + 1]) throw std::invalid_argument("a unit has no rows");
    problem.kernel = candidate_kernel(kernel, function);
    problem.function = function;
    problem.length = length;
    problem.coef0 = coef0;
    problem.degree = degree;
    problem.debiased = debiased;
    problem.centre = centre ? centre->data() : nullptr;
    problem.small_centre = small_centre;
    problem.threads = threads;
    return problem;
}

}  // namespace simkit
