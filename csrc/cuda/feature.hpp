// All-pairs sums in feature space, on any machine (cuda/machine.hpp): squares of the
// cross-products of all columns laid side by side, squared and summed by pairs of blocks. No p x p matrix is stored.
// All float64: the debiased form subtracts sums of the size of the result.
#pragma once

#include "cuda/columns.hpp"
#include "cuda/pair_sums.hpp"

namespace simkit::cuda {

// A column of some block; z = (x weight - shift) scale.
struct ColumnPlace {
    const std::byte* data;
    Index stride;
    Dtype dtype;
    double shift, scale;
    const double* weight;  // [n] or null
};
static_assert(kSentAs<ColumnPlace, 48> && offsetof(ColumnPlace, dtype) == 16 && offsetof(ColumnPlace, weight) == 40);

// Columns of several blocks as the rows of an operand.
struct ColumnTable {
    const ColumnPlace* columns;  // [rows]
    Index rows, depth;

    SIMKIT_BOTH bool deep() const { return false; }

    template <class T>
    SIMKIT_BOTH T element(Index r, Index k) const {
        const ColumnPlace& column = columns[r];
        double x = wide_value(column.data + k * column.stride, column.dtype);
        if (column.weight) x = rounded_product(x, column.weight[k]);
        return static_cast<T>((x - column.shift) * column.scale);
    }
};

// A rectangle of a square that belongs to one pair of blocks.
struct Share {
    Index square, i0, i1, j0, j1;  // of the batch; rows and columns within the square
    Index a, b;
    double weight;
};
static_assert(kSentAs<Share, 64> && offsetof(Share, weight) == 56);

// What every thread of a block has of one sum.
template <int Threads>
struct SharesOfSum {
    double of[Threads];

    SIMKIT_BOTH double sum() const {
        double sum = 0.0;
        for (int thread = 0; thread < Threads; ++thread) sum += of[thread];
        return sum;
    }
};

// sums [shares] = the sum of the squares of a rectangle's entries, each joined from its groups. One program block each.
struct SumSquares {
    static constexpr int kThreads = 128, kResident = 4;
    using Shared = SharesOfSum<kThreads>;
    struct Registers {};

    const Share* shares;
    const double* parts;  // [groups, count, width, width]
    Index count, groups, width;
    double* sums;

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers&) const {
        const Share& share = shares[number];
        if (k == 0) {
            const Index columns = share.j1 - share.j0, all = (share.i1 - share.i0) * columns;
            double sum = 0.0;
            for (Index at = thread; at < all; at += kThreads) {
                const Index cell = (share.i0 + at / columns) * width + share.j0 + at % columns;
                double value = 0.0;
                for (Index group = 0; group < groups; ++group)
                    value += parts[(group * count + share.square) * width * width + cell];
                sum += value * value;
            }
            shared.of[thread] = sum;
            return true;
        }
        if (thread == 0) sums[number] = shared.sum();
        return false;
    }
};

// sums [cols]: of the columns of a table, kLanes threads each; float64. Program blocks: rows of the table.
struct SumColumns {
    static constexpr int kThreads = 128, kResident = 4;
    using Shared = SharesOfSum<kThreads>;
    struct Registers {};

    ColumnTable table;
    double* sums;

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers&) const {
        if (k == 0) {
            double sum = 0.0;
            for (Index i = thread; i < table.depth; i += kThreads) sum += table.element<double>(number, i);
            shared.of[thread] = sum;
            return true;
        }
        if (thread == 0) sums[number] = shared.sum();
        return false;
    }
};

// Of every sample s and the columns [first, first + cols) of a block: norms [n] = |z_s|^2 and sums [n] = the sum of row
// s of K without the diagonal, z_s . (sum of all z) - |z_s|^2. Program blocks: pieces(n, kThreads).
struct RowsOfBlock {
    static constexpr int kThreads = 64, kResident = 4;
    struct Shared {};
    struct Registers {};

    ColumnTable table;
    const double* totals;  // [table.rows]
    Index first, cols;
    double *norms, *sums;

    SIMKIT_BOTH bool step(Index number, int thread, int, Shared&, Registers&) const {
        const Index i = number * kThreads + thread;
        if (i >= table.depth) return false;
        double norm = 0.0, sum = 0.0;
        for (Index c = first; c < first + cols; ++c) {
            const double z = table.element<double>(c, i);
            norm += z * z;
            sum += z * totals[c];
        }
        norms[i] = norm;
        sums[i] = sum - norm;
        return false;
    }
};

