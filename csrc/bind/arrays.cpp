#include "bind/arrays.hpp"

#include <stdexcept>

#include "ops/adjacency.hpp"

namespace simkit {

Dtype dtype_of(const std::string& name) {
    if (name == "float64") return Dtype::f64;
    if (name == "float32") return Dtype::f32;
    if (name == "float16") return Dtype::f16;
    if (name == "bfloat16") return Dtype::bf16;
    throw std::invalid_argument("no kernel reads dtype " + name);
}

Kernel kernel_of(const std::string& name) {
    if (name == "linear") return Kernel::linear;
    if (name == "rbf") return Kernel::rbf;
    if (name == "laplacian") return Kernel::laplacian;
    if (name == "polynomial") return Kernel::polynomial;
    if (name == "custom") return Kernel::custom;
    throw std::invalid_argument("no kernel is called " + name);
}

MatrixView matrix_view(const py::array& x, const std::string& dtype, bool mapped) {
    if (x.ndim() != 2 || x.shape(0) < 1 || x.shape(1) < 1)
        throw std::invalid_argument("a non-empty matrix [n, p] is needed");
    const Dtype type = dtype_of(dtype);
    if (x.itemsize() != item_size(type)) throw std::invalid_argument("the array's items are not " + dtype);
    return {static_cast<const std::byte*>(x.data()), x.shape(0), x.shape(1), x.strides(0), x.strides(1), type, mapped};
}

BlockView checked_view(const std::shared_ptr<BoundBlock>& block) {
    if (!block) throw std::invalid_argument("a block is None");
    return block->view;
}

template <class T>
T* writable(const py::array& array, std::vector<std::int64_t> shape, const char* what) {
    bool same = array.ndim() == static_cast<py::ssize_t>(shape.size()) && array.writeable() &&
                py::isinstance<py::array_t<T>>(array) && (array.flags() & py::array::c_style);
    for (std::size_t k = 0; same && k < shape.size(); ++k) same = array.shape(k) == shape[k];
    if (!same) throw std::invalid_argument(std::string(what) + " has the wrong shape, type or layout");
    return static_cast<T*>(const_cast<void*>(array.data()));
}
template float* writable<float>(const py::array&, std::vector<std::int64_t>, const char*);
template double* writable<double>(const py::array&, std::vector<std::int64_t>, const char*);
template std::uint64_t* writable<std::uint64_t>(const py::array&, std::vector<std::int64_t>, const char*);

py::array_t<double> to_array(std::vector<double>&& values, std::vector<py::ssize_t> shape) {
    auto* owner = new std::vector<double>(std::move(values));
    py::capsule free(owner, [](void* p) { delete static_cast<std::vector<double>*>(p); });
    return py::array_t<double>(std::move(shape), owner->data(), free);
}

void check_graphs(const BitArray& bits) {
    if (bits.ndim() != 3 || bits.shape(0) < 1 || bits.shape(1) < 1 || bits.shape(2) != words_of(bits.shape(1)))
        throw std::invalid_argument("bits must be non-empty [graphs, n, words]");
    const std::int64_t n = bits.shape(1), words = bits.shape(2);
    const std::uint64_t beyond = n % 64 ? ~std::uint64_t{0} << n % 64 : 0;
    for (std::int64_t row = 0; beyond && row < bits.shape(0) * n; ++row)
        if (bits.data()[(row + 1) * words - 1] & beyond)
            throw std::invalid_argument("bits beyond the last vertex are set");
}

void check_threads(int threads) {
    if (threads < 1) throw std::invalid_argument("threads must be positive, not " + std::to_string(threads));
}

Poll interrupt_poll() {
    return [] {
        py::gil_scoped_acquire gil;
        if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    };
}

}  // namespace simkit
