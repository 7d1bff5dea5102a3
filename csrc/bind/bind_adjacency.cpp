#include <pybind11/stl.h>

#include <stdexcept>

#include "bind/arrays.hpp"
#include "ops/adjacency.hpp"

namespace simkit {

void bind_adjacency(py::module_& m) {
    using namespace py::literals;
    m.def(
        "adjacency",
        [](const py::array& x, const std::string& dtype, bool mapped, const std::vector<double>& squared,
           const py::array& bits, std::int64_t tile, int threads) {
            check_threads(threads);
            if (tile < 64 || tile > 4096 || tile % 64)
                throw std::invalid_argument("tile must be a multiple of 64 up to 4096, not " + std::to_string(tile));
            const MatrixView view = matrix_view(x, dtype, mapped);
            const auto thresholds = static_cast<std::int64_t>(squared.size());
            if (thresholds < 1) throw std::invalid_argument("there are no thresholds");
            auto* out = writable<std::uint64_t>(bits, {thresholds, view.rows, words_of(view.rows)}, "bits");
            Adjacency found;
            {
                py::gil_scoped_release release;
                found = adjacency(view, squared, tile, threads, interrupt_poll(), out);
            }
            return py::make_tuple(found.finite, found.nearest, found.farthest,
                                  IndexArray(static_cast<py::ssize_t>(found.zeros.size()), found.zeros.data()));
        },
        py::kw_only(), "x"_a, "dtype"_a, "mapped"_a, "squared"_a, "bits"_a, "tile"_a, "threads"_a);
}

}  // namespace simkit
