#include <pybind11/stl.h>

#include <stdexcept>

#include "bind/cuda_arrays.hpp"
#include "ops/columns.hpp"
#include "ops/greedy.hpp"
#include "ops/hsic.hpp"

namespace simkit {
namespace bound {
namespace {

using Array = std::shared_ptr<DeviceArray>;
using Block = std::shared_ptr<DeviceBlock>;

template <class T>
const T& checked(const std::shared_ptr<T>& held) {
    if (!held) throw std::invalid_argument("an argument is None");
    return *held;
}

py::tuple column_stats(const Array& x, const std::optional<DoubleArray>& row_scale) {
    const DeviceArray& array = checked(x);
    if (row_scale && (row_scale->ndim() != 1 || row_scale->shape(0) != array.view.rows))
        throw std::invalid_argument("row_scale must be [n]");
    const double* scale = row_scale ? row_scale->data() : nullptr;
    ColumnStats stats;
    {
        py::gil_scoped_release release;
        stats = cuda::column_stats(place_of({&array}), array.view, scale);
    }
    const auto p = static_cast<py::ssize_t>(array.view.cols);
    return py::make_tuple(to_array(std::move(stats.mean), {p}), to_array(std::move(stats.sum_sq_dev), {p}),
                          stats.max_abs, stats.max_dev, stats.nonfinite, stats.first_row, stats.first_col);
}

py::array_t<double> row_norms(const Block& block) {
    const DeviceBlock& of = checked(block);
    std::vector<double> norms;
    {
        py::gil_scoped_release release;
        norms = cuda::row_norms(place_of({of.x.get()}), of.view);
    }
    return to_array(std::move(norms), {static_cast<py::ssize_t>(of.view.x.rows)});
}

double distance_median(const Block& block) {
    const DeviceBlock& of = checked(block);
    py::gil_scoped_release release;
    return cuda::distance_median(place_of({of.x.get()}), of.view);
}

py::array_t<double> column_products(const Block& block, const DoubleArray& sum_sq_dev, bool exact, bool tensor) {
    const DeviceBlock& of = checked(block);
    const auto p = static_cast<py::ssize_t>(of.view.x.cols);
    if (sum_sq_dev.ndim() != 1 || sum_sq_dev.shape(0) != p) throw std::invalid_argument("sum_sq_dev must be [p]");
    py::array_t<double> g({p, p});
    double* out = g.mutable_data();
    const double* squares = sum_sq_dev.data();
    {
        py::gil_scoped_release release;
        cuda::column_products(place_of({of.x.get()}), of.view, squares, exact, tensor, out);
    }
    return g;
}

py::tuple pair_sums(const std::vector<Block>& rows, const std::vector<Block>& columns, bool debiased, bool sample_space,
                    bool double_products, bool tensor, std::int64_t bytes) {
    if (rows.empty()) throw std::invalid_argument("there are no blocks");
    PairProblem problem{{}, static_cast<std::int64_t>(rows.size()), debiased, double_products, 0, 1, false};
    std::vector<const DeviceArray*> arrays;
    for (const auto* side : {&rows, &columns})
        for (const Block& block : *side) {
            problem.blocks.push_back(checked(block).view);
            arrays.push_back(block->x.get());
            if (block->view.x.rows != problem.n()) throw std::invalid_argument("blocks have different numbers of rows");
            if (block->view.kernel != Kernel::linear && !(sample_space && double_products))
                throw std::invalid_argument("non-linear kernels need float64 products in sample space");
        }
    const Place place = place_of(arrays);
    PairSums sums;
    {
        py::gil_scoped_release release;
        sums = sample_space ? cuda::pair_sums_sample(place, problem, tensor, bytes)
                            : cuda::pair_sums_feature(place, problem, tensor, bytes);
    }
    const auto left = static_cast<py::ssize_t>(problem.left), right = static_cast<py::ssize_t>(problem.right());
    const auto m = static_cast<py::ssize_t>(problem.m());
    return py::make_tuple(to_array(std::move(sums.values), {left, right}), to_array(std::move(sums.self), {m}),
                          to_array(std::move(sums.raw), {m}));
}

py::tuple eliminate(const DoubleArray& a, bool greedy, std::int64_t count, double min_cka, int device,
                    std::uintptr_t stream) {
    if (a.ndim() != 2 || a.shape(0) != a.shape(1) || a.shape(0) < 1)
        throw std::invalid_argument("a must be a non-empty square [u, u]");
    if (count < 0 || count > a.shape(0)) throw std::invalid_argument("count must be 0 to u");
    const double* data = a.data();
    const std::int64_t u = a.shape(0);
    const Place place{device, reinterpret_cast<void*>(stream), {}};
    Elimination out;
    {
        py::gil_scoped_release release;
        out = cuda::eliminate(place, data, u, greedy, count, min_cka);
    }
    const auto removed = static_cast<py::ssize_t>(out.order.size());
    return py::make_tuple(py::array_t<std::int64_t>(removed, out.order.data()), to_array(std::move(out.cka), {removed}),
                          out.smallest_gap);
}

}  // namespace
}  // namespace bound

void bind_cuda_ops(py::module_& m) {
    using namespace py::literals;
    m.def("column_stats", &bound::column_stats, py::kw_only(), "x"_a, "row_scale"_a);
    m.def("row_norms", &bound::row_norms, "block"_a);
    m.def("distance_median", &bound::distance_median, "block"_a);
    m.def("column_products", &bound::column_products, "block"_a, "sum_sq_dev"_a, py::kw_only(), "exact"_a, "tensor"_a);
    m.def("pair_sums", &bound::pair_sums, py::kw_only(), "rows"_a, "columns"_a, "debiased"_a, "sample_space"_a,
          "double_products"_a, "tensor"_a, "bytes"_a);
    m.def("eliminate", &bound::eliminate, "a"_a, py::kw_only(), "greedy"_a, "count"_a, "min_cka"_a, "device"_a,
          "stream"_a);
}

}  // namespace simkit
