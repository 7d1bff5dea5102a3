// All-pairs sums in sample space, on any machine (cuda/machine.hpp).
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/rounding.hpp"
#include "cuda/gram.hpp"
#include "cuda/machine.hpp"
#include "cuda/pilot.hpp"
#include "cuda/placed.hpp"
#include "cuda/row_centres.hpp"

namespace simkit::cuda {

inline std::vector<TilePlace> upper_tiles(Index tiles) {
    std::vector<TilePlace> places;
    for (Index i = 0; i < tiles; ++i)
        for (Index j = i; j < tiles; ++j) places.push_back({i, j});
    return places;
}

// The pairs of strips of `width` rows of a panel that hold a pair that is asked for.
inline std::vector<StripPair> strip_pairs(Index m, Index left, Index width) {
    std::vector<StripPair> pairs;
    for (Index a = 0; a < pieces(m, width); ++a)
        for (Index b = a; b < pieces(m, width); ++b)
            if (left == m || a == b || (a * width < left && (b + 1) * width > left)) pairs.push_back({a, b});
    return pairs;
}

// Which strips of rows the tiles of groups, `size` each, have sums of; a group's shares are one after another.
struct RowShares {
    std::vector<RowShare> shares;
    std::vector<std::uint32_t> sides;
    std::vector<Index> groups = {0};  // where a group's shares begin, and the last one's end
};
inline RowShares row_shares(const std::vector<TilePlace>& places, Index size) {
    RowShares found;
    std::vector<std::pair<Index, std::uint32_t>> sides;  // strips and sides of a group
    const Index all = static_cast<Index>(places.size());
    for (Index first = 0; first < all; first += size) {
        sides.clear();
        for (Index t = first; t < smaller(all, first + size); ++t) {
            const auto side = static_cast<std::uint32_t>(2 * (t - first));
            sides.emplace_back(places[t].row, side);
            if (!places[t].diagonal()) sides.emplace_back(places[t].column, side + 1);
        }
        std::stable_sort(sides.begin(), sides.end(), [](const auto& x, const auto& y) { return x.first < y.first; });
        const auto begin = found.shares.size();
        for (const auto& [strip, side] : sides) {
            const Index at = static_cast<Index>(found.sides.size());
            if (found.shares.size() == begin || found.shares.back().strip != strip)
                found.shares.push_back({strip, at, at});
            found.shares.back().end = at + 1;
            found.sides.push_back(side);
        }
        found.groups.push_back(static_cast<Index>(found.shares.size()));
    }
    return found;
}

// What a pass leaves on the host: as Sums in cpu/hsic_sample.cpp, with the products of row sums.
struct SampleSums {
    std::vector<double> p, rr;        // [m, m], the pairs that were asked for and the diagonal
    std::vector<double> r, diagonal;  // [m, n]
};

// Bytes of workspace that a tile takes, and that all of them share.
template <class T, int R>
Index tile_bytes(Index m) {
    constexpr Index width = kSide * R, cuts = pieces(width * width, PanelProducts<T>::kPiece);
    return m * width * (width * static_cast<Index>(sizeof(T)) + 16) + cuts * m * m * 8;
}
template <class T, class Value>
Index shared_bytes(Index m, Index n) {
    // Sums and diagonals of rows; the means of rows, by which float64 tiles may be centred and those of 16-bit rows
    // are; the norms of rows.
    constexpr bool linear = std::is_same_v<Value, LinearValue>;
    constexpr Index rows = 2 + (sizeof(T) == 8 || !linear) + std::is_same_v<Value, KernelValue>;
    return 8 * (rows * m * n + (2 + pieces(n, 2048)) * m * m);
}

// R R^T [m, m] of r [m, n], on the machine: the products of a panel of one tile.
template <class M>
typename M::template Array<double> panel_products_there(M& machine, const typename M::template Array<double>& r,
                                                        Index m, Index left, Index n) {
    using Pairs = PanelProducts<double>;
    const Index cuts = pieces(n, Pairs::kPiece);
    const auto strips = strip_pairs(m, left, Pairs::kWidth);
    const auto pairs = sent(machine, strips);
    const auto one = sent(machine, std::vector<TilePlace>{{0, 0}});
    auto parts = machine.template array<double>(cuts * m * m);
    auto products = machine.template array<double>(m * m);
    machine.zero(products, m * m);
    machine.run(Pairs{r.data(), pairs.data(), m, n, 1, parts.data()}, static_cast<Index>(strips.size()) * cuts);
    machine.run(AddParts{one.data(), parts.data(), m, left, 1, cuts, products.data()},
                pieces(m * m, AddParts::kThreads));
    return products;
}

template <class M>
std::vector<double> panel_products(M& machine, const typename M::template Array<double>& r, Index m, Index left,
                                   Index n) {
    return fetched<M, double>(machine, panel_products_there(machine, r, m, left, n), m * m);
}

// What a pass leaves on the machine: as SampleSums.
template <class M>
struct SumsThere {
    typename M::template Array<double> p, rr, r, diagonal;  // [m, m], [m, m], [m, n], [m, n]
};

template <class Blocks>
void widest_first(Blocks& blocks) {
    std::stable_sort(blocks.begin(), blocks.end(),
                     [](const auto& x, const auto& y) { return x.rows.depth > y.rows.depth; });
}

// The blocks of a problem for GramTiles, the widest first; held takes the arrays that they point to.
template <class Value, class M>
std::vector<GramBlock<Value>> gram_blocks(M& machine, const PlacedProblem& problem, const Kernels<M>& kernels,
                                          const std::vector<RowMeans>& means, bool single,
                                          std::vector<typename M::template Array<double>>& held) {
    std::vector<GramBlock<Value>> blocks;
    for (Index b = 0; b < problem.m(); ++b) {
        Centre centre{nullptr, means[b].mean};
        if (!means[b].values.empty()) centre.means = held.emplace_back(sent(machine, means[b].values)).data();
        const Operand rows = samples_of(problem.blocks[b], single);
        if constexpr (std::is_same_v<Value, KernelValue>)
            blocks.push_back({rows, {kernels.of(b), centre}, b});
        else
            blocks.push_back({rows, {centre}, b});
    }
    widest_first(blocks);
    return blocks;
}

// The same of 16-bit layers, whose rows are multiplied as they lie; held takes the centres of their rows.
template <Dtype Type, class M>
std::vector<GramBlock<UncentredValue<Type>>> uncentred_blocks(M& machine, const PlacedProblem& problem,
                                                              std::vector<typename M::template Array<double>>& held) {
    std::vector<GramBlock<UncentredValue<Type>>> blocks;
    for (Index b = 0; b < problem.m(); ++b) {
        const PlacedBlock& block = problem.blocks[b];
        const Operand rows = samples_of(block, false);
        const double square = rows.scale * rows.scale;
        const auto& centres = held.emplace_back(machine.template array<double>(rows.rows));
        machine.run(RowCentres{rows, square, centres.data()}, pieces(rows.rows, RowCentres::kRows));
        const double mean = std::inner_product(block.shift, block.shift + rows.depth, block.shift, 0.0);
        blocks.push_back({rows, {{centres.data(), square * mean}, square}, b});
    }
    widest_first(blocks);
    return blocks;
}

// One pass over tiles of the plane, `most` of them at once at most.
template <class T, int R, bool Plain, class Value, bool Tensor, class M>
class SampleWalk {
  public:
    using Tiles = GramTiles<T, R, Plain, Value, Tensor>;
    // Float32 panels stay with plain products: a block's product with itself sums squares, of which tensor cores cut a
    // little more than of mixed signs, and CKA would be off by 4e-8.
    using Pairs = PanelProducts<T, Tensor && std::is_same_v<T, double>>;

