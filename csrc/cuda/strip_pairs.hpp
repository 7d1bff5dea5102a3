// All-pairs sums of matrices on the host, in strips (cuda/strips.hpp): the arithmetic of pair_sums.hpp and feature.hpp.
#pragma once

#include <array>
#include <vector>

#include "cuda/feature.hpp"
#include "cuda/pair_sums.hpp"
#include "cuda/strips.hpp"

namespace simkit::cuda {

// The blocks of a problem on the host: shifts on the machine, rows in strips.
template <class M>
class StripProblem {
  public:
    // whole_weights: the weights of all rows lie on the machine, instead of coming with the rows.
    StripProblem(M& machine, const PairProblem& problem, Index bytes, bool whole_weights)
        : blocks_(problem.blocks), placed_{{}, problem.left, problem.debiased, bytes, problem.tensor} {
        for (BlockView& block : blocks_) {
            PlacedBlock placed{block, nullptr, shifts_in_float(block), block.shift};
            const std::vector<double> shift(block.shift, block.shift + block.x.cols);
            placed.view.shift = wide_.emplace_back(sent(machine, shift)).data();
            placed.narrow_shift =
                narrow_.emplace_back(sent(machine, std::vector<float>(shift.begin(), shift.end()))).data();
            if (block.row_scale && whole_weights) {
                wide_.push_back(machine.template array<double>(block.x.rows));
                machine.send(wide_.back(), block.row_scale, block.x.rows);
                placed.view.row_scale = wide_.back().data();
                block.row_scale = nullptr;
            }
            placed_.blocks.push_back(placed);
        }
    }

    const std::vector<BlockView>& on_host() const { return blocks_; }
    const PlacedProblem& placed() const { return placed_; }

    // The problem of the rows that lie in a strip.
    PlacedProblem in(const Strip<M>& strip, Index rows) const {
        PlacedProblem here = placed_;
        for (Index b = 0; b < here.m(); ++b) {
            BlockView& view = here.blocks[b].view;
            view.x = strip.view(blocks_, b, rows);
            if (view.row_scale) view.row_scale = strip.weights(blocks_, b);
        }
        return here;
    }

  private:
    std::vector<BlockView> blocks_;
    PlacedProblem placed_;
    std::vector<typename M::template Array<double>> wide_;
    std::vector<typename M::template Array<float>> narrow_;
};

// Sample space. A strip of `resident` rows stays while the rows behind it pass, in strips of `passing`: with k resident
// strips every row crosses (k + 1) / 2 times on average. The row sums have the bits of pair_sums_sample; the products
// have its terms, added strip by strip.
template <class T, int R, bool Plain, bool Tensor, class M>
class SampleStrips {
  public:
    static constexpr Index kWidth = kSide * R;
    using Walk = SampleWalk<T, R, Plain, LinearValue, Tensor, M>;

    SampleStrips(M& machine, const PairProblem& problem, const Strips& strips)
        : machine_(machine),
          n_(problem.n()),
          resident_(whole_chunks(strips.resident, kWidth, n_)),
          passing_(whole_chunks(smaller(strips.passing, resident_), kWidth, n_)),
          problem_(machine, problem, strips.bytes, true),
          home_(strip_of(machine, problem_.on_host(), resident_)),
          others_(two_strips(machine, problem_.on_host(), passing_)),
          feed_(machine, problem_.on_host(), passing_, strips.threads) {}

    PairSums sums() {
        const PlacedProblem& placed = problem_.placed();
        return sums_by_passes<T>(placed, std::vector<RowMeans>(placed.blocks.size()),
                                 [&](const std::vector<RowMeans>& means) { return walk(means); });
    }

  private:
    using Blocks = std::vector<GramBlock<LinearValue>>;

    SampleSums walk(const std::vector<RowMeans>& means) {
        const PlacedProblem& placed = problem_.placed();
        const Kernels<M> kernels(machine_, placed);
        std::vector<typename M::template Array<double>> held;
        Blocks blocks = gram_blocks<LinearValue>(machine_, placed, kernels, means, sizeof(T) == 4, held);
        const Index strips = pieces(resident_, kWidth);
        Walk walk(machine_, placed, larger(strips * pieces(passing_, kWidth), strips * (strips + 1) / 2));
        for (Index i0 = 0; i0 < n_; i0 += resident_) {
            const Index i1 = smaller(n_, i0 + resident_);
            feed_.send(home_, i0, i1);
            feed_.arrive(home_);
            lay(blocks, home_, i0, home_, i0);
            walk.add(blocks, tiles(i0, i1, i0, i1));
            for (Index j0 = i1; j0 < n_; j0 += passing_) {
                const Index j1 = smaller(n_, j0 + passing_);
                Strip<M>& other = others_[turn_++ % others_.size()];
                feed_.send(other, j0, j1);
                feed_.arrive(other);
                lay(blocks, home_, i0, other, j0);
                walk.add(blocks, tiles(i0, i1, j0, j1));
                feed_.leave(other);
            }
            feed_.leave(home_);
        }
        return walk.sums();
    }

    // Rows i lie where the strip that begins with row i0 has them, rows j of a tile's columns in the other.
    void lay(Blocks& blocks, const Strip<M>& rows, Index i0, const Strip<M>& columns, Index j0) const {
        for (auto& block : blocks) {
            const MatrixView x = rows.view(problem_.on_host(), block.place, n_);
            const MatrixView y = columns.view(problem_.on_host(), block.place, n_);
            block.rows.data = x.data - i0 * x.row_stride;
            block.rows.row_stride = x.row_stride;
            block.rows.depth_stride = x.col_stride;
            block.across = y.data - j0 * y.row_stride - block.rows.data;
        }
    }

