// Products of columns, sums of a matrix and elimination on the emulator, as C functions for ctypes. What lies on a
// device lies in the caller's memory here.
#include "cuda/elimination_run.hpp"
#include "cuda/unit_sums.hpp"
#include "emulated_columns.hpp"

using namespace simkit;
using namespace emulated;
using emulator::Machine;

extern "C" {

int copied(const std::byte* from, Index bytes, int order, std::byte* to) {
    return guarded([&] {
        const auto held = on_machine(order, [&](Machine& machine) { return cuda::copied(machine, from, bytes); });
        copy_out(held, bytes, to);
    });
}

int column_products(const Matrix* x, const double* squares, int exact, int tensor, int squared, Index bytes, int order,
                    double* g) {
    return guarded([&] {
        const auto of = columns_of(*x, squares, exact, tensor, squared);
        const auto held = on_machine(
            order, bytes, [&](Machine& machine, Index room) { return cuda::column_products(machine, of, room); });
        copy_out(held, x->cols * x->cols, g);
    });
}

int gather_columns(const Matrix* x, const Index* index, Index count, int order, std::byte* out) {
    return guarded([&] {
        const auto held = on_machine(order, [&](Machine& machine) {
            return cuda::gather_columns(machine, view_of(*x), {index, index + count});
        });
        copy_out(held, x->rows * count * item_size(view_of(*x).dtype), out);
    });
}

int unit_sums(const Matrix* x, const Index* offsets, Index u, int debiased, int sample, int wide, int tensor,
              Index bytes, int order, double* values, double* self, double* raw) {
    return guarded([&] {
        const std::vector<float> shift(x->shift, x->shift + x->cols);
        const cuda::PlacedBlock block{block_of(*x), shift.data(), narrow(*x), x->shift};
        const cuda::OwnSums own = on_machine(order, bytes, [&](Machine& machine, Index room) {
            return cuda::unit_sums(machine, block, {offsets, offsets + u + 1}, debiased != 0, sample != 0, wide != 0,
                                   tensor != 0, room);
        });
        copy_out(own.values, u * u, values);
        std::copy(own.self.begin(), own.self.end(), self);
        std::copy(own.raw.begin(), own.raw.end(), raw);
    });
}

int total(const double* a, Index u, int order, double* sum) {
    return guarded([&] { *sum = on_machine(order, [&](Machine& machine) { return cuda::total(machine, a, u); }); });
}

// matrices, u, counts, removed and gaps [many]; units and cka one after another, counts[k] of each.
int eliminate(Index many, const double* const* matrices, const Index* u, const Index* counts, int greedy,
              double min_cka, Index in_registers, int order, Index* removed, Index* units, double* cka, double* gaps,
              Index* lost) {
    return guarded([&] {
        std::vector<cuda::SquareProblem> problems;
        for (Index k = 0; k < many; ++k) problems.push_back({matrices[k], u[k], counts[k]});
        const auto found = on_machine(order, [&](Machine& machine) {
            return cuda::eliminate(machine, problems, greedy != 0, min_cka, in_registers);
        });
        Index at = 0;
        for (Index k = 0; k < many; ++k) {
            removed[k] = static_cast<Index>(found[k].order.size());
            std::copy(found[k].order.begin(), found[k].order.end(), units + at);
            std::copy(found[k].cka.begin(), found[k].cka.end(), cka + at);
            gaps[k] = found[k].smallest_gap;
            lost[k] = found[k].lost;
            at += counts[k];
        }
    });
}

}  // extern "C"
