#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>

#include "bind/cuda_arrays.hpp"

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
    return to_tuple(std::move(stats));
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

void check_halves(const PairProblem& problem, bool sample_space) {
    const Dtype type = problem.blocks.front().x.dtype;
    if (!problem.tensor || !sample_space || problem.double_products)
        throw std::invalid_argument("halves are multiplied as they are in float32, in sample space, on tensor cores");
    if (type != Dtype::f16 && type != Dtype::bf16) throw std::invalid_argument("the blocks are of no 16-bit type");
    for (const BlockView& block : problem.blocks)
        if (block.x.dtype != type || block.kernel != Kernel::linear || block.row_scale)
            throw std::invalid_argument("halves are multiplied as they are by a linear kernel, all of one type");
}

void check_apart(const PairProblem& problem, const std::vector<bool>& apart, bool sample_space) {
    if (sample_space || apart.size() != problem.blocks.size())
        throw std::invalid_argument("apart must be [m], in feature space");
    if (std::find(apart.begin(), apart.end(), false) == apart.end())
        throw std::invalid_argument("all blocks stand apart, which leaves nothing to form");
}

double distance_median(const Block& block) {
    const DeviceBlock& of = checked(block);
    py::gil_scoped_release release;
    return cuda::distance_median(place_of({of.x.get()}), of.view);
}

py::tuple pair_sums(const std::vector<Block>& rows, const std::vector<Block>& columns, bool debiased, bool sample_space,
                    bool double_products, bool tensor, bool halves, std::int64_t bytes,
                    const std::vector<bool>& apart) {
    auto [problem, arrays] = pairs_of(rows, columns, debiased, sample_space, double_products, tensor);
    if (halves) check_halves(problem, sample_space);
    problem.halves = halves;
    if (!apart.empty()) check_apart(problem, apart, sample_space);
    const Place place = place_of(arrays);
    PairSums sums;
    {
        py::gil_scoped_release release;
        sums = sample_space ? cuda::pair_sums_sample(place, problem, bytes)
                            : cuda::pair_sums_feature(place, problem, bytes, apart);
    }
    return to_tuple(std::move(sums), problem);
}

}  // namespace
}  // namespace bound

void bind_cuda_ops(py::module_& m) {
    using namespace py::literals;
    m.def("column_stats", &bound::column_stats, py::kw_only(), "x"_a, "row_scale"_a);
    m.def("row_norms", &bound::row_norms, "block"_a);
    m.def("distance_median", &bound::distance_median, "block"_a);
    m.def("pair_sums", &bound::pair_sums, py::kw_only(), "rows"_a, "columns"_a, "debiased"_a, "sample_space"_a,
          "double_products"_a, "tensor"_a, "halves"_a, "bytes"_a, "apart"_a);
}

}  // namespace simkit
