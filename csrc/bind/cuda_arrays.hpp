// The one validator of what comes to the device ops: addresses, shapes, devices and streams -> views.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bind/arrays.hpp"
#include "core/place.hpp"
#include "ops/columns.hpp"
#include "ops/hsic.hpp"

namespace simkit {

// A matrix [n, p] on a device. The values are ready on its stream; `owner` keeps a copy made here alive (the caller
// keeps its own arrays alive for as long as an op takes). on_host: it lies there, and goes to the device in strips.
struct DeviceArray {
    MatrixView view;
    int device;
    void* stream;
    cuda::DeviceMemory owner;
    bool on_host = false;
};

// A matrix on a device and, on the host, what its kernel needs.
struct DeviceBlock {
    std::shared_ptr<DeviceArray> x;
    DoubleArray shift;
    std::optional<DoubleArray> row_scale;
    BlockView view;
};

// Where an op on these arrays runs: on the first one's stream, after the others'. All of them lie on the host, or none.
Place place_of(const std::vector<const DeviceArray*>& arrays, bool on_host = false);

// A matrix [rows, cols] that an op left on the device of the place, row by row.
std::shared_ptr<DeviceArray> held(const Place& place, const cuda::DeviceMemory& owner, std::int64_t rows,
                                  std::int64_t cols, Dtype dtype);

// The sums of squared deviations of a block's columns [p].
const double* checked_squares(const std::shared_ptr<DeviceBlock>& block, const DoubleArray& sum_sq_dev);

// All pairs of blocks, and the arrays that they read. Non-linear kernels need float64 products in sample space.
struct DevicePairs {
    PairProblem problem;
    std::vector<const DeviceArray*> arrays;
};
DevicePairs pairs_of(const std::vector<std::shared_ptr<DeviceBlock>>& rows,
                     const std::vector<std::shared_ptr<DeviceBlock>>& columns, bool debiased, bool sample_space,
                     bool double_products, bool tensor);

// What the module returns.
py::tuple to_tuple(PairSums&& sums, const PairProblem& problem);
py::tuple to_tuple(ColumnStats&& stats);

void bind_cuda_arrays(py::module_& m);
void bind_cuda_candidates(py::module_& m);
void bind_cuda_graphs(py::module_& m);
void bind_cuda_moments(py::module_& m);
void bind_cuda_greedy(py::module_& m);
void bind_cuda_ops(py::module_& m);
void bind_cuda_partners(py::module_& m);
void bind_cuda_strips(py::module_& m);

}  // namespace simkit