// The columns of all blocks side by side, and the squares of their cross-products that are asked for: at least one.
class FeatureSquares {
  public:
    static constexpr Index kWidth = CrossSquares<double, 4, false, ColumnTable>::kWidth;

    explicit FeatureSquares(const PlacedProblem& problem) : problem_(problem) {
        for (const PlacedBlock& block : problem.blocks) {
            const Index first = begin(blocks());
            ends_.push_back(first + block.view.x.cols);
        }
        list_squares();
    }

    Index blocks() const { return static_cast<Index>(ends_.size()); }
    Index begin(Index block) const { return block ? ends_[block - 1] : 0; }
    Index end(Index block) const { return ends_[block]; }
    Index columns() const { return ends_.back(); }
    Index count() const { return static_cast<Index>(places_.size()); }
    const std::vector<SquarePlace>& places() const { return places_; }
    // Of a square, at most.
    Index most_shares() const { return most_; }

    // The shares of squares [first, first + count), which are numbered from there on.
    std::vector<Share> shares(Index first, Index count) const {
        const auto before = [](const Share& share, Index square) { return share.square < square; };
        const auto from = std::lower_bound(shares_.begin(), shares_.end(), first, before);
        std::vector<Share> found(from, std::lower_bound(from, shares_.end(), first + count, before));
        for (Share& share : found) share.square -= first;
        return found;
    }

  private:
    // Squares of columns [i0, i1) with [j0, j1), cut by pairs of blocks, unless no such pair is formed; of those on the
    // diagonal what lies above it.
    void add_square(Index i0, Index i1, Index j0, Index j1) {
        const Index number = count();
        const std::size_t before = shares_.size();
        for (Index a = block_of(i0); a < blocks() && begin(a) < i1; ++a)
            for (Index b = i0 == j0 ? a : block_of(j0); b < blocks() && begin(b) < j1; ++b) {
                if (!problem_.formed(a, b)) continue;
                const Share share{number,
                                  larger(begin(a), i0) - i0,
                                  smaller(ends_[a], i1) - i0,
                                  larger(begin(b), j0) - j0,
                                  smaller(ends_[b], j1) - j0,
                                  a,
                                  b,
                                  a == b && i0 != j0 ? 2.0 : 1.0};  // the other half of a block's own square
                shares_.push_back(share);
            }
        if (shares_.size() == before) return;
        places_.push_back({i0, j0});
        most_ = larger(most_, static_cast<Index>(shares_.size() - before));
    }

    Index block_of(Index column) const { return std::upper_bound(ends_.begin(), ends_.end(), column) - ends_.begin(); }

    void add_triangle(Index first, Index end) {
        for (Index i = first; i < end; i += kWidth)
            for (Index j = i; j < end; j += kWidth)
                add_square(i, smaller(end, i + kWidth), j, smaller(end, j + kWidth));
    }

    void list_squares() {
        const Index all = columns(), middle = ends_[problem_.left - 1];
        if (problem_.left == blocks()) return add_triangle(0, all);
        for (Index i = 0; i < middle; i += kWidth)
            for (Index j = middle; j < all; j += kWidth)
                add_square(i, smaller(middle, i + kWidth), j, smaller(all, j + kWidth));
        for (Index b = 0; b < blocks(); ++b) add_triangle(begin(b), ends_[b]);
    }

    const PlacedProblem& problem_;
    std::vector<Index> ends_;  // of the blocks' columns
    std::vector<SquarePlace> places_;
    std::vector<Share> shares_;  // in the order of their squares
    Index most_ = 0;
};

// The columns of all blocks, whose views lie on the machine.
inline std::vector<ColumnPlace> all_columns(const PlacedProblem& problem) {
    std::vector<ColumnPlace> columns;
    for (const PlacedBlock& block : problem.blocks) {
        const MatrixView& x = block.view.x;
        for (Index k = 0; k < x.cols; ++k)
            columns.push_back({x.data + k * x.col_stride, x.row_stride, x.dtype, block.shift[k], block.view.scale,
                               block.view.row_scale});
    }
    return columns;
}

// p [m, m] += the squares of a batch, joined from its groups.
template <class M>
void add_squares(M& machine, const std::vector<Share>& shares, const double* parts, Index count, Index groups, Index m,
                 std::vector<double>& p) {
    const Index many = static_cast<Index>(shares.size());
    const auto held = sent(machine, shares);
    auto sums = machine.template array<double>(many);
    machine.run(SumSquares{held.data(), parts, count, groups, FeatureSquares::kWidth, sums.data()}, many);
    const auto found = fetched<M, double>(machine, sums, many);
    for (Index k = 0; k < many; ++k) p[shares[k].a * m + shares[k].b] += shares[k].weight * found[k];
}