    SampleWalk(M& machine, const PlacedProblem& problem, Index most)
        : machine_(machine),
          problem_(problem),
          m_(problem.m()),
          n_(problem.n()),
          group_(larger(1, smaller(smaller(most, kMostTiles), room() / tile_bytes<T, R>(m_)))),
          strips_(strip_pairs(m_, problem.left, Pairs::kWidth)),
          pairs_(sent(machine, strips_)),
          panel_(machine.template array<T>(group_ * m_ * kSize)),
          sums_(machine.template array<double>(group_ * m_ * 2 * Tiles::kWidth)),
          parts_(machine.template array<double>(group_ * kCuts * m_ * m_)),
          diagonal_(machine.template array<double>(m_ * n_)),
          r_(machine.template array<double>(m_ * n_)),
          p_(machine.template array<double>(m_ * m_)) {
        machine.zero(r_, m_ * n_);
        machine.zero(p_, m_ * m_);
    }

    // Adds the tiles at `places` of all blocks, in that order.
    void add(const std::vector<GramBlock<Value>>& ordered, const std::vector<TilePlace>& places) {
        const auto blocks = sent(machine_, ordered);
        const auto tiles = sent(machine_, places);
        RowShares of_rows = row_shares(places, group_);
        const auto shares = sent(machine_, std::move(of_rows.shares));
        const auto sides = sent(machine_, std::move(of_rows.sides));
        const Index all = static_cast<Index>(places.size());
        for (Index first = 0; first < all; first += group_) {
            const Index count = smaller(group_, all - first);
            const Index* group = &of_rows.groups[first / group_];
            const TilePlace* here = tiles.data() + first;
            machine_.run(Tiles{blocks.data(), here, m_, n_, count, problem_.debiased, panel_.data(), sums_.data(),
                               diagonal_.data()},
                         m_ * count);
            machine_.run(AddRowSums{shares.data() + group[0], sides.data(), sums_.data(), m_, n_, group[1] - group[0],
                                    Tiles::kWidth, r_.data()},
                         m_ * (group[1] - group[0]));
            machine_.run(Pairs{panel_.data(), pairs_.data(), m_, kSize, count, parts_.data()},
                         static_cast<Index>(strips_.size()) * count * kCuts);
            machine_.run(AddParts{here, parts_.data(), m_, problem_.left, count, kCuts, p_.data()},
                         pieces(m_ * m_, AddParts::kThreads));
            machine_.pause();
        }
    }