    // Those on and above the diagonal, row by row.
    static std::vector<TilePlace> tiles(Index i0, Index i1, Index j0, Index j1) {
        std::vector<TilePlace> places;
        for (Index i = i0 / kWidth; i < pieces(i1, kWidth); ++i)
            for (Index j = larger(i, j0 / kWidth); j < pieces(j1, kWidth); ++j) places.push_back({i, j});
        return places;
    }

    M& machine_;
    Index n_, resident_, passing_;
    StripProblem<M> problem_;
    Strip<M> home_;
    std::array<Strip<M>, 2> others_;
    StripFeed<M> feed_;
    std::size_t turn_ = 0;
};

template <bool Tensor, class M>
PairSums sums_on(M& machine, const PairProblem& problem, const Strips& strips) {
    if (problem.double_products) return SampleStrips<double, 4, false, Tensor, M>(machine, problem, strips).sums();
    bool plain = true;
    for (const BlockView& block : problem.blocks) plain &= shifts_in_float(block) && block.x.dtype == Dtype::f32;
    if (plain) return SampleStrips<float, 8, true, Tensor, M>(machine, problem, strips).sums();
    return SampleStrips<float, 8, false, Tensor, M>(machine, problem, strips).sums();
}

// Linear blocks on the host.
template <class M>
PairSums pair_sums_sample(M& machine, const PairProblem& problem, const Strips& strips) {
    return on_cores(problem.tensor,
                    [&](auto tensor) { return sums_on<decltype(tensor)::value>(machine, problem, strips); });
}

// to [count] += parts [groups, count], in the order of the groups. Program blocks: pieces(count, kThreads).
struct AddGroups {
    static constexpr int kThreads = 256, kResident = 4;
    struct Shared {};
    struct Registers {};

    const double* parts;
    Index count, groups;
    double* to;

    SIMKIT_BOTH bool step(Index number, int thread, int, Shared&, Registers&) const {
        const Index at = number * kThreads + thread;
        if (at >= count) return false;
        double sum = to[at];
        for (Index group = 0; group < groups; ++group) sum += parts[group * count + at];
        to[at] = sum;
        return false;
    }
};

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
    static constexpr Index kCells = Squares::kWidth * Squares::kWidth, kChunk = Squares::kChunkSlices * kSlice;

    FeatureStrips(M& machine, const PairProblem& problem, const Strips& strips)
        : machine_(machine),
          n_(problem.n()),
          bytes_(strips.bytes),
          problem_(machine, problem, strips.bytes, false),
          squares_(problem_.placed()),
          group_(group_rows(n_, squares_.count(), kCells * 8)),
          rows_(strip_rows(strips.passing)),
          pair_(two_strips(machine, problem_.on_host(), rows_)),
          columns_{table(pair_[0]), table(pair_[1])},
          feed_(machine, problem_.on_host(), rows_, strips.threads) {}

    PairSums sums() {
        const PlacedProblem& placed = problem_.placed();
        auto totals = machine_.template array<double>(squares_.columns());
        const std::vector<double> p = products(totals);
        return feature_sums(placed, p, placed.debiased ? debias(totals) : Diagonals{});
    }

  private:
    using Doubles = typename M::template Array<double>;

    // Whole groups, or whole chunks of one.
    Index strip_rows(Index wanted) const { return whole_chunks(wanted, wanted < group_ ? kChunk : group_, n_); }

    typename M::template Array<ColumnPlace> table(const Strip<M>& strip) {
        return sent(machine_, all_columns(problem_.in(strip, n_)));
    }

    template <class Use>
    void pass(const Use& use) {
        pass_strips(machine_, feed_, pair_, rows_, group_, [&](const Strip<M>& strip, Index first, Index end) {
            const auto& columns = columns_[&strip == &pair_[1]];
            use(ColumnTable{columns.data(), squares_.columns(), end - first}, first, end);
        });
    }

    // As FeatureSums::products. totals: of the columns, found on the way.
    std::vector<double> products(Doubles& totals) {
        const PlacedProblem& placed = problem_.placed();
        const Index m = placed.m(), all = squares_.count(), groups = larger(1, rows_ / group_);
        const Index batch = larger(1, smaller(all, bytes_ / ((groups + 1) * kCells * 8)));
        const auto places = sent(machine_, squares_.places());
        auto parts = machine_.template array<double>(groups * batch * kCells);
        auto joined = machine_.template array<double>(batch * kCells);
        std::vector<double> p(m * m, 0.0);
        for (Index first = 0; first < all; first += batch) {
            const Index count = smaller(batch, all - first);
            machine_.zero(joined, count * kCells);
            const auto add = [&](const ColumnTable& table, Index begin, Index end) {
                const Index own = pieces(end - begin, group_);
                machine_.run(Squares{table, places.data() + first, count, group_, parts.data(), begin % group_ != 0},
                             count * own);
                if (end % group_ != 0 && end != n_) return;
                machine_.run(AddGroups{parts.data(), count * kCells, own, joined.data()},
                             pieces(count * kCells, AddGroups::kThreads));
            };
            if (first == 0 && placed.debiased)
                pass_with_totals(add, totals);
            else
                pass(add);
            add_squares(machine_, squares_.shares(first, count), joined.data(), count, 1, m, p);
        }
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
    Index n_, bytes_;
    StripProblem<M> problem_;
    FeatureSquares squares_;
    Index group_, rows_;
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
