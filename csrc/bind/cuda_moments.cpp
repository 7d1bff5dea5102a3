#include <pybind11/stl.h>

#include <stdexcept>

#include "bind/cuda_arrays.hpp"
#include "ops/columns.hpp"
#include "ops/moments.hpp"

namespace simkit {
namespace bound {
namespace {

using Array = std::shared_ptr<DeviceArray>;
using Moments = cuda::DeviceMoments;

struct Batch {
    std::vector<MatrixView> layers;
    Place place;
};

Batch batch_of(const std::vector<Array>& layers) {
    std::vector<const DeviceArray*> arrays;
    Batch batch;
    for (const Array& layer : layers) {
        if (!layer) throw std::invalid_argument("a layer is None");
        arrays.push_back(layer.get());
        batch.layers.push_back(layer->view);
    }
    if (arrays.empty()) throw std::invalid_argument("there are no layers");
    batch.place = place_of(arrays);
    return batch;
}

// The layers of a stream, rows [first, first + count) of which are read.
Batch batch_of(const Moments& moments, const std::vector<Array>& layers, std::int64_t first, std::int64_t count) {
    Batch batch = batch_of(layers);
    if (batch.place.device != moments.device()) throw std::invalid_argument("the batch lies on another device");
    std::int64_t columns = 0;
    for (const MatrixView& layer : batch.layers) {
        columns += layer.cols;
        if (first < 0 || count < 0 || first + count > layer.rows)
            throw std::invalid_argument("the batch does not have these rows");
    }
    if (static_cast<std::int64_t>(batch.layers.size()) != moments.layers() || columns != moments.columns())
        throw std::invalid_argument("the batch has other layers than the moments");
    return batch;
}

Place place_on(const Moments& moments, std::uintptr_t stream) {
    return {moments.device(), reinterpret_cast<void*>(stream == 1 ? 0 : stream), {}};
}

Place own_place(const Moments& moments) { return {moments.device(), cuda::own_stream(moments.device()), {}}; }

const double* numbers_of(const DoubleArray& array, std::int64_t count, const char* what) {
    if (array.size() != count) throw std::invalid_argument(std::string(what) + " has the wrong size");
    return array.data();
}

void check_rows(std::int64_t rows, std::int64_t room) {
    if (rows < 1 || rows > room) throw std::invalid_argument("there is no room for so many rows");
}

std::unique_ptr<Moments> make(int device, const std::vector<std::int64_t>& left, const std::vector<std::int64_t>& right,
                              std::int64_t blocks, bool tensor) {
    for (const auto* widths : {&left, &right})
        for (const std::int64_t width : *widths)
            if (width < 1) throw std::invalid_argument("a layer has no columns");
    if (left.empty() || blocks < 1) throw std::invalid_argument("there are no layers, or no blocks");
    py::gil_scoped_release release;
    return std::make_unique<Moments>(device, left, right, blocks, tensor);
}

void set(Moments& moments, const DoubleArray& shift, const DoubleArray& scale, const DoubleArray& numbers) {
    const double* first = numbers_of(shift, moments.columns(), "shift");
    const double* second = numbers_of(scale, moments.columns(), "scale");
    const double* third = numbers_of(numbers, moments.count(), "numbers");
    py::gil_scoped_release release;
    moments.set(own_place(moments), first, second, third);
}

py::array_t<double> numbers(Moments& moments) {
    py::array_t<double> out(moments.count());
    double* data = out.mutable_data();
    py::gil_scoped_release release;
    moments.numbers(own_place(moments), data);
    return out;
}

void keep(Moments& moments, const std::vector<Array>& layers, std::int64_t first, std::int64_t count, std::int64_t at) {
    const Batch batch = batch_of(moments, layers, first, count);
    check_rows(count, cuda::kMomentBlock - at);
    if (at < 0) throw std::invalid_argument("rows are kept from row 0 on");
    py::gil_scoped_release release;
    moments.keep(batch.place, batch.layers, first, count, at);
}

void set_stage(Moments& moments, const DoubleArray& rows) {
    if (rows.ndim() != 2 || rows.shape(1) != moments.columns()) throw std::invalid_argument("rows must be [count, P]");
    check_rows(rows.shape(0), cuda::kMomentBlock);
    const double* data = rows.data();
    const std::int64_t count = rows.shape(0);
    py::gil_scoped_release release;
    moments.set_stage(own_place(moments), data, count);
}

py::array_t<double> stage(Moments& moments, std::int64_t count) {
    check_rows(count, cuda::kMomentBlock);
    py::array_t<double> out({count, moments.columns()});
    double* data = out.mutable_data();
    py::gil_scoped_release release;
    moments.stage(own_place(moments), data, count);
    return out;
}

py::array_t<double> rows(Moments& moments, const std::vector<Array>& layers, std::int64_t first, std::int64_t rows,
                         bool staged) {
    check_rows(rows, moments.room());
    const Batch batch = batch_of(moments, layers, first, rows - (staged ? cuda::kMomentBlock : 0));
    py::array_t<double> norms({rows, std::int64_t{2}, moments.layers()});
    double* data = norms.mutable_data();
    py::gil_scoped_release release;
    moments.rows(batch.place, batch.layers, first, rows, staged, data);
    return norms;
}

py::array_t<double> take(Moments& moments, const IndexArray& rows, std::uintptr_t stream) {
    if (rows.ndim() != 1 || rows.shape(0) < 1) throw std::invalid_argument("rows must be [count]");
    const std::vector<std::int64_t> wanted(rows.data(), rows.data() + rows.shape(0));
    for (const std::int64_t row : wanted)
        if (row < 0 || row >= moments.room()) throw std::invalid_argument("there is no such row");
    py::array_t<double> out({rows.shape(0), static_cast<py::ssize_t>(moments.columns())});
    double* data = out.mutable_data();
    py::gil_scoped_release release;
    moments.take(place_on(moments, stream), wanted, data);
    return out;
}

void put(Moments& moments, const DoubleArray& z, const DoubleArray& norms, std::uintptr_t stream) {
    if (z.ndim() != 2 || z.shape(1) != moments.columns()) throw std::invalid_argument("z must be [count, P]");
    const std::int64_t count = z.shape(0);
    check_rows(count, cuda::kMomentBlock);
    const double *first = z.data(), *second = numbers_of(norms, 2 * count * moments.layers(), "norms");
    py::gil_scoped_release release;
    moments.put(place_on(moments, stream), first, second, count);
}

void add(Moments& moments, std::int64_t first, std::int64_t rows, std::uintptr_t stream) {
    const std::int64_t end = moments.room() + cuda::kMomentBlock;
    if (first < 0 || first % cuda::kMomentBlock) throw std::invalid_argument("rows are added block by block");
    check_rows(rows, end - first);
    py::gil_scoped_release release;
    moments.add(place_on(moments, stream), first, rows);
}

std::vector<double> largest_entries(const std::vector<Array>& matrices) {
    const Batch batch = batch_of(matrices);
    py::gil_scoped_release release;
    return cuda::largest_entries(batch.place, batch.layers);
}

}  // namespace
}  // namespace bound

void bind_cuda_moments(py::module_& m) {
    using namespace py::literals;
    m.def("largest_entries", &bound::largest_entries, "matrices"_a);
    py::class_<cuda::DeviceMoments>(m, "Moments")
        .def(py::init(&bound::make), py::kw_only(), "device"_a, "left"_a, "right"_a, "blocks"_a, "tensor"_a)
        .def_property_readonly("count", &cuda::DeviceMoments::count)
        .def("set", &bound::set, "shift"_a, "scale"_a, "numbers"_a)
        .def("numbers", &bound::numbers)
        .def("keep", &bound::keep, "layers"_a, py::kw_only(), "first"_a, "count"_a, "at"_a)
        .def("set_stage", &bound::set_stage, "rows"_a)
        .def("stage", &bound::stage, "count"_a)
        .def("rows", &bound::rows, "layers"_a, py::kw_only(), "first"_a, "rows"_a, "staged"_a)
        .def("take", &bound::take, "rows"_a, py::kw_only(), "stream"_a)
        .def("put", &bound::put, "z"_a, "norms"_a, py::kw_only(), "stream"_a)
        .def("add", &bound::add, "first"_a, "rows"_a, py::kw_only(), "stream"_a);
}

}  // namespace simkit
