// All-pairs sums [u, u] of a layer's units, blocks of neighbouring columns of one matrix, that stay on the machine.
// What they are: ops/greedy.hpp, ops/hsic.hpp.
#pragma once

#include <utility>
#include <vector>

#include "cuda/columns.hpp"
#include "cuda/feature.hpp"
#include "cuda/pair_sums.hpp"
#include "ops/greedy.hpp"

namespace simkit::cuda {

// out [rows, columns of `index`] = the columns of x in that order. Program blocks [pieces(rows, kRows), pieces(columns,
// kThreads)].
struct GatherColumns {
    static constexpr int kThreads = 256, kResident = 4;
    static constexpr Index kRows = 16;
    struct Shared {};
    struct Registers {};

    MatrixView x;
    const Index* index;  // [columns]
    Index columns, item;
    std::byte* out;

    template <class T>
    SIMKIT_BOTH void copy(Index i, Index k) const {
        reinterpret_cast<T*>(out)[i * columns + k] = read<T>(x.data + i * x.row_stride + index[k] * x.col_stride);
    }

    SIMKIT_BOTH bool step(Index number, int thread, int, Shared&, Registers&) const {
        const Index strips = pieces(columns, kThreads), k = number % strips * kThreads + thread;
        const Index first = number / strips * kRows, end = smaller(x.rows, first + kRows);
        for (Index i = first; i < end && k < columns; ++i) {
            if (item == 2)
                copy<std::uint16_t>(i, k);
            else if (item == 4)
                copy<std::uint32_t>(i, k);
            else
                copy<std::uint64_t>(i, k);
        }
        return false;
    }
};

template <class M>
DeviceMemory gather_columns(M& machine, const MatrixView& x, const std::vector<Index>& index) {
    const Index columns = static_cast<Index>(index.size());
    auto out = machine.memory(x.rows * columns * item_size(x.dtype));
    const auto held = sent(machine, index);
    machine.run(GatherColumns{x, held.data(), columns, item_size(x.dtype), out.get()},
                pieces(x.rows, GatherColumns::kRows) * pieces(columns, GatherColumns::kThreads));
    return out;
}

// sums [m] of the rows of x [m, n]. Program blocks: m.
struct SumRows {
    static constexpr int kThreads = 128, kResident = 4;
    using Shared = SharesOfSum<kThreads>;
    struct Registers {};

    const double* x;
    Index n;
    double* sums;

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers&) const {
        if (k == 0) {
            double sum = 0.0;
            for (Index i = thread; i < n; i += kThreads) sum += x[number * n + i];
            shared.of[thread] = sum;
            return true;
        }
        if (thread == 0) sums[number] = shared.sum();
        return false;
    }
};

// p [u, u], upper triangle: the sum of the squares of what G [p, p] has in the columns of unit a and the rows of unit
// b, by `lanes` threads a pair. Program blocks: pieces(u u, kThreads / lanes).
struct SquaresOfUnits {
    static constexpr int kThreads = 128, kResident = 4;
    struct Shared {
        double of[kThreads];
    };
    struct Registers {};

    const double* g;
    const Index* offsets;  // [u + 1]
    Index u, columns;
    int lanes;  // a power of two
    double* p;

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers&) const {
        const Index pair = number * (kThreads / lanes) + thread / lanes, a = pair / u, b = pair % u;
        const int lane = thread % lanes;
        const bool wanted = a < u && a <= b;
        if (k == 0) {
            double sum = 0.0;
            if (wanted) {
                const Index width = offsets[b + 1] - offsets[b], all = (offsets[a + 1] - offsets[a]) * width;
                for (Index at = lane; at < all; at += lanes) {
                    const double value = g[(offsets[a] + at / width) * columns + offsets[b] + at % width];
                    sum += value * value;
                }
            }
            shared.of[thread] = sum;
            return true;
        }
        if (!wanted || lane > 0) return false;
        double sum = 0.0;
        for (int other = 0; other < lanes; ++other) sum += shared.of[thread + other];
        p[a * u + b] = sum;
        return false;
    }
};

// RowsOfBlock (cuda/feature.hpp) of every unit: norms and sums [u, n]. Program blocks [u, pieces(n, kThreads)].
struct RowsOfUnits {
    static constexpr int kThreads = RowsOfBlock::kThreads, kResident = RowsOfBlock::kResident;
    struct Shared {};
    struct Registers {};

    ColumnTable table;
    const double* totals;  // [table.rows]
    const Index* offsets;  // [u + 1]
    double *norms, *sums;

