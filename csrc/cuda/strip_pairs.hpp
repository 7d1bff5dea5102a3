// All-pairs sums of matrices on the host, in strips (cuda/strips.hpp): the arithmetic of pair_sums.hpp and feature.hpp.
#pragma once

#include <array>
#include <vector>

#include "cuda/feature.hpp"
#include "cuda/pair_sums.hpp"
#include "cuda/strip_problem.hpp"
#include "cuda/strip_squares.hpp"
#include "cuda/strip_triangle.hpp"

namespace simkit::cuda {

// What non-linear kernels need before their tiles: their rows pass once, `passing` at a time, beside the pilots, for
// which alone a strip is kept. The bits of whole copies.
template <class M>
std::vector<RowMeans> row_means(M& machine, const StripProblem<M>& problem, const Kernels<M>& kernels, Index passing,
                                int threads) {
    if (kernels.curved().empty()) return std::vector<RowMeans>(problem.on_host().size());
    std::vector<BlockView> blocks;
    for (const Index b : kernels.curved()) blocks.push_back(problem.on_host()[b]);
    std::vector<BlockView> few = blocks;
    for (BlockView& block : few) {
        block.x.rows = kernels.pilots();
        block.x.row_stride *= kernels.each();
    }
    auto stay = strip_of(machine, blocks, kernels.pilots());
    auto pair = two_strips(machine, blocks, passing);
    StripFeed<M> feed(machine, blocks, passing, threads);
    const auto rows_in = [&](const Strip<M>& strip, Index rows) {
        std::vector<Operand> found;
        for (std::size_t k = 0; k < blocks.size(); ++k) {
            PlacedBlock here = problem.placed().blocks[kernels.curved()[k]];
            here.view.x = strip.view(blocks, static_cast<Index>(k), rows);
            found.push_back(samples_of(here, false));
        }
        return found;
    };
    feed.send(stay, few, 0, kernels.pilots());
    feed.arrive(stay);
    const std::vector<Operand> pilots = rows_in(stay, kernels.pilots());
    kernels.form_norms(pilots, 0, kernels.each());
    return kernels.row_means(pilots, [&](const auto& use) {
        pass_strips(machine, feed, pair, passing, 1, [&](const Strip<M>& strip, Index first, Index end) {
            use(rows_in(strip, end - first), first, end);
        });
    });
}

// Sample space. The row sums have the bits of pair_sums_sample; the products have its terms, added strip by strip.
template <class T, int R, bool Plain, class Value, bool Tensor, class M>
class SampleStrips {
  public:
    static constexpr Index kWidth = kSide * R;
    using Walk = SampleWalk<T, R, Plain, Value, Tensor, M>;

    SampleStrips(M& machine, const PairProblem& problem, const Strips& strips)
        : machine_(machine),
          sizes_(strips, kWidth, problem.n()),
          problem_(machine, problem, strips.bytes, true),
          kernels_(machine, problem_.placed()),
          means_(row_means(machine, problem_, kernels_, sizes_.passing, strips.threads)),
          triangle_(machine, problem_.on_host(), kWidth, sizes_, strips.threads) {}

    PairSums sums() {
        return sums_by_passes<T>(problem_.placed(), means_,
                                 [&](const std::vector<RowMeans>& means) { return walk(means); });
    }

  private:
    using Blocks = std::vector<GramBlock<Value>>;

    SampleSums walk(const std::vector<RowMeans>& means) {
        const PlacedProblem& placed = problem_.placed();
        std::vector<typename M::template Array<double>> held;
        Blocks blocks = gram_blocks<Value>(machine_, placed, kernels_, means, sizeof(T) == 4, held);
        Walk walk(machine_, placed, triangle_.most());
        triangle_.pass([&](const typename StripTriangle<M>::Pair& pair, const std::vector<TilePlace>& tiles) {
            for (auto& block : blocks) block.across = triangle_.lay(block.rows, pair, block.place);
            walk.add(blocks, tiles);
        });
        return walk.sums();
    }

    M& machine_;
    TriangleRows sizes_;
    StripProblem<M> problem_;
    Kernels<M> kernels_;
    std::vector<RowMeans> means_;
    StripTriangle<M> triangle_;
};

template <bool Tensor, class M>
PairSums sums_on(M& machine, const PairProblem& problem, const Strips& strips) {
    const auto all = [&](auto&& holds) { return std::all_of(problem.blocks.begin(), problem.blocks.end(), holds); };
    if (!all([](const BlockView& block) { return block.kernel == Kernel::linear; }))
        return SampleStrips<double, 4, false, KernelValue, Tensor, M>(machine, problem, strips).sums();
    if (problem.double_products)
        return SampleStrips<double, 4, false, LinearValue, Tensor, M>(machine, problem, strips).sums();
    if (all([](const BlockView& block) { return shifts_in_float(block) && block.x.dtype == Dtype::f32; }))
        return SampleStrips<float, 8, true, LinearValue, Tensor, M>(machine, problem, strips).sums();
    return SampleStrips<float, 8, false, LinearValue, Tensor, M>(machine, problem, strips).sums();
}

template <class M>
PairSums pair_sums_sample(M& machine, const PairProblem& problem, const Strips& strips) {
    return on_cores(problem.tensor,
                    [&](auto tensor) { return sums_on<decltype(tensor)::value>(machine, problem, strips); });
}

// SumColumns over strips: shares [rows of the table, kThreads] wait from strip to strip. Program blocks: rows.
struct SumColumnsOn {
    static constexpr int kThreads = SumColumns::kThreads, kResident = SumColumns::kResident;
    struct Shared {};
    struct Registers {};

