#include <pybind11/stl.h>

#include <stdexcept>

#include "bind/arrays.hpp"
#include "ops/hsic.hpp"

namespace simkit {
namespace {

std::shared_ptr<BoundBlock> make_block(py::array x, const std::string& dtype, bool mapped, DoubleArray shift,
                                       std::optional<DoubleArray> row_scale, double scale, const std::string& kernel,
                                       double length, double coef0, int degree, std::uintptr_t function,
                                       py::object owner) {
    const MatrixView view = matrix_view(x, dtype, mapped);
    if (shift.ndim() != 1 || shift.shape(0) != view.cols) throw std::invalid_argument("shift must be [p]");
    if (row_scale && (row_scale->ndim() != 1 || row_scale->shape(0) != view.rows))
        throw std::invalid_argument("row_scale must be [n]");
    if ((kernel == "custom") != (function != 0)) throw std::invalid_argument("a custom kernel is a function");
    auto block = std::make_shared<BoundBlock>();
    block->view = {view,  shift.data(), row_scale ? row_scale->data() : nullptr,   scale, kernel_of(kernel), length,
                   coef0, degree,       reinterpret_cast<KernelFunction>(function)};
    block->x = std::move(x);
    block->shift = std::move(shift);
    block->row_scale = std::move(row_scale);
    block->owner = std::move(owner);
    return block;
}

py::tuple pair_sums(const std::vector<std::shared_ptr<BoundBlock>>& rows,
                    const std::vector<std::shared_ptr<BoundBlock>>& columns, bool debiased, bool sample_space,
                    bool double_products, std::int64_t tile, int threads, bool shared, const std::vector<bool>& apart) {
    check_threads(threads);
    if (rows.empty()) throw std::invalid_argument("there are no blocks");
    if (tile < 1 || tile > 4096) throw std::invalid_argument("tile must be 1 to 4096, not " + std::to_string(tile));
    PairProblem problem{{}, static_cast<std::int64_t>(rows.size()), debiased, double_products, tile, threads, shared};
    for (const auto* side : {&rows, &columns})
        for (const auto& block : *side) {
            problem.blocks.push_back(checked_view(block));
            const BlockView& view = problem.blocks.back();
            if (view.x.rows != problem.n()) throw std::invalid_argument("blocks have different numbers of rows");
            if (view.kernel != Kernel::linear && !(sample_space && double_products))
                throw std::invalid_argument("non-linear kernels need float64 products in sample space");
        }
    if (!apart.empty() && (sample_space || apart.size() != problem.blocks.size()))
        throw std::invalid_argument("apart must be [m], in feature space");
    PairSums sums;
    try {
        py::gil_scoped_release release;
        sums = sample_space ? pair_sums_sample(problem, interrupt_poll())
                            : pair_sums_feature(problem, interrupt_poll(), apart);
    } catch (const KernelOutOfRange& found) {
        return py::make_tuple(py::none(), py::none(), py::none(),
                              py::make_tuple(found.block, found.product, found.squared_distance, found.value));
    }
    const auto left = static_cast<py::ssize_t>(problem.left), right = static_cast<py::ssize_t>(problem.right());
    const auto m = static_cast<py::ssize_t>(problem.m());
    return py::make_tuple(to_array(std::move(sums.values), {left, right}), to_array(std::move(sums.self), {m}),
                          to_array(std::move(sums.raw), {m}), py::none());
}

}  // namespace

void bind_hsic(py::module_& m) {
    using namespace py::literals;
    py::class_<BoundBlock, std::shared_ptr<BoundBlock>>(m, "Block")
        .def(py::init(&make_block), py::kw_only(), "x"_a, "dtype"_a, "mapped"_a, "shift"_a, "row_scale"_a, "scale"_a,
             "kernel"_a, "length"_a, "coef0"_a, "degree"_a, "function"_a = 0, "owner"_a = py::none());
    m.def("pair_sums", &pair_sums, py::kw_only(), "rows"_a, "columns"_a, "debiased"_a, "sample_space"_a,
          "double_products"_a, "tile"_a, "threads"_a, "shared"_a, "apart"_a = std::vector<bool>());
    m.def(
        "row_norms",
        [](const std::shared_ptr<BoundBlock>& block, int threads) {
            check_threads(threads);
            const BlockView view = checked_view(block);
            std::vector<double> norms;
            {
                py::gil_scoped_release release;
                norms = row_norms(view, threads, interrupt_poll());
            }
            return to_array(std::move(norms), {static_cast<py::ssize_t>(view.x.rows)});
        },
        "block"_a, "threads"_a);
    m.def(
        "distance_median",
        [](const std::shared_ptr<BoundBlock>& block, int threads, std::int64_t room) {
            check_threads(threads);
            const BlockView view = checked_view(block);
            py::gil_scoped_release release;
            return distance_median(view, threads, room, interrupt_poll());
        },
        "block"_a, "threads"_a, "room"_a);
}

}  // namespace simkit
