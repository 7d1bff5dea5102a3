#include <stdexcept>

#include "bind/arrays.hpp"
#include "ops/greedy.hpp"

namespace simkit {

void bind_greedy(py::module_& m) {
    using namespace py::literals;
    m.def(
        "eliminate",
        [](const DoubleArray& a, bool greedy, std::int64_t count, double min_cka) {
            if (a.ndim() != 2 || a.shape(0) != a.shape(1) || a.shape(0) < 1)
                throw std::invalid_argument("a must be a non-empty square [u, u]");
            if (count < 0 || count > a.shape(0)) throw std::invalid_argument("count must be 0 to u");
            const double* data = a.data();
            const std::int64_t u = a.shape(0);
            Elimination out;
            {
                py::gil_scoped_release release;
                out = eliminate(data, u, greedy, count, min_cka);
            }
            const auto removed = static_cast<py::ssize_t>(out.order.size());
            return py::make_tuple(py::array_t<std::int64_t>(removed, out.order.data()),
                                  to_array(std::move(out.cka), {removed}), out.smallest_gap);
        },
        "a"_a, py::kw_only(), "greedy"_a, "count"_a, "min_cka"_a);
}

}  // namespace simkit
