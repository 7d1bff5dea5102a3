// A layer's features by rows in the units of its kernel, on any machine (cuda/machine.hpp). See ops/candidates.hpp.
#pragma once

#include <algorithm>
#include <vector>

#include "cuda/machine.hpp"
#include "cuda/operand.hpp"
#include "ops/candidates.hpp"

namespace simkit::cuda {

// z [count, n] = ((x(i, columns[r]) - shift[r]) scale) / unit, in float64 until it is rounded to T; no shift where it
// is null. Program blocks [pieces(count, kWidth), pieces(n, kWidth)]: squares, read and written along the rows of
// either.
template <class T>
struct FeatureRows {
    static constexpr int kThreads = 256, kResident = 4, kWidth = 32, kEach = kWidth * kWidth / kThreads;
    struct Shared {
        T values[kWidth][kWidth + 1];
    };
    struct Registers {};

    MatrixView x;
    const std::int32_t* columns;  // [count]
    Index count;
    const double* shift;  // [count] or null
    double scale, unit;
    T* z;

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers&) const {
        const Index strips = pieces(x.rows, kWidth), r0 = number / strips * kWidth, i0 = number % strips * kWidth;
        const bool deep = Operand::size(x.col_stride) <= Operand::size(x.row_stride);
        SIMKIT_UNROLL
        for (int e = 0; e < kEach; ++e) {
            const int at = thread + e * kThreads, fast = at % kWidth, slow = at / kWidth;
            const int r = k == 0 && deep ? fast : slow, i = k == 0 && deep ? slow : fast;
            if (r0 + r >= count || i0 + i >= x.rows) continue;
            if (k == 0)
                shared.values[r][i] = static_cast<T>(value(r0 + r, i0 + i));
            else
                z[(r0 + r) * x.rows + i0 + i] = shared.values[r][i];
        }
        return k == 0;
    }

    SIMKIT_BOTH double value(Index r, Index i) const {
        const double raw = wide_value(x.data + i * x.row_stride + columns[r] * x.col_stride, x.dtype);
        return (shift ? raw - shift[r] : raw) * scale / unit;
    }
};

constexpr Index kMedianRows = 255;  // from all over the samples: as near the middle as it takes to keep digits

template <class M>
std::vector<double> middle_values(M& machine, const MatrixView& x, const std::int32_t* columns, Index count) {
    MatrixView few = x;
    few.rows = smaller(x.rows, kMedianRows) - (smaller(x.rows, kMedianRows) + 1) % 2;
    few.row_stride *= x.rows / few.rows;
    auto values = machine.template array<double>(count * few.rows);
    using Rows = FeatureRows<double>;
    machine.run(Rows{few, columns, count, nullptr, 1.0, 1.0, values.data()},
                pieces(count, Rows::kWidth) * pieces(few.rows, Rows::kWidth));
    auto found = fetched<M, double>(machine, values, count * few.rows);
    std::vector<double> middles;
    for (Index r = 0; r < count; ++r) {
        const auto begin = found.begin() + r * few.rows, middle = begin + few.rows / 2;
        std::nth_element(begin, middle, begin + few.rows);
        middles.push_back(*middle);
    }
    return middles;
}

// problem.x and out [columns, x.rows] lie on the machine.
template <class M, class T>
void form_units(M& machine, const UnitProblem& problem, T* out) {
    const Index count = static_cast<Index>(problem.columns.size());
    const auto columns = sent(machine, std::vector<std::int32_t>(problem.columns.begin(), problem.columns.end()));
    const auto shift = sent(machine, problem.shift ? std::vector<double>(problem.shift, problem.shift + count)
                                                   : middle_values(machine, problem.x, columns.data(), count));
    using Rows = FeatureRows<T>;
    machine.run(Rows{problem.x, columns.data(), count, shift.data(), problem.scale, problem.unit, out},
                pieces(count, Rows::kWidth) * pieces(problem.x.rows, Rows::kWidth));
}

// The same, in memory that stays; float64 where it is `wide`.
template <class M>
DeviceMemory form_units(M& machine, const UnitProblem& problem, bool wide) {
    const Index count = static_cast<Index>(problem.columns.size()) * problem.x.rows;
    auto z = machine.memory(count * static_cast<Index>(wide ? sizeof(double) : sizeof(float)));
    if (wide)
        form_units(machine, problem, reinterpret_cast<double*>(z.get()));
    else
        form_units(machine, problem, reinterpret_cast<float*>(z.get()));
    return z;
}

}  // namespace simkit::cuda
