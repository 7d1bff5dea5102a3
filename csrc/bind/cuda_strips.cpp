#include <pybind11/stl.h>

#include <stdexcept>

#include "bind/cuda_arrays.hpp"

namespace simkit {
namespace bound {
namespace {

using Array = std::shared_ptr<DeviceArray>;
using Block = std::shared_ptr<DeviceBlock>;

Strips strips_of(std::int64_t resident, std::int64_t passing, std::int64_t bytes, int threads) {
    check_threads(threads);
    if (resident < 0 || passing < 0 || bytes < 0) throw std::invalid_argument("strips have no negative sizes");
    return {resident, passing, bytes, threads};
}

py::tuple column_stats_in_strips(const Array& x, const std::optional<DoubleArray>& row_scale, std::int64_t resident,
                                 std::int64_t passing, std::int64_t bytes, int threads) {
    if (!x) throw std::invalid_argument("an argument is None");
    if (row_scale && (row_scale->ndim() != 1 || row_scale->shape(0) != x->view.rows))
        throw std::invalid_argument("row_scale must be [n]");
    const double* scale = row_scale ? row_scale->data() : nullptr;
    const Strips strips = strips_of(resident, passing, bytes, threads);
    ColumnStats stats;
    {
        py::gil_scoped_release release;
        stats = cuda::column_stats(place_of({x.get()}, true), x->view, scale, strips);
    }
    return to_tuple(std::move(stats));
}

py::array_t<double> row_norms_in_strips(const Block& block, std::int64_t resident, std::int64_t passing,
                                        std::int64_t bytes, int threads) {
    if (!block) throw std::invalid_argument("an argument is None");
    const Strips strips = strips_of(resident, passing, bytes, threads);
    std::vector<double> norms;
    {
        py::gil_scoped_release release;
        norms = cuda::row_norms(place_of({block->x.get()}, true), block->view, strips);
    }
    return to_array(std::move(norms), {static_cast<py::ssize_t>(block->view.x.rows)});
}

double distance_median_in_strips(const Block& block, std::int64_t resident, std::int64_t passing, std::int64_t bytes,
                                 int threads) {
    if (!block) throw std::invalid_argument("an argument is None");
    if (block->view.row_scale) throw std::invalid_argument("distances in strips have no row_scale");
    const Strips strips = strips_of(resident, passing, bytes, threads);
    py::gil_scoped_release release;
    return cuda::distance_median(place_of({block->x.get()}, true), block->view, strips);
}

Array column_products_in_strips(const Block& block, const DoubleArray& sum_sq_dev, bool exact, bool tensor,
                                bool squared, std::int64_t resident, std::int64_t passing, std::int64_t bytes,
                                int threads) {
    const double* squares = checked_squares(block, sum_sq_dev);
    const std::int64_t p = block->view.x.cols;
    const Place place = place_of({block->x.get()}, true);
    const Strips strips = strips_of(resident, passing, bytes, threads);
    cuda::DeviceMemory owner;
    {
        py::gil_scoped_release release;
        owner = cuda::column_products(place, block->view, squares, exact, tensor, squared, strips);
    }
    return held(place, owner, p, p, Dtype::f64);
}

py::tuple pair_sums_in_strips(const std::vector<Block>& rows, const std::vector<Block>& columns, bool debiased,
                              bool sample_space, bool double_products, bool tensor, std::int64_t resident,
                              std::int64_t passing, std::int64_t bytes, int threads) {
    const auto [problem, arrays] = pairs_of(rows, columns, debiased, sample_space, double_products, tensor);
    const Place place = place_of(arrays, true);
    const Strips strips = strips_of(resident, passing, bytes, threads);
    PairSums sums;
    {
        py::gil_scoped_release release;
        sums = sample_space ? cuda::pair_sums_sample(place, problem, strips)
                            : cuda::pair_sums_feature(place, problem, strips);
    }
    return to_tuple(std::move(sums), problem);
}

}  // namespace
}  // namespace bound

void bind_cuda_strips(py::module_& m) {
    using namespace py::literals;
    m.def("column_stats_in_strips", &bound::column_stats_in_strips, py::kw_only(), "x"_a, "row_scale"_a, "resident"_a,
          "passing"_a, "bytes"_a, "threads"_a);
    m.def("row_norms_in_strips", &bound::row_norms_in_strips, "block"_a, py::kw_only(), "resident"_a, "passing"_a,
          "bytes"_a, "threads"_a);
    m.def("distance_median_in_strips", &bound::distance_median_in_strips, "block"_a, py::kw_only(), "resident"_a,
          "passing"_a, "bytes"_a, "threads"_a);
    m.def("column_products_in_strips", &bound::column_products_in_strips, "block"_a, "sum_sq_dev"_a, py::kw_only(),
          "exact"_a, "tensor"_a, "squared"_a, "resident"_a, "passing"_a, "bytes"_a, "threads"_a);
    m.def("pair_sums_in_strips", &bound::pair_sums_in_strips, py::kw_only(), "rows"_a, "columns"_a, "debiased"_a,
          "sample_space"_a, "double_products"_a, "tensor"_a, "resident"_a, "passing"_a, "bytes"_a, "threads"_a);
}

}  // namespace simkit