    SIMKIT_BOTH bool step(Index number, int thread, int, Shared&, Registers&) const {
        const Index groups = pieces(table.depth, kThreads), unit = number / groups, first = offsets[unit];
        const RowsOfBlock rows{
            table, totals, first, offsets[unit + 1] - first, norms + unit * table.depth, sums + unit * table.depth};
        RowsOfBlock::Shared shared;
        RowsOfBlock::Registers registers;
        return rows.step(number % groups, thread, 0, shared, registers);
    }
};

// values [m, m] = p - less - cross rr + both t t^T from upper triangles; of its diagonal self [m], and raw [m] of p's.
// Program blocks: pieces(m m, kThreads).
struct CentrePairs {
    static constexpr int kThreads = 256, kResident = 1;
    struct Shared {};
    struct Registers {};

    const double *p, *less, *rr, *totals;  // `less` null, or all three but p: not there
    Index m;
    double cross, both;
    double *values, *self, *raw;

    SIMKIT_BOTH bool step(Index number, int thread, int, Shared&, Registers&) const {
        const Index at = number * kThreads + thread, a = at / m, b = at % m;
        if (a >= m) return false;
        const Index from = smaller(a, b) * m + larger(a, b);
        double value = p[from];
        if (less) value -= less[from];
        if (rr) value = value - cross * rr[from] + both * (totals[a] * totals[b]);
        values[at] = value;
        if (a == b) {
            self[a] = value;
            raw[a] = p[from];
        }
        return false;
    }
};

// problem: the units as blocks of one matrix, with themselves. values [u, u] lie on the machine.
template <class M>
class UnitSums {
  public:
    UnitSums(M& machine, const PlacedProblem& problem, double* values)
        : machine_(machine),
          problem_(problem),
          values_(values),
          self_(machine.template array<double>(problem.m())),
          raw_(machine.template array<double>(problem.m())),
          totals_(machine.template array<double>(problem.m())) {}

    OwnSums in_sample_space(bool double_products) {
        return on_cores(problem_.tensor,
                        [&](auto tensor) { return in_sample_space_on<decltype(tensor)::value>(double_products); });
    }

    // matrix: all columns as one block.
    OwnSums in_feature_space(const PlacedBlock& matrix) {
        const BlockView& view = matrix.view;
        const Index m = problem_.m(), p = view.x.cols;
        std::vector<Index> ends{0};
        for (const PlacedBlock& block : problem_.blocks) ends.push_back(ends.back() + block.view.x.cols);
        const auto offsets = sent(machine_, ends);
        auto squares = machine_.template array<double>(m * m);
        {
            auto g = machine_.template array<double>(p * p);
            column_products(machine_,
                            {view, matrix.narrow, {matrix.shift, matrix.shift + p}, {}, true, problem_.tensor, false},
                            g.data());
            const int lanes = p / m >= 8 ? SquaresOfUnits::kThreads : 1;
            machine_.run(SquaresOfUnits{g.data(), offsets.data(), m, p, lanes, squares.data()},
                         pieces(m * m, SquaresOfUnits::kThreads / lanes));
        }
        if (!problem_.debiased) {
            centre(squares, nullptr, nullptr);
            return own();
        }
        auto norms = machine_.template array<double>(m * n()), sums = machine_.template array<double>(m * n());
        row_sums(view, matrix.shift, offsets.data(), norms.data(), sums.data());
        const auto less = panel_products_there(machine_, norms, m, m, n());
        const auto rr = panel_products_there(machine_, sums, m, m, n());
        add_rows(sums, totals_);
        centre(squares, less.data(), rr.data());
        return own();
    }

  private:
    Index n() const { return problem_.n(); }

    template <bool Tensor>
    OwnSums in_sample_space_on(bool double_products) {
        const auto holds = [](const PlacedBlock& block) { return block.narrow && block.view.x.dtype == Dtype::f32; };
        if (double_products) return by_walk<double, 4, false, Tensor>();
        if (std::all_of(problem_.blocks.begin(), problem_.blocks.end(), holds))
            return by_walk<float, 8, true, Tensor>();
        return by_walk<float, 8, false, Tensor>();
    }