    ColumnTable table;
    double* shares;

    SIMKIT_BOTH bool step(Index number, int thread, int, Shared&, Registers&) const {
        double sum = shares[number * kThreads + thread];
        for (Index i = thread; i < table.depth; i += kThreads) sum += table.element<double>(number, i);
        shares[number * kThreads + thread] = sum;
        return false;
    }
};
struct JoinShares {
    static constexpr int kThreads = 64, kResident = 1;
    struct Shared {};
    struct Registers {};

    const double* shares;  // [count, SumColumns::kThreads]
    Index count;
    double* sums;

    SIMKIT_BOTH bool step(Index number, int thread, int, Shared&, Registers&) const {
        const Index row = number * kThreads + thread;
        if (row >= count) return false;
        double sum = 0.0;
        for (int share = 0; share < SumColumns::kThreads; ++share) sum += shares[row * SumColumns::kThreads + share];
        sums[row] = sum;
        return false;
    }
};

// Feature space. All rows pass once for every batch of squares that there is room for, and where debiased once more for
// the sums of rows. The bits of pair_sums_feature.
template <bool Tensor, class M>
class FeatureStrips {
  public:
    using Squares = CrossSquares<double, 4, false, ColumnTable, Tensor>;

    FeatureStrips(M& machine, const PairProblem& problem, const Strips& strips)
        : machine_(machine),
          n_(problem.n()),
          problem_(machine, problem, strips.bytes, false),
          squares_(problem_.placed()),
          sizes_(n_, squares_.count(), strips),
          pair_(two_strips(machine, problem_.on_host(), sizes_.rows)),
          columns_{table(pair_[0]), table(pair_[1])},
          feed_(machine, problem_.on_host(), sizes_.rows, strips.threads) {}

    PairSums sums() {
        const PlacedProblem& placed = problem_.placed();
        auto totals = machine_.template array<double>(squares_.columns());
        const std::vector<double> p = products(totals);
        return feature_sums(placed, p, placed.debiased ? debias(totals) : Diagonals{});
    }

  private:
    using Doubles = typename M::template Array<double>;

    typename M::template Array<ColumnPlace> table(const Strip<M>& strip) {
        return sent(machine_, all_columns(problem_.in(strip, n_)));
    }

    template <class Use>
    void pass(const Use& use) {
        pass_strips(machine_, feed_, pair_, sizes_.rows, sizes_.group,
                    [&](const Strip<M>& strip, Index first, Index end) {
                        const auto& columns = columns_[&strip == &pair_[1]];
                        use(ColumnTable{columns.data(), squares_.columns(), end - first}, first, end);
                    });
    }

    // As FeatureSums::products. totals: of the columns, found on the way.
    std::vector<double> products(Doubles& totals) {
        const PlacedProblem& placed = problem_.placed();
        const Index m = placed.m();
        const auto places = sent(machine_, squares_.places());
        std::vector<double> p(m * m, 0.0);
        const auto all_rows = [&](bool first, const auto& add) {
            if (first && placed.debiased)
                pass_with_totals(add, totals);
            else
                pass(add);
        };
        sizes_.walk(machine_, places.data(), all_rows, [&](Index first, Index count, const double* joined) {
            add_squares(machine_, squares_.shares(first, count), joined, count, 1, m, p);
        });
        return p;
    }

    template <class Add>
    void pass_with_totals(const Add& add, Doubles& totals) {
        const Index columns = squares_.columns(), shares = columns * SumColumns::kThreads;
        auto waiting = machine_.template array<double>(shares);
        machine_.zero(waiting, shares);
        pass([&](const ColumnTable& table, Index first, Index end) {
            add(table, first, end);
            machine_.run(SumColumnsOn{table, waiting.data()}, columns);
        });
        machine_.run(JoinShares{waiting.data(), columns, totals.data()}, pieces(columns, JoinShares::kThreads));
    }

    Diagonals debias(const Doubles& totals) {
        const PlacedProblem& placed = problem_.placed();
        const Index m = placed.m();
        auto a = machine_.template array<double>(m * n_), r = machine_.template array<double>(m * n_);
        pass([&](const ColumnTable& table, Index first, Index end) {
            for (Index b = 0; b < m; ++b)
                machine_.run(RowsOfBlock{table, totals.data(), squares_.begin(b), squares_.end(b) - squares_.begin(b),
                                         a.data() + b * n_ + first, r.data() + b * n_ + first},
                             pieces(end - first, RowsOfBlock::kThreads));
        });
        return diagonals(machine_, placed, a, r);
    }

    M& machine_;
    Index n_;
    StripProblem<M> problem_;
    FeatureSquares squares_;
    StripSquares<Squares> sizes_;
    std::array<Strip<M>, 2> pair_;
    std::array<typename M::template Array<ColumnPlace>, 2> columns_;
    StripFeed<M> feed_;
};

template <class M>
PairSums pair_sums_feature(M& machine, const PairProblem& problem, const Strips& strips) {
    return on_cores(problem.tensor, [&](auto tensor) {
        return FeatureStrips<decltype(tensor)::value, M>(machine, problem, strips).sums();
    });
}

}  // namespace simkit::cuda
