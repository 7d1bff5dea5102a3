// Greedy orders: matrices [u, u] that stay on their device from the products to the elimination.
#include <pybind11/stl.h>

#include <stdexcept>

#include "bind/cuda_arrays.hpp"
#include "ops/columns.hpp"
#include "ops/greedy.hpp"

namespace simkit {
namespace bound {
namespace {

using Array = std::shared_ptr<DeviceArray>;

const DeviceArray& checked(const Array& array) {
    if (!array) throw std::invalid_argument("an argument is None");
    return *array;
}

const DeviceArray& checked_square(const Array& array) {
    const MatrixView& view = checked(array).view;
    if (view.dtype != Dtype::f64 || view.rows != view.cols || view.col_stride != 8 || view.row_stride != 8 * view.cols)
        throw std::invalid_argument("a must be a contiguous float64 square [u, u]");
    if (view.rows > 2147483647) throw std::invalid_argument("a has more units than are counted");
    return *array;
}

const double* entries(const DeviceArray& square) { return reinterpret_cast<const double*>(square.view.data); }

Array column_products(const std::shared_ptr<DeviceBlock>& block, const DoubleArray& sum_sq_dev, bool exact,
                      bool squared) {
    if (!block) throw std::invalid_argument("an argument is None");
    const std::int64_t p = block->view.x.cols;
    if (sum_sq_dev.ndim() != 1 || sum_sq_dev.shape(0) != p) throw std::invalid_argument("sum_sq_dev must be [p]");
    const double* squares = sum_sq_dev.data();
    const Place place = place_of({block->x.get()});
    std::shared_ptr<std::byte> owner;
    {
        py::gil_scoped_release release;
        owner = cuda::device_memory(place, static_cast<std::size_t>(p * p) * 8);
        cuda::column_products(place, block->view, squares, exact, squared, reinterpret_cast<double*>(owner.get()));
    }
    return std::make_shared<DeviceArray>(
        DeviceArray{{owner.get(), p, p, 8 * p, 8, Dtype::f64, false}, place.device, place.stream, owner});
}

py::array_t<double> host(const Array& a) {
    const DeviceArray& square = checked_square(a);
    const auto u = static_cast<py::ssize_t>(square.view.rows);
    py::array_t<double> out({u, u});
    double* to = out.mutable_data();
    {
        py::gil_scoped_release release;
        cuda::host_copy(place_of({&square}), square.view.data, to, static_cast<std::size_t>(u * u) * 8);
    }
    return out;
}

double total(const Array& a) {
    const DeviceArray& square = checked_square(a);
    py::gil_scoped_release release;
    return cuda::total(place_of({&square}), entries(square), square.view.rows);
}

std::vector<py::tuple> eliminate(const std::vector<Array>& matrices, bool greedy,
                                 const std::vector<std::int64_t>& counts, double min_cka) {
    if (matrices.empty() || matrices.size() != counts.size())
        throw std::invalid_argument("a count is needed for each of one or more matrices");
    std::vector<cuda::SquareProblem> problems;
    std::vector<const DeviceArray*> arrays;
    for (std::size_t k = 0; k < matrices.size(); ++k) {
        const DeviceArray& square = checked_square(matrices[k]);
        if (counts[k] < 1 || counts[k] > square.view.rows) throw std::invalid_argument("a count must be 1 to u");
        problems.push_back({entries(square), square.view.rows, counts[k]});
        arrays.push_back(&square);
    }
    const Place place = place_of(arrays);
    std::vector<Elimination> found;
    {
        py::gil_scoped_release release;
        found = cuda::eliminate(place, problems, greedy, min_cka);
    }
    std::vector<py::tuple> out;
    for (Elimination& of : found) {
        const auto removed = static_cast<py::ssize_t>(of.order.size());
        out.push_back(py::make_tuple(py::array_t<std::int64_t>(removed, of.order.data()),
                                     to_array(std::move(of.cka), {removed}), of.smallest_gap));
    }
    return out;
}

}  // namespace
}  // namespace bound

void bind_cuda_greedy(py::module_& m) {
    using namespace py::literals;
    m.def("column_products", &bound::column_products, "block"_a, "sum_sq_dev"_a, py::kw_only(), "exact"_a, "squared"_a);
    m.def("host", &bound::host, "a"_a);
    m.def("total", &bound::total, "a"_a);
    m.def("eliminate", &bound::eliminate, "matrices"_a, py::kw_only(), "greedy"_a, "counts"_a, "min_cka"_a);
}

}  // namespace simkit
