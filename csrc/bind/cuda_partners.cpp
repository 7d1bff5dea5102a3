#include <pybind11/stl.h>

#include <stdexcept>

#include "bind/cuda_arrays.hpp"
#include "ops/partners.hpp"

namespace simkit {
namespace {

std::vector<std::int64_t> ascending(const IndexArray& numbers, std::int64_t rows, const char* what) {
    if (numbers.ndim() != 1 || numbers.shape(0) < 1)
        throw std::invalid_argument(std::string(what) + " must be [count]");
    std::vector<std::int64_t> out(numbers.data(), numbers.data() + numbers.shape(0));
    for (std::size_t k = 0; k < out.size(); ++k)
        if (out[k] < (k ? out[k - 1] + 1 : 0) || out[k] >= rows)
            throw std::invalid_argument(std::string(what) + " must be ascending row numbers");
    return out;
}

const double* of_rows(const std::optional<DoubleArray>& values, std::int64_t rows, const char* what) {
    if (!values) return nullptr;
    if (values->ndim() != 1 || values->shape(0) != rows)
        throw std::invalid_argument(std::string(what) + " must be [n]");
    return values->data();
}

py::tuple nearest_rows(const std::shared_ptr<DeviceArray>& x, const DoubleArray& norms,
                       const std::optional<DoubleArray>& last, const std::optional<DoubleArray>& residues,
                       bool same_sign, double balance, const IndexArray& rows, const IndexArray& others,
                       std::int64_t k) {
    if (!x) throw std::invalid_argument("there is no array");
    const std::int64_t n = x->view.rows;
    if (residues && (residues->ndim() != 2 || residues->shape(0) != 5 || residues->shape(1) != n))
        throw std::invalid_argument("residues must be [5, n]");
    if (k < 1 || k > kMostNearest)
        throw std::invalid_argument("k must be 1 to " + std::to_string(kMostNearest) + ", not " + std::to_string(k));
    const NearestProblem problem{x->view,
                                 of_rows(norms, n, "norms"),
                                 of_rows(last, n, "last"),
                                 residues ? residues->data() : nullptr,
                                 same_sign,
                                 balance,
                                 ascending(rows, n, "rows"),
                                 ascending(others, n, "others"),
                                 k};
    NearestRows found;
    {
        py::gil_scoped_release release;
        found = cuda::nearest_rows(place_of({x.get()}), problem);
    }
    const std::vector<py::ssize_t> shape{static_cast<py::ssize_t>(problem.rows.size()), static_cast<py::ssize_t>(k)};
    return py::make_tuple(py::array_t<std::int64_t>(shape, found.row.data()), to_array(std::move(found.cosine), shape),
                          to_array(std::move(found.score), shape));
}

}  // namespace

void bind_cuda_partners(py::module_& m) {
    using namespace py::literals;
    m.def("nearest_rows", &nearest_rows, py::kw_only(), "x"_a, "norms"_a, "last"_a, "residues"_a, "same_sign"_a,
          "balance"_a, "rows"_a, "others"_a, "k"_a);
}

}  // namespace simkit
