#include <optional>

#include "core/pack.hpp"
#include "cuda/device.cuh"
#include "cuda/strip_columns.hpp"

namespace simkit::cuda {

ColumnStats column_stats(const Place& place, const MatrixView& x, const double* row_scale) {
    return at_place(place, Index{0}, [&](Machine& machine, Index) {
        if (!row_scale) return column_stats(machine, x, nullptr);
        auto held = machine.array<double>(x.rows);
        machine.send(held, row_scale, x.rows);
        return column_stats(machine, x, held.data());
    });
}

ColumnStats column_stats(const Place& place, const MatrixView& x, const double* row_scale, const Strips& strips) {
    return at_place(place, strips,
                    [&](Machine& machine, const Strips& fit) { return column_stats(machine, x, row_scale, fit); });
}

namespace {

ColumnProblem problem_of(const BlockView& block, const double* sum_sq_dev, bool exact, bool tensor, bool squared) {
    const Index p = block.x.cols;
    return {block,  shifts_in_float(block), {block.shift, block.shift + p}, {sum_sq_dev, sum_sq_dev + p}, exact, tensor,
            squared};
}

}  // namespace

DeviceMemory column_products(const Place& place, const BlockView& block, const double* sum_sq_dev, bool exact,
                             bool tensor, bool squared, std::int64_t bytes) {
    return at_place(place, bytes, [&](Machine& machine, std::int64_t room) {
        ColumnProblem of = problem_of(block, sum_sq_dev, exact, tensor, squared);
        std::optional<Machine::Array<double>> scale;
        if (block.row_scale) {
            scale.emplace(machine.array<double>(block.x.rows));
            machine.send(*scale, block.row_scale, block.x.rows);
            of.block.row_scale = scale->data();
        }
        return column_products(machine, of, room);
    });
}

DeviceMemory column_products(const Place& place, const BlockView& block, const double* sum_sq_dev, bool exact,
                             bool tensor, bool squared, const Strips& strips) {
    return at_place(place, strips, [&](Machine& machine, const Strips& fit) {
        return column_products(machine, problem_of(block, sum_sq_dev, exact, tensor, squared), fit);
    });
}

}  // namespace simkit::cuda
