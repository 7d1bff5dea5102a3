#include <pybind11/stl.h>

#include <stdexcept>

#include "bind/arrays.hpp"
#include "ops/columns.hpp"

namespace simkit {

void bind_columns(py::module_& m) {
    using namespace py::literals;
    m.def(
        "column_stats",
        [](const py::array& x, const std::string& dtype, bool mapped, const std::optional<DoubleArray>& row_scale,
           int threads) {
            check_threads(threads);
            const MatrixView view = matrix_view(x, dtype, mapped);
            if (row_scale && (row_scale->ndim() != 1 || row_scale->shape(0) != view.rows))
                throw std::invalid_argument("row_scale must be [n]");
            const double* scale = row_scale ? row_scale->data() : nullptr;
            ColumnStats stats;
            {
                py::gil_scoped_release release;
                stats = column_stats(view, scale, threads, interrupt_poll());
            }
            const auto p = static_cast<py::ssize_t>(view.cols);
            return py::make_tuple(to_array(std::move(stats.mean), {p}), to_array(std::move(stats.sum_sq_dev), {p}),
                                  stats.max_abs, stats.max_dev, stats.nonfinite, stats.first_row, stats.first_col);
        },
        py::kw_only(), "x"_a, "dtype"_a, "mapped"_a, "row_scale"_a, "threads"_a);
    m.def(
        "largest_entries",
        [](const std::vector<std::pair<py::array, std::string>>& matrices, int threads) {
            check_threads(threads);
            std::vector<MatrixView> views;
            for (const auto& [values, dtype] : matrices) views.push_back(matrix_view(values, dtype, false));
            py::gil_scoped_release release;
            return largest_entries(views, threads, interrupt_poll());
        },
        "matrices"_a, py::kw_only(), "threads"_a);
    m.def(
        "column_products",
        [](const std::shared_ptr<BoundBlock>& block, const DoubleArray& sum_sq_dev, bool exact, int threads) {
            check_threads(threads);
            const BlockView view = checked_view(block);
            const auto p = static_cast<py::ssize_t>(view.x.cols);
            if (sum_sq_dev.ndim() != 1 || sum_sq_dev.shape(0) != p)
                throw std::invalid_argument("sum_sq_dev must be [p]");
            py::array_t<double> g({p, p});
            double* out = g.mutable_data();
            const double* squares = sum_sq_dev.data();
            {
                py::gil_scoped_release release;
                column_products(view, squares, exact, threads, interrupt_poll(), out);
            }
            return g;
        },
        "block"_a, "sum_sq_dev"_a, py::kw_only(), "exact"_a, "threads"_a);
}

}  // namespace simkit
