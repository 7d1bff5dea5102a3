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

Array column_products(const std::shared_ptr<DeviceBlock>& block, const DoubleArray& sum_sq_dev, bool exact, bool tensor,
                      bool squared, std::int64_t bytes) {
    const double* squares = checked_squares(block, sum_sq_dev);
    const std::int64_t p = block->view.x.cols;
    const Place place = place_of({block->x.get()});
    cuda::DeviceMemory owner;
    {
        py::gil_scoped_release release;
        owner = cuda::column_products(place, block->view, squares, exact, tensor, squared, bytes);
    }
    return held(place, owner, p, p, Dtype::f64);
}

Array gather_columns(const Array& x, const IndexArray& index) {
    const MatrixView& view = checked(x).view;
    if (index.ndim() != 1 || index.shape(0) < 1) throw std::invalid_argument("index must be [columns]");
    const std::vector<std::int64_t> columns(index.data(), index.data() + index.shape(0));
    for (const std::int64_t column : columns)
        if (column < 0 || column >= view.cols) throw std::invalid_argument("an index is that of no column");
    const Place place = place_of({x.get()});
    const auto count = static_cast<std::int64_t>(columns.size());
    cuda::DeviceMemory owner;
    {
        py::gil_scoped_release release;
        owner = cuda::gather_columns(place, view, columns);
    }
    return held(place, owner, view.rows, count, view.dtype);
}

py::tuple unit_sums(const std::shared_ptr<DeviceBlock>& block, const IndexArray& offsets, bool debiased,
                    bool sample_space, bool double_products, bool tensor, std::int64_t bytes) {
    if (!block) throw std::invalid_argument("an argument is None");
    if (block->view.kernel != Kernel::linear) throw std::invalid_argument("units are summed for the linear kernel");
    if (offsets.ndim() != 1 || offsets.shape(0) < 2) throw std::invalid_argument("offsets must be [u + 1]");
    const std::vector<std::int64_t> ends(offsets.data(), offsets.data() + offsets.shape(0));
    const std::int64_t u = offsets.shape(0) - 1;
    for (std::int64_t k = 0; k < u; ++k)
        if (ends[k] < 0 || ends[k] >= ends[k + 1] || ends[k + 1] > block->view.x.cols)
            throw std::invalid_argument("offsets must rise from 0 to the number of columns");
    if (ends.front() != 0 || ends.back() != block->view.x.cols)
        throw std::invalid_argument("offsets must rise from 0 to the number of columns");
    const Place place = place_of({block->x.get()});
    cuda::OwnSums own;
    {
        py::gil_scoped_release release;
        own = cuda::unit_sums(place, block->view, ends, debiased, sample_space, double_products, tensor, bytes);
    }
    const auto many = static_cast<py::ssize_t>(u);
    return py::make_tuple(held(place, own.values, u, u, Dtype::f64), to_array(std::move(own.self), {many}),
                          to_array(std::move(own.raw), {many}));
}

py::array_t<double> host(const Array& a) {
    const DeviceArray& square = checked_square(a);
    const auto u = static_cast<py::ssize_t>(square.view.rows);
    py::array_t<double> out({u, u});
    double* to = out.mutable_data();
    {
        py::gil_scoped_release release;
        cuda::host_copy(place_of({&square}), square.view.data, reinterpret_cast<std::byte*>(to),
                        static_cast<std::size_t>(u * u) * 8);
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
                                     to_array(std::move(of.cka), {removed}), of.smallest_gap, of.lost));
    }
    return out;
}

}  // namespace
}  // namespace bound

void bind_cuda_greedy(py::module_& m) {
    using namespace py::literals;
    m.def("column_products", &bound::column_products, "block"_a, "sum_sq_dev"_a, py::kw_only(), "exact"_a, "tensor"_a,
          "squared"_a, "bytes"_a);
    m.def("gather_columns", &bound::gather_columns, "x"_a, "index"_a);
    m.def("unit_sums", &bound::unit_sums, "block"_a, "offsets"_a, py::kw_only(), "debiased"_a, "sample_space"_a,
          "double_products"_a, "tensor"_a, "bytes"_a);
    m.def("host", &bound::host, "a"_a);
    m.def("total", &bound::total, "a"_a);
    m.def("eliminate", &bound::eliminate, "matrices"_a, py::kw_only(), "greedy"_a, "counts"_a, "min_cka"_a);
}

}  // namespace simkit