// What is subtracted from the products of debiased sums: by pairs of blocks, and by blocks.
struct Diagonals {
    std::vector<double> norms, rows, totals;
};

// K~ = K - diag(a), a [m, n]. Its row sums r [m, n] are -a but for the rounding of the means, which counts beside a
// small result.
template <class M>
Diagonals diagonals(M& machine, const PlacedProblem& problem, const typename M::template Array<double>& a,
                    const typename M::template Array<double>& r) {
    const Index m = problem.m(), n = problem.n();
    Diagonals out{panel_products(machine, a, m, problem.left, n), panel_products(machine, r, m, problem.left, n),
                  std::vector<double>(m)};
    const auto sums = fetched<M, double>(machine, r, m * n);
    for (Index b = 0; b < m; ++b)
        out.totals[b] = std::accumulate(sums.begin() + b * n, sums.begin() + (b + 1) * n, 0.0);
    return out;
}

// p: |X_a^T X_b|^2 [m, m], upper triangle; the diagonals where debiased.
inline PairSums feature_sums(const PlacedProblem& problem, const std::vector<double>& p, const Diagonals& of) {
    const Index m = problem.m();
    const double dn = static_cast<double>(problem.n());
    const auto centred = [&](Index a, Index b) {
        const Index at = smaller(a, b) * m + larger(a, b);
        if (!problem.debiased || !problem.formed(a, b)) return p[at];
        return p[at] - of.norms[at] - 2.0 / (dn - 2.0) * of.rows[at] +
               of.totals[a] * of.totals[b] / ((dn - 1.0) * (dn - 2.0));
    };
    return asked_for(problem, p, centred);
}

template <bool Tensor, class M>
class FeatureSums {
  public:
    using Squares = CrossSquares<double, 4, false, ColumnTable, Tensor>;
    static constexpr Index kWidth = Squares::kWidth;

    FeatureSums(M& machine, const PlacedProblem& problem)
        : machine_(machine),
          problem_(problem),
          squares_(problem),
          columns_(sent(machine, all_columns(problem))),
          table_{columns_.data(), squares_.columns(), problem.n()} {}

    PairSums sums() {
        const std::vector<double> p = products();
        return feature_sums(problem_, p, problem_.debiased ? debias() : Diagonals{});
    }

  private:
    // |X_a^T X_b|^2 [m, m], upper triangle, of the pairs that were asked for.
    std::vector<double> products() {
        const Index m = problem_.m(), all = squares_.count(), cells = kWidth * kWidth;
        const Index group = group_rows(problem_.n(), all, cells * 8), groups = pieces(problem_.n(), group);
        constexpr Index place = sizeof(ColumnPlace), share = sizeof(Share) + sizeof(double);
        const Index room = problem_.bytes - squares_.columns() * place - all * static_cast<Index>(sizeof(SquarePlace));
        const Index each = groups * cells * 8 + squares_.most_shares() * share;
        const Index batch = larger(1, smaller(all, room / each));
        const auto places = sent(machine_, squares_.places());
        auto parts = machine_.template array<double>(groups * batch * cells);
        std::vector<double> p(m * m, 0.0);
        for (Index first = 0; first < all; first += batch) {
            const Index count = smaller(batch, all - first);
            machine_.run(Squares{table_, places.data() + first, count, group, parts.data()}, count * groups);
            add_squares(machine_, squares_.shares(first, count), parts.data(), count, groups, m, p);
        }
        return p;
    }

    Diagonals debias() {
        const Index m = problem_.m(), n = problem_.n();
        auto columns = machine_.template array<double>(squares_.columns());
        auto a = machine_.template array<double>(m * n), r = machine_.template array<double>(m * n);
        machine_.run(SumColumns{table_, columns.data()}, squares_.columns());
        for (Index b = 0; b < m; ++b)
            machine_.run(RowsOfBlock{table_, columns.data(), squares_.begin(b), squares_.end(b) - squares_.begin(b),
                                     a.data() + b * n, r.data() + b * n},
                         pieces(n, RowsOfBlock::kThreads));
        return diagonals(machine_, problem_, a, r);
    }

    M& machine_;
    const PlacedProblem& problem_;
    FeatureSquares squares_;
    typename M::template Array<ColumnPlace> columns_;
    ColumnTable table_;
};

template <class M>
PairSums pair_sums_feature(M& machine, const PlacedProblem& problem) {
    return on_cores(problem.tensor,
                    [&](auto tensor) { return FeatureSums<decltype(tensor)::value, M>(machine, problem).sums(); });
}

}  // namespace simkit::cuda
