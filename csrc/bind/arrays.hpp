// The one validator: NumPy arrays from Python -> views. Whatever passes here is safe to hand to an op.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/matrix_view.hpp"
#include "core/tiles.hpp"

namespace simkit {

namespace py = pybind11;

using DoubleArray = py::array_t<double, py::array::c_style>;
using IndexArray = py::array_t<std::int64_t, py::array::c_style>;
using BitArray = py::array_t<std::uint64_t, py::array::c_style>;

// A representation and what its kernel needs; keeps its arrays alive.
struct BoundBlock {
    py::array x;
    DoubleArray shift;
    std::optional<DoubleArray> row_scale;
    py::object owner;  // of a custom kernel's machine code
    BlockView view;
};

Dtype dtype_of(const std::string& name);
Kernel kernel_of(const std::string& name);
MatrixView matrix_view(const py::array& x, const std::string& dtype, bool mapped);
BlockView checked_view(const std::shared_ptr<BoundBlock>& block);

// C-contiguous array of T that may be written to; the shape is checked.
template <class T = double>
T* writable(const py::array& array, std::vector<std::int64_t> shape, const char* what);

// Moves a vector's memory into a NumPy array of the given shape, without a copy.
py::array_t<double> to_array(std::vector<double>&& values, std::vector<py::ssize_t> shape);

void check_threads(int threads);

// bits: non-empty graphs [graphs, n, words] of ops/cover.hpp. Bits beyond n would be read as vertices.
void check_graphs(const BitArray& bits);

// Raises a pending KeyboardInterrupt; called with the GIL released.
Poll interrupt_poll();

void bind_adjacency(py::module_& m);
void bind_candidates(py::module_& m);
void bind_cover(py::module_& m);
void bind_hsic(py::module_& m);
void bind_columns(py::module_& m);
void bind_greedy(py::module_& m);
void bind_moments(py::module_& m);

}  // namespace simkit