    // What the walk has found, which ends it.
    SumsThere<M> sums_there() {
        auto rr = panel_products_there(machine_, r_, m_, problem_.left, n_);
        return {std::move(p_), std::move(rr), std::move(r_), std::move(diagonal_)};
    }

    SampleSums sums() {
        const SumsThere<M> there = sums_there();
        return {fetched<M, double>(machine_, there.p, m_ * m_), fetched<M, double>(machine_, there.rr, m_ * m_),
                fetched<M, double>(machine_, there.r, m_ * n_), fetched<M, double>(machine_, there.diagonal, m_ * n_)};
    }

  private:
    static_assert(Tiles::kWidth <= AddRowSums::kThreads);
    static constexpr Index kMostTiles = Index{1} << 31;  // whose sides are numbered
    static constexpr Index kSize = Tiles::kWidth * Tiles::kWidth, kCuts = pieces(kSize, Pairs::kPiece);

    Index room() const { return larger(problem_.bytes - shared_bytes<T, Value>(m_, n_), 0); }

    M& machine_;
    const PlacedProblem& problem_;
    Index m_, n_, group_;
    std::vector<StripPair> strips_;
    typename M::template Array<StripPair> pairs_;
    typename M::template Array<T> panel_;
    typename M::template Array<double> sums_, parts_, diagonal_, r_, p_;
};

// centred(a, b) of the pairs that were asked for and of every block with itself, whose products p [m, m] were.
template <class Centred>
PairSums asked_for(const PlacedProblem& problem, const std::vector<double>& p, const Centred& centred) {
    const Index m = problem.m(), left = problem.left, right = left == m ? m : m - left;
    PairSums out{std::vector<double>(left * right), std::vector<double>(m), std::vector<double>(m)};
    for (Index a = 0; a < left; ++a)
        for (Index b = 0; b < right; ++b) out.values[a * right + b] = centred(a, left == m ? b : left + b);
    for (Index a = 0; a < m; ++a) {
        out.self[a] = centred(a, a);
        out.raw[a] = p[a * m + a];
    }
    return out;
}

// P, r -> S: the centring terms, in float64.
inline PairSums centre_sums(const PlacedProblem& problem, const SampleSums& sums) {
    const Index m = problem.m(), n = problem.n();
    const double dn = static_cast<double>(n);
    const double cross = problem.debiased ? 2.0 / (dn - 2.0) : 2.0 / dn;
    const double both = problem.debiased ? 1.0 / ((dn - 1.0) * (dn - 2.0)) : 1.0 / (dn * dn);
    std::vector<double> totals(m);
    for (Index a = 0; a < m; ++a)
        totals[a] = std::accumulate(sums.r.begin() + a * n, sums.r.begin() + (a + 1) * n, 0.0);
    const auto centred = [&](Index a, Index b) {
        const Index at = smaller(a, b) * m + larger(a, b);
        return sums.p[at] - cross * sums.rr[at] + both * (totals[a] * totals[b]);
    };
    return asked_for(problem, sums.p, centred);
}

// A float64 self-product below this share of <K, K> has lost more digits than it may: K is centred by the row means
// that the pass has found, and the pass done again.
constexpr double kCancelled = 1e-4;

// As rounded in cpu/hsic_sample.cpp.
inline std::vector<double> rounded(const PlacedProblem& problem, const std::vector<RowMeans>& means,
                                   const SampleSums& sums) {
    const Index m = problem.m(), n = problem.n();
    std::vector<double> squares(m);
    for (Index a = 0; a < m; ++a) {
        const Kernel kernel = problem.blocks[a].view.kernel;
        const std::vector<double>& centre = means[a].values;
        double trace = 0.0, own = 0.0;
        for (Index i = 0; i < n; ++i) {
            const double value = sums.diagonal[a * n + i] + (centre.empty() ? 0.0 : 2.0 * centre[i] - means[a].mean);
            trace += std::fabs(value);
            own += value * value;
        }
        if (kernel == Kernel::linear) {
            squares[a] = trace * trace;
            continue;
        }
        squares[a] = uncentred_square(sums.p[a * m + a], sums.r.data() + a * n, centre.data(), means[a].mean, n,
                                      problem.debiased) +
                     (problem.debiased && kernel == Kernel::polynomial ? own : 0.0);
    }
    return squares;
}

// pass(means) is a walk over the whole plane; means: the first estimate.
template <class T, class Pass>
PairSums sums_by_passes(const PlacedProblem& problem, std::vector<RowMeans> means, const Pass& pass) {
    const SampleSums sums = pass(means);
    PairSums out = centre_sums(problem, sums);
    if constexpr (std::is_same_v<T, double>) {
        const Index m = problem.m(), n = problem.n();
        const std::vector<double> squares = rounded(problem, means, sums);
        bool cancelled = false;
        for (Index a = 0; a < m; ++a) cancelled |= out.self[a] < kCancelled * out.raw[a];
        if (cancelled) {
            for (Index a = 0; a < m; ++a) means[a].absorb(sums.r.data() + a * n, n, problem.debiased);
            out = centre_sums(problem, pass(means));
        }
        for (Index a = 0; a < m; ++a)
            out.raw[a] = std::max(out.raw[a], std::numeric_limits<double>::epsilon() * squares[a]);
    }
    return out;
}

// A walk over the whole upper triangle.
template <class T, int R, bool Plain, class Value, bool Tensor, class M>
SampleWalk<T, R, Plain, Value, Tensor, M> whole_walk(M& machine, const PlacedProblem& problem,
                                                     const Kernels<M>& kernels, const std::vector<RowMeans>& means) {
    const std::vector<TilePlace> places = upper_tiles(pieces(problem.n(), kSide * R));
    SampleWalk<T, R, Plain, Value, Tensor, M> walk(machine, problem, static_cast<Index>(places.size()));
    std::vector<typename M::template Array<double>> held;
    walk.add(gram_blocks<Value>(machine, problem, kernels, means, sizeof(T) == 4, held), places);
    return walk;
}

template <class T, int R, bool Plain, class Value, bool Tensor, class M>
PairSums sums_by_walk(M& machine, const PlacedProblem& problem) {
    const Kernels<M> kernels(machine, problem);
    return sums_by_passes<T>(problem, kernels.row_means(problem), [&](const std::vector<RowMeans>& means) {
        return whole_walk<T, R, Plain, Value, Tensor>(machine, problem, kernels, means).sums();
    });
}

// Float32 tiles are 128 wide, float64 ones 64. Non-linear kernels take float64 products.
template <bool Tensor, class M>
PairSums sums_on(M& machine, const PlacedProblem& problem, bool double_products) {
    const auto all = [&](auto&& holds) { return std::all_of(problem.blocks.begin(), problem.blocks.end(), holds); };
    if (!all([](const PlacedBlock& block) { return block.linear(); }))
        return sums_by_walk<double, 4, false, KernelValue, Tensor>(machine, problem);
    if (double_products) return sums_by_walk<double, 4, false, LinearValue, Tensor>(machine, problem);
    if (all([](const PlacedBlock& block) { return block.narrow && block.view.x.dtype == Dtype::f32; }))
        return sums_by_walk<float, 8, true, LinearValue, Tensor>(machine, problem);
    return sums_by_walk<float, 8, false, LinearValue, Tensor>(machine, problem);
}

// 16-bit layers of one type, as they lie; see PairProblem.
template <Dtype Type, class M>
PairSums sums_of_halves(M& machine, const PlacedProblem& problem) {
    using Walk = SampleWalk<float, 8, false, UncentredValue<Type>, true, M>;
    const std::vector<TilePlace> places = upper_tiles(pieces(problem.n(), Walk::Tiles::kWidth));
    Walk walk(machine, problem, static_cast<Index>(places.size()));
    std::vector<typename M::template Array<double>> held;
    walk.add(uncentred_blocks<Type>(machine, problem, held), places);
    return centre_sums(problem, walk.sums());
}

template <class M>
PairSums pair_sums_sample(M& machine, const PlacedProblem& problem, bool double_products) {
    if (problem.halves)
        return problem.blocks.front().view.x.dtype == Dtype::bf16 ? sums_of_halves<Dtype::bf16>(machine, problem)
                                                                  : sums_of_halves<Dtype::f16>(machine, problem);
    return on_cores(problem.tensor,
                    [&](auto tensor) { return sums_on<decltype(tensor)::value>(machine, problem, double_products); });
}

}  // namespace simkit::cuda
