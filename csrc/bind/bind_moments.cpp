#include <pybind11/stl.h>

#include <stdexcept>
#include <type_traits>

#include "bind/arrays.hpp"
#include "ops/moments.hpp"

namespace simkit {
namespace {

std::vector<std::int64_t> checked_offsets(const py::handle& given) {
    auto offsets = given.cast<std::vector<std::int64_t>>();
    if (offsets.size() < 2 || offsets.front() != 0) throw std::invalid_argument("offsets must start at 0");
    for (std::size_t l = 0; l + 1 < offsets.size(); ++l)
        if (offsets[l + 1] <= offsets[l]) throw std::invalid_argument("offsets must increase");
    return offsets;
}

template <class T>
MomentSide<T> side_of(std::int64_t rows, const py::dict& side) {
    MomentSide<T> out;
    out.offsets = checked_offsets(side["offsets"]);
    const std::int64_t p = out.p = out.offsets.back(), layers = out.layers();
    auto array = [&](const char* key, std::vector<std::int64_t> shape) {
        return writable(side[key].cast<py::array>(), std::move(shape), key);
    };
    out.z = writable<T>(side["z"].cast<py::array>(), {rows, p}, "z");
    out.a = array("a", {rows, layers});
    out.sum_z = array("sum_z", {p});
    out.sum_az = array("sum_az", {p});
    out.sum_a = array("sum_a", {layers});
    out.sum_aa = array("sum_aa", {layers});
    out.rounded = std::is_same_v<T, float> ? array("rounded", {p}) : nullptr;
    out.signs = side["signs"].is_none() ? nullptr : array("signs", {kProbes, p});
    out.probes = side["probes"].is_none() ? nullptr : array("probes", {kProbes, p});
    for (const py::handle& gram : side["gram"].cast<py::list>()) {
        const std::int64_t l = static_cast<std::int64_t>(out.gram.size());
        if (l == layers) throw std::invalid_argument("gram has more entries than there are layers");
        const std::int64_t width = out.offsets[l + 1] - out.offsets[l];
        out.gram.push_back(writable(gram.cast<py::array>(), {width, width}, "gram"));
    }
    return out;
}

// One side: {"layers": [(values, dtype)], "shift", "scale", "z"}; its a is made here.
template <class T>
MomentUnits<T> units_of(const py::dict& side, std::vector<DoubleArray>& norms, std::vector<py::array>& kept) {
    MomentUnits<T> out;
    std::int64_t p = 0;
    for (const py::handle& layer : side["layers"].cast<py::list>()) {
        const auto [values, dtype] = layer.cast<std::pair<py::array, std::string>>();
        out.layers.push_back(matrix_view(values, dtype, false));
        kept.push_back(values);
        p += out.layers.back().cols;
        if (out.layers.back().rows != out.layers.front().rows)
            throw std::invalid_argument("layers have different numbers of rows");
    }
    if (out.layers.empty()) throw std::invalid_argument("there are no layers");
    const std::int64_t rows = out.layers.front().rows;
    const double** vectors[] = {&out.shift, &out.scale};
    const char* names[] = {"shift", "scale"};
    for (int k = 0; k < 2; ++k) {
        const auto vector = side[names[k]].cast<DoubleArray>();
        if (vector.ndim() != 1 || vector.shape(0) != p) throw std::invalid_argument("shift and scale must be [p]");
        *vectors[k] = vector.data();
        kept.push_back(vector);
    }
    out.z = writable<T>(side["z"].cast<py::array>(), {rows, p}, "z");
    norms.emplace_back(std::vector<py::ssize_t>{rows, static_cast<py::ssize_t>(out.layers.size())});
    out.a = norms.back().mutable_data();
    return out;
}

bool in_float32(const py::dict& side) { return py::isinstance<py::array_t<float>>(side["z"]); }

template <class T>
std::vector<DoubleArray> typed_rows(const std::vector<py::dict>& sides, int threads) {
    std::vector<DoubleArray> norms;
    std::vector<py::array> kept;
    std::vector<MomentUnits<T>> units;
    for (const py::dict& side : sides) units.push_back(units_of<T>(side, norms, kept));
    {
        py::gil_scoped_release release;
        moments_rows(units, threads, interrupt_poll());
    }
    return norms;
}

std::vector<DoubleArray> rows_of(const std::vector<py::dict>& sides, int threads) {
    check_threads(threads);
    const bool narrow = !sides.empty() && in_float32(sides.front());
    return narrow ? typed_rows<float>(sides, threads) : typed_rows<double>(sides, threads);
}

template <class T>
void typed_add(std::int64_t rows, const py::dict& left, const std::optional<py::dict>& right, const py::dict& sums,
               int threads) {
    const MomentSide<T> x = side_of<T>(rows, left);
    std::optional<MomentSide<T>> y;
    if (right) y = side_of<T>(rows, *right);
    const MomentSide<T>& other = y ? *y : x;
    for (const MomentSide<T>* side : {&x, &other})
        if (y && static_cast<std::int64_t>(side->gram.size()) != side->layers())
            throw std::invalid_argument("gram needs one entry per layer");
    auto array = [&](const char* key, std::vector<std::int64_t> shape) {
        return writable(sums[key].cast<py::array>(), std::move(shape), key);
    };
    const MomentCross cross{array("cross", {x.p, other.p}), array("sum_ab", {x.layers(), other.layers()}),
                            array("sum_ay", {x.layers(), other.p}), y ? array("sum_bx", {y->layers(), x.p}) : nullptr,
                            x.signs ? array("probes", {other.layers(), kProbes, x.p}) : nullptr};
    for (const MomentSide<T>* side : {&x, &other})
        if (x.signs && (!side->signs || (y && !side->probes)))
            throw std::invalid_argument("both sides need signs and probes, or neither");
    py::gil_scoped_release release;
    moments_add(rows, x, y ? &*y : nullptr, cross, threads, interrupt_poll());
}

void add(std::int64_t rows, const py::dict& left, const std::optional<py::dict>& right, const py::dict& sums,
         int threads) {
    check_threads(threads);
    if (rows < 1) throw std::invalid_argument("there are no rows");
    in_float32(left) ? typed_add<float>(rows, left, right, sums, threads)
                     : typed_add<double>(rows, left, right, sums, threads);
}

}  // namespace

void bind_moments(py::module_& m) {
    using namespace py::literals;
    m.def("moments_rows", &rows_of, "sides"_a, py::kw_only(), "threads"_a);
    m.def("moments_add", &add, "rows"_a, py::kw_only(), "left"_a, "right"_a, "sums"_a, "threads"_a);
}

}  // namespace simkit
