// All pairs and columns on the emulator, as C functions for ctypes: the drivers that the device runs.
#include "cuda/architectures.hpp"
#include "cuda/columns.hpp"
#include "cuda/distances.hpp"
#include "cuda/feature.hpp"
#include "cuda/pair_sums.hpp"
#include "emulated.hpp"

using namespace simkit;
using namespace emulated;
using emulator::Machine;

extern "C" {

int column_stats(const Matrix* x, int order, double* mean, double* squares, double* most, Index* nonfinite) {
    return guarded([&] {
        const ColumnStats stats =
            on_machine(order, [&](Machine& machine) { return cuda::column_stats(machine, view_of(*x), x->row_scale); });
        std::copy(stats.mean.begin(), stats.mean.end(), mean);
        std::copy(stats.sum_sq_dev.begin(), stats.sum_sq_dev.end(), squares);
        most[0] = stats.max_abs;
        most[1] = stats.max_dev;
        nonfinite[0] = stats.nonfinite;
        nonfinite[1] = stats.first_row;
        nonfinite[2] = stats.first_col;
    });
}

int row_norms(const Matrix* x, int order, double* norms) {
    return guarded([&] {
        const auto found = on_machine(order, [&](Machine& machine) {
            return cuda::row_norms(machine, cuda::samples_of({block_of(*x), nullptr, false, x->shift}, false));
        });
        std::copy(found.begin(), found.end(), norms);
    });
}

int distance_median(const Matrix* x, Index most, int order, double* median) {
    return guarded([&] {
        const cuda::Operand rows = cuda::samples_of({block_of(*x), nullptr, false, x->shift}, false);
        *median = on_machine(order, cuda::kDistancesRoom, [&](Machine& machine, Index room) {
            return cuda::distance_median(machine, rows, most, room);
        });
    });
}

int pair_sums(const Matrix* x, Index count, Index left, int debiased, int sample, int wide, int tensor, int halves,
              Index bytes, const std::uint8_t* apart, int order, double* values, double* self, double* raw) {
    return guarded([&] {
        std::vector<std::vector<float>> shifts;
        cuda::PlacedProblem problem{{}, left, debiased != 0, bytes, tensor != 0, halves != 0, {}};
        if (apart) problem.apart.assign(apart, apart + count);
        for (Index b = 0; b < count; ++b) {
            shifts.emplace_back(x[b].shift, x[b].shift + x[b].cols);
            problem.blocks.push_back({block_of(x[b]), shifts.back().data(), narrow(x[b]), x[b].shift});
        }
        const PairSums sums = on_machine(order, bytes, [&](Machine& machine, Index room) {
            problem.bytes = room;
            return sample ? cuda::pair_sums_sample(machine, problem, wide != 0)
                          : cuda::pair_sums_feature(machine, problem);
        });
        std::copy(sums.values.begin(), sums.values.end(), values);
        std::copy(sums.self.begin(), sums.self.end(), self);
        std::copy(sums.raw.begin(), sums.raw.end(), raw);
    });
}

int has_code_for(const char* architectures, int capability) { return cuda::has_code_for(architectures, capability); }

}  // extern "C"
