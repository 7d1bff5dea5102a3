// Candidates on the emulator, as C functions for ctypes: the driver that the device runs, held from call to call.
#include <deque>
#include <memory>

#include "cuda/candidates.hpp"
#include "cuda/unit_features.hpp"
#include "emulated.hpp"

using namespace simkit;
using namespace emulated;
using emulator::Machine;

namespace {

struct Units {
    const void* z;
    Index features, samples, wide;
    const Index* offsets;
    Index units;
    int kernel, degree;
    double length, coef0;
    int debiased, order;
    const double* centre;
    Index small_centre;
    Index at_once, packed, bytes;
};

// The search goes before the machines that it was made on.
struct Held {
    explicit Held(int order_) : order(order_) {}
    virtual ~Held() = default;
    virtual cuda::CandidateTotals sums(const std::vector<Index>& kept, const std::vector<Index>& candidates,
                                       const cuda::CandidateLevels& levels, bool rows) = 0;
    virtual Index packed_bytes() const = 0;

    Machine& fresh() {
        ++emulator::trial.machines;
        return machines.emplace_back(static_cast<emulator::Order>(order), emulator::Pace::late, emulator::trial.memory);
    }

    int order;
    std::deque<Machine> machines;
};

template <class T>
struct HeldAs : Held {
    HeldAs(const CandidateProblem<T>& problem, const cuda::CandidateRoom& room, int order)
        : Held(order), search(cuda::held_search<Machine>([this]() -> Machine& { return fresh(); }, problem, room)) {}
    cuda::CandidateTotals sums(const std::vector<Index>& kept, const std::vector<Index>& candidates,
                               const cuda::CandidateLevels& levels, bool rows) override {
        return cuda::with_memory(
            [this]() -> Machine& { return fresh(); }, Index{0},
            [&](Machine& machine, Index) { return search->sums(machine, kept, candidates, levels, rows); });
    }
    Index packed_bytes() const override { return search->packed_bytes(); }

    std::unique_ptr<cuda::CandidateSearch<Machine, T>> search;
};

template <class T>
std::unique_ptr<Held> hold(const Units& of) {
    CandidateProblem<T> problem{};
    problem.z = static_cast<const T*>(of.z);
    problem.n = of.samples;
    problem.offsets.assign(of.offsets, of.offsets + of.units + 1);
    problem.kernel = static_cast<Kernel>(of.kernel);
    problem.length = of.length;
    problem.coef0 = of.coef0;
    problem.degree = of.degree;
    problem.debiased = of.debiased != 0;
    problem.centre = of.centre;
    problem.small_centre = of.small_centre != 0;
    return std::make_unique<HeldAs<T>>(problem, cuda::CandidateRoom{of.at_once, of.packed, of.bytes}, of.order);
}

}  // namespace

extern "C" {

int form_units(const Matrix* x, const Index* columns, Index count, const double* shift, double unit, int wide,
               int order, void* z) {
    return guarded([&] {
        const cuda::UnitProblem problem{view_of(*x), {columns, columns + count}, shift, x->scale, unit};
        const auto held =
            on_machine(order, [&](Machine& machine) { return cuda::form_units(machine, problem, wide != 0); });
        copy_out(held, count * x->rows * (wide ? 8 : 4), static_cast<std::byte*>(z));
    });
}

int hold_candidates(const Units* of, void** held) {
    return guarded([&] { *held = (of->wide ? hold<double>(*of) : hold<float>(*of)).release(); });
}

int release_candidates(void* held) {
    return guarded([&] { delete static_cast<Held*>(held); });
}

Index packed_bytes(const void* held) { return static_cast<const Held*>(held)->packed_bytes(); }

int candidate_sums(void* held, const Index* kept, Index units, const Index* candidates, Index count,
                   const double* levels, int each, int small, double* totals, double* rows) {
    return guarded([&] {
        auto out = static_cast<Held*>(held)->sums({kept, kept + units}, {candidates, candidates + count},
                                                  {levels, each != 0, small != 0}, rows);
        for (Index q = 0; q < 4; ++q) std::copy(out.list(q).begin(), out.list(q).end(), totals + q * count);
        if (rows) std::copy(out.rows.begin(), out.rows.end(), rows);
    });
}

}  // extern "C"
