#include <pybind11/stl.h>

#include <stdexcept>

#include "bind/cuda_arrays.hpp"
#include "ops/adjacency.hpp"
#include "ops/cover.hpp"

namespace simkit {
namespace bound {
namespace {

// Packed graphs [count, n, words] on a device; what formed them there is done.
struct DeviceBits {
    std::shared_ptr<std::uint64_t> owner;
    const std::uint64_t* bits;
    std::int64_t count, n;
    int device;

    std::int64_t words() const { return words_of(n); }
    Place place() const { return {device, cuda::own_stream(device), {}}; }
};
using Bits = std::shared_ptr<DeviceBits>;

const DeviceBits& checked(const Bits& bits) {
    if (!bits) throw std::invalid_argument("the bits are None");
    return *bits;
}

IndexArray indices(const std::vector<std::int64_t>& values) {
    return IndexArray(static_cast<py::ssize_t>(values.size()), values.data());
}

Bits copied(const BitArray& bits, int device) {
    check_graphs(bits);
    const auto* from = reinterpret_cast<const std::byte*>(bits.data());
    const auto bytes = static_cast<std::size_t>(bits.nbytes());
    cuda::DeviceMemory memory;
    {
        py::gil_scoped_release release;
        memory = cuda::device_copy({device, cuda::own_stream(device), {}}, from, bytes);
    }
    const std::shared_ptr<std::uint64_t> owner(memory, reinterpret_cast<std::uint64_t*>(memory.get()));
    return std::make_shared<DeviceBits>(DeviceBits{owner, owner.get(), bits.shape(0), bits.shape(1), device});
}

Bits graph(const DeviceBits& of, std::int64_t at) {
    if (at < 0 || at >= of.count)
        throw std::invalid_argument("there is no graph " + std::to_string(at) + " of " + std::to_string(of.count));
    return std::make_shared<DeviceBits>(DeviceBits{of.owner, of.bits + at * of.n * of.words(), 1, of.n, of.device});
}

BitArray fetch(const DeviceBits& of) {
    BitArray out({of.count, of.n, of.words()});
    auto* to = reinterpret_cast<std::byte*>(out.mutable_data());
    const auto bytes = static_cast<std::size_t>(out.nbytes());
    {
        py::gil_scoped_release release;
        cuda::host_copy(of.place(), reinterpret_cast<const std::byte*>(of.bits), to, bytes);
    }
    return out;
}

py::tuple adjacency(const std::shared_ptr<DeviceArray>& x, const std::vector<double>& squared) {
    if (!x) throw std::invalid_argument("there is no array");
    if (squared.empty()) throw std::invalid_argument("there are no thresholds");
    cuda::DeviceGraphs graphs;
    {
        py::gil_scoped_release release;
        graphs = cuda::adjacency(place_of({x.get()}), x->view, squared);
    }
    const auto count = static_cast<std::int64_t>(squared.size());
    const Bits bits =
        std::make_shared<DeviceBits>(DeviceBits{graphs.bits, graphs.bits.get(), count, x->view.rows, x->device});
    const Adjacency& found = graphs.found;
    return py::make_tuple(found.finite, found.nearest, found.farthest, indices(found.zeros), bits);
}

py::tuple components(const Bits& bits) {
    const DeviceBits& of = checked(bits);
    IndexArray labels({of.count, of.n}), edges(of.count);
    auto *label = labels.mutable_data(), *edge = edges.mutable_data();
    {
        py::gil_scoped_release release;
        cuda::components(of.place(), of.bits, of.count, of.n, label, edge);
    }
    return py::make_tuple(labels, edges);
}

py::list cover(const Bits& bits) {
    const DeviceBits& of = checked(bits);
    std::vector<Cover> covers;
    {
        py::gil_scoped_release release;
        covers = cuda::covers(of.place(), of.bits, of.count, of.n);
    }
    py::list out;
    for (const Cover& found : covers)
        out.append(py::make_tuple(indices(found.centres), indices(found.packing), found.dual));
    return out;
}

}  // namespace
}  // namespace bound

void bind_cuda_graphs(py::module_& m) {
    using namespace py::literals;
    using bound::DeviceBits;
    py::class_<DeviceBits, bound::Bits>(m, "Bits")
        .def_static("copied", &bound::copied, py::kw_only(), "bits"_a, "device"_a)
        .def_property_readonly("shape", [](const DeviceBits& of) { return py::make_tuple(of.count, of.n, of.words()); })
        .def_readonly("device", &DeviceBits::device)
        .def("graph", &bound::graph, "at"_a)
        .def("fetch", &bound::fetch);
    m.def("adjacency", &bound::adjacency, py::kw_only(), "x"_a, "squared"_a);
    m.def("components", &bound::components, "bits"_a);
    m.def("cover", &bound::cover, "bits"_a);
}

}  // namespace simkit