    // As sums_by_walk (cuda/pair_sums.hpp).
    template <class T, int R, bool Plain, bool Tensor>
    OwnSums by_walk() {
        const Kernels<M> kernels(machine_, problem_);
        std::vector<RowMeans> means = kernels.row_means(problem_);
        const auto pass = [&] {
            return whole_walk<T, R, Plain, LinearValue, Tensor>(machine_, problem_, kernels, means).sums_there();
        };
        const auto sums = pass();
        OwnSums out = centred(sums);
        if constexpr (std::is_same_v<T, double>) {
            const Index m = problem_.m();
            bool cancelled = false;
            for (Index a = 0; a < m; ++a) cancelled |= out.self[a] < kCancelled * out.raw[a];
            if (!cancelled) return out;
            add_rows(sums.diagonal, totals_);
            const auto traces = fetched<M, double>(machine_, totals_, m);
            const auto r = fetched<M, double>(machine_, sums.r, m * n());
            for (Index a = 0; a < m; ++a) means[a].absorb(r.data() + a * n(), n(), problem_.debiased);
            out = centred(pass());
            for (Index a = 0; a < m; ++a)
                out.raw[a] = std::max(out.raw[a], std::numeric_limits<double>::epsilon() * traces[a] * traces[a]);
        }
        return out;
    }

    OwnSums centred(const SumsThere<M>& sums) {
        add_rows(sums.r, totals_);
        centre(sums.p, nullptr, sums.rr.data());
        return own();
    }

    void add_rows(const typename M::template Array<double>& x, typename M::template Array<double>& sums) {
        machine_.run(SumRows{x.data(), n(), sums.data()}, problem_.m());
    }

    void centre(const typename M::template Array<double>& p, const double* less, const double* rr) {
        const double dn = static_cast<double>(n());
        const double cross = problem_.debiased ? 2.0 / (dn - 2.0) : 2.0 / dn;
        const double both = problem_.debiased ? 1.0 / ((dn - 1.0) * (dn - 2.0)) : 1.0 / (dn * dn);
        const Index m = problem_.m();
        machine_.run(
            CentrePairs{p.data(), less, rr, totals_.data(), m, cross, both, values_, self_.data(), raw_.data()},
            pieces(m * m, CentrePairs::kThreads));
    }

    // Per sample and unit: |z|^2, and the row sum of K without the diagonal.
    void row_sums(const BlockView& view, const double* shift, const Index* offsets, double* norms, double* sums) {
        std::vector<ColumnPlace> places;
        for (Index k = 0; k < view.x.cols; ++k)
            places.push_back({view.x.data + k * view.x.col_stride, view.x.row_stride, view.x.dtype, shift[k],
                              view.scale, view.row_scale});
        const auto columns = sent(machine_, std::move(places));
        const ColumnTable table{columns.data(), view.x.cols, n()};
        auto totals = machine_.template array<double>(view.x.cols);
        machine_.run(SumColumns{table, totals.data()}, view.x.cols);
        machine_.run(RowsOfUnits{table, totals.data(), offsets, norms, sums},
                     problem_.m() * pieces(n(), RowsOfUnits::kThreads));
    }

    OwnSums own() {
        return {fetched<M, double>(machine_, self_, problem_.m()), fetched<M, double>(machine_, raw_, problem_.m())};
    }

    M& machine_;
    const PlacedProblem& problem_;
    double* values_;
    typename M::template Array<double> self_, raw_, totals_;
};

// The units [offsets[k], offsets[k + 1]) of a block, as blocks.
inline std::vector<PlacedBlock> units_of(const PlacedBlock& block, const std::vector<Index>& offsets) {
    std::vector<PlacedBlock> units;
    for (std::size_t k = 0; k + 1 < offsets.size(); ++k) {
        PlacedBlock unit = block;
        const Index first = offsets[k];
        unit.view.x.data += first * block.view.x.col_stride;
        unit.view.x.cols = offsets[k + 1] - first;
        unit.view.shift += first;
        unit.narrow_shift += first;
        unit.shift += first;
        units.push_back(unit);
    }
    return units;
}

template <class M>
OwnSums unit_sums(M& machine, const PlacedBlock& block, const std::vector<Index>& offsets, bool debiased,
                  bool sample_space, bool double_products, bool tensor, Index bytes) {
    const Index u = static_cast<Index>(offsets.size()) - 1;
    const PlacedProblem problem{units_of(block, offsets), u, debiased, bytes, tensor};
    auto values = machine.memory(8 * u * u);
    UnitSums<M> sums(machine, problem, reinterpret_cast<double*>(values.get()));
    OwnSums out = sample_space ? sums.in_sample_space(double_products) : sums.in_feature_space(block);
    out.values = std::move(values);
    return out;
}

}  // namespace simkit::cuda
