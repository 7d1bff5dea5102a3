// Matrices that go to the device in strips, on the emulator, as C functions for ctypes: the drivers that the device
// runs, on machines whose two queues run at different paces, with as much memory as the test says.
#include "cuda/strip_columns.hpp"
#include "cuda/strip_distances.hpp"
#include "cuda/strip_pairs.hpp"
#include "emulated_columns.hpp"

using namespace simkit;
using namespace emulated;
using emulator::Machine;

extern "C" {

struct Terms {
    int order, pace;       // of emulator::Order and Pace
    Index memory, pauses;  // bytes that a machine has; after so many pauses the user stops it (-1: never)
    Strips strips;
    Index machines, most, copied;  // out: how many were made, and bytes, of the last one
};

}  // extern "C"

namespace {

struct Stopped : std::runtime_error {
    using std::runtime_error::runtime_error;
};

template <class Compute>
int on_machine(Terms& terms, const Compute& compute) {
    return guarded([&] {
        terms.machines = 0;
        const auto make = [&] {
            ++terms.machines;
            return Machine(static_cast<emulator::Order>(terms.order), static_cast<emulator::Pace>(terms.pace),
                           terms.memory);
        };
        cuda::with_memory(make, terms.strips, [&](Machine& machine, const Strips& strips) {
            Index left = terms.pauses;
            machine.poll = [&left] {
                if (left-- == 0) throw Stopped("stopped");
            };
            compute(machine, strips);
            terms.most = machine.most;
            terms.copied = machine.copied;
            return 0;
        });
    });
}

}  // namespace

extern "C" {

int column_stats(const Matrix* x, Terms* terms, double* mean, double* squares, double* most, Index* nonfinite) {
    return on_machine(*terms, [&](Machine& machine, const Strips& strips) {
        const ColumnStats stats = cuda::column_stats(machine, view_of(*x), x->row_scale, strips);
        std::copy(stats.mean.begin(), stats.mean.end(), mean);
        std::copy(stats.sum_sq_dev.begin(), stats.sum_sq_dev.end(), squares);
        most[0] = stats.max_abs;
        most[1] = stats.max_dev;
        nonfinite[0] = stats.nonfinite;
        nonfinite[1] = stats.first_row;
        nonfinite[2] = stats.first_col;
    });
}

int row_norms(const Matrix* x, Terms* terms, double* norms) {
    return on_machine(*terms, [&](Machine& machine, const Strips& strips) {
        const auto found = cuda::row_norms(machine, block_of(*x), strips);
        std::copy(found.begin(), found.end(), norms);
    });
}

int distance_median(const Matrix* x, Terms* terms, double* median) {
    return on_machine(*terms, [&](Machine& machine, const Strips& strips) {
        *median = cuda::distance_median(machine, block_of(*x), strips);
    });
}

int column_products(const Matrix* x, const double* squares, int exact, int tensor, int squared, Terms* terms,
                    double* g) {
    cuda::DeviceMemory held;
    const auto of = columns_of(*x, squares, exact, tensor, squared);
    const int status = on_machine(
        *terms, [&](Machine& machine, const Strips& strips) { held = cuda::column_products(machine, of, strips); });
    if (status == nothing) copy_out(held, x->cols * x->cols, g);
    return status;
}

int pair_sums(const Matrix* x, Index count, Index left, int debiased, int sample, int wide, int tensor, Terms* terms,
              double* values, double* self, double* raw) {
    return on_machine(*terms, [&](Machine& machine, const Strips& strips) {
        PairProblem problem{{}, left, debiased != 0, wide != 0, 0, 1, false, tensor != 0};
        for (Index b = 0; b < count; ++b) problem.blocks.push_back(block_of(x[b]));
        const PairSums sums = sample ? cuda::pair_sums_sample(machine, problem, strips)
                                     : cuda::pair_sums_feature(machine, problem, strips);
        std::copy(sums.values.begin(), sums.values.end(), values);
        std::copy(sums.self.begin(), sums.self.end(), self);
        std::copy(sums.raw.begin(), sums.raw.end(), raw);
    });
}

}  // extern "C"
