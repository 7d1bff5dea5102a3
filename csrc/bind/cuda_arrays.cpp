#include "bind/cuda_arrays.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>

#include "core/device_report.hpp"

namespace simkit {
namespace {

using Pair = std::pair<std::int64_t, std::int64_t>;

std::shared_ptr<DeviceArray> there_already(std::uintptr_t pointer, Pair shape, Pair strides, const std::string& dtype,
                                           int device, std::uintptr_t stream) {
    if (shape.first < 1 || shape.second < 1) throw std::invalid_argument("a non-empty matrix [n, p] is needed");
    const Dtype type = dtype_of(dtype);
    if (pointer % item_size(type) || strides.first % item_size(type) || strides.second % item_size(type))
        throw std::invalid_argument("the array's items are not aligned");
    const auto* data = reinterpret_cast<const std::byte*>(pointer);
    if (stream == 1) stream = 0;  // two names of the legacy default stream
    cuda::check_address(data, device);
    return std::make_shared<DeviceArray>(
        DeviceArray{{data, shape.first, shape.second, strides.first, strides.second, type, false},
                    device,
                    reinterpret_cast<void*>(stream),
                    nullptr});
}

std::shared_ptr<DeviceArray> copied(const py::array& x, const std::string& dtype, int device) {
    MatrixView view = matrix_view(x, dtype, false);
    const std::int64_t item = item_size(view.dtype);
    if (view.col_stride != item || view.row_stride != item * view.cols)
        throw std::invalid_argument("only contiguous rows are copied to a device");
    const Place place{device, cuda::own_stream(device), {}};
    cuda::DeviceMemory owner;
    {
        py::gil_scoped_release release;
        owner = cuda::device_copy(place, view.data, static_cast<std::size_t>(view.rows * view.row_stride));
    }
    view.data = owner.get();
    return std::make_shared<DeviceArray>(DeviceArray{view, device, place.stream, owner});
}

std::shared_ptr<DeviceArray> on_host(const py::array& x, const std::string& dtype, int device) {
    return std::make_shared<DeviceArray>(
        DeviceArray{matrix_view(x, dtype, false), device, cuda::own_stream(device), nullptr, true});
}

std::shared_ptr<DeviceBlock> make_block(const std::shared_ptr<DeviceArray>& x, DoubleArray shift,
                                        std::optional<DoubleArray> row_scale, double scale, const std::string& kernel,
                                        double length, double coef0, int degree) {
    if (!x) throw std::invalid_argument("the block has no array");
    if (shift.ndim() != 1 || shift.shape(0) != x->view.cols) throw std::invalid_argument("shift must be [p]");
    if (row_scale && (row_scale->ndim() != 1 || row_scale->shape(0) != x->view.rows))
        throw std::invalid_argument("row_scale must be [n]");
    const Kernel kind = kernel_of(kernel);
    if (kind == Kernel::custom) throw std::invalid_argument("a device runs no custom kernel");
    if (kind == Kernel::polynomial && degree < 1) throw std::invalid_argument("degree must be positive");
    auto block = std::make_shared<DeviceBlock>();
    block->view = {x->view, shift.data(), row_scale ? row_scale->data() : nullptr, scale, kind, length, coef0,
                   degree,  nullptr};
    block->x = x;
    block->shift = std::move(shift);
    block->row_scale = std::move(row_scale);
    return block;
}

}  // namespace

Place place_of(const std::vector<const DeviceArray*>& arrays, bool on_host) {
    Place place{arrays.front()->device, arrays.front()->stream, {}, interrupt_poll()};
    for (const DeviceArray* array : arrays) {
        if (array->on_host != on_host)
            throw std::invalid_argument(on_host ? "only arrays on the host go in strips" : "an array lies on the host");
        if (array->device != place.device) throw std::invalid_argument("the arrays lie on different devices");
        if (array->stream != place.stream &&
            std::find(place.before.begin(), place.before.end(), array->stream) == place.before.end())
            place.before.push_back(array->stream);
    }
    return place;
}

std::shared_ptr<DeviceArray> held(const Place& place, const cuda::DeviceMemory& owner, std::int64_t rows,
                                  std::int64_t cols, Dtype dtype) {
    const std::int64_t item = item_size(dtype);
    return std::make_shared<DeviceArray>(DeviceArray{{owner.get(), rows, cols, item * cols, item, dtype, false},
                                                     place.device,
                                                     cuda::own_stream(place.device),
                                                     owner});
}

const double* checked_squares(const std::shared_ptr<DeviceBlock>& block, const DoubleArray& sum_sq_dev) {
    if (!block) throw std::invalid_argument("an argument is None");
    if (sum_sq_dev.ndim() != 1 || sum_sq_dev.shape(0) != block->view.x.cols)
        throw std::invalid_argument("sum_sq_dev must be [p]");
    return sum_sq_dev.data();
}

DevicePairs pairs_of(const std::vector<std::shared_ptr<DeviceBlock>>& rows,
                     const std::vector<std::shared_ptr<DeviceBlock>>& columns, bool debiased, bool sample_space,
                     bool double_products, bool tensor) {
    if (rows.empty()) throw std::invalid_argument("there are no blocks");
    DevicePairs pairs{{{}, static_cast<std::int64_t>(rows.size()), debiased, double_products, 0, 1, false, tensor}, {}};
    for (const auto* side : {&rows, &columns})
        for (const auto& block : *side) {
            if (!block) throw std::invalid_argument("an argument is None");
            pairs.problem.blocks.push_back(block->view);
            pairs.arrays.push_back(block->x.get());
            if (block->view.x.rows != pairs.problem.n())
                throw std::invalid_argument("blocks have different numbers of rows");
            if (block->view.kernel != Kernel::linear && !(sample_space && double_products))
                throw std::invalid_argument("non-linear kernels need float64 products in sample space");
        }
    return pairs;
}

py::tuple to_tuple(PairSums&& sums, const PairProblem& problem) {
    const auto left = static_cast<py::ssize_t>(problem.left), right = static_cast<py::ssize_t>(problem.right());
    const auto m = static_cast<py::ssize_t>(problem.m());
    return py::make_tuple(to_array(std::move(sums.values), {left, right}), to_array(std::move(sums.self), {m}),
                          to_array(std::move(sums.raw), {m}));
}

py::tuple to_tuple(ColumnStats&& stats) {
    const auto p = static_cast<py::ssize_t>(stats.mean.size());
    return py::make_tuple(to_array(std::move(stats.mean), {p}), to_array(std::move(stats.sum_sq_dev), {p}),
                          stats.max_abs, stats.max_dev, stats.nonfinite, stats.first_row, stats.first_col);
}

void bind_cuda_arrays(py::module_& m) {
    using namespace py::literals;
    m.def("device_report", [] {
        const DeviceReport report = device_report();
        return py::make_tuple(report.devices, report.reason);
    });
    m.def("current_device", &cuda::current_device);
    m.def("capability", &cuda::capability, "device"_a);
    m.def(
        "memory_info",
        [](int device) {
            const cuda::MemoryInfo info = cuda::memory_info(device);
            return py::make_tuple(info.free, info.total);
        },
        "device"_a);
    py::register_local_exception_translator([](std::exception_ptr error) {
        try {
            if (error) std::rethrow_exception(error);
        } catch (const cuda::OutOfMemory& full) {
            PyErr_SetString(PyExc_MemoryError, full.what());
        }
    });
    py::class_<DeviceArray, std::shared_ptr<DeviceArray>>(m, "Array")
        .def(py::init(&there_already), py::kw_only(), "pointer"_a, "shape"_a, "strides"_a, "dtype"_a, "device"_a,
             "stream"_a)
        .def_property_readonly(
            "pointer", [](const DeviceArray& array) { return reinterpret_cast<std::uintptr_t>(array.view.data); })
        .def_static("copied", &copied, py::kw_only(), "x"_a, "dtype"_a, "device"_a)
        .def_static("on_host", &on_host, py::kw_only(), "x"_a, "dtype"_a, "device"_a);
    py::class_<DeviceBlock, std::shared_ptr<DeviceBlock>>(m, "Block")
        .def(py::init(&make_block), py::kw_only(), "x"_a, "shift"_a, "row_scale"_a, "scale"_a, "kernel"_a, "length"_a,
             "coef0"_a, "degree"_a);
}

}  // namespace simkit
