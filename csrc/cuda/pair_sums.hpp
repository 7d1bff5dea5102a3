// All-pairs sums in sample space, on any machine (cuda/machine.hpp).
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <type_traits>
#include <vector>

#include "cuda/gram.hpp"
#include "cuda/machine.hpp"
#include "cuda/pilot.hpp"
#include "cuda/placed.hpp"

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

// What a pass leaves on the host: as Sums in cpu/hsic_sample.cpp, with the products of row sums.
struct SampleSums {
    std::vector<double> p, rr;      // [m, m], the pairs that were asked for and the diagonal
    std::vector<double> r, traces;  // [m, n], [m]
};

// Bytes of workspace that a tile takes, and that all of them share.
template <class T, int R>
Index tile_bytes(Index m) {
    constexpr Index width = kSide * R, cuts = pieces(width * width, PanelProducts<T>::kPiece);
    return m * width * (width * static_cast<Index>(sizeof(T)) + 16) + cuts * m * m * 8;
}
template <class T, class Value>
Index shared_bytes(Index m, Index n) {
    // Sums and diagonals of rows; the means of rows, by which float64 tiles may be centred; the norms of rows.
    constexpr Index rows = 2 + (sizeof(T) == 8) + std::is_same_v<Value, KernelValue>;
    return 8 * (rows * m * n + (2 + pieces(n, 2048)) * m * m);
}

// R R^T [m, m] of r [m, n]: the products of a panel of one tile.
template <class M>
std::vector<double> panel_products(M& machine, const typename M::template Array<double>& r, Index m, Index left,
                                   Index n) {
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
    return fetched<M, double>(machine, products, m * m);
}

template <class T, int R, bool Plain, class Value, bool Tensor, class M>
class SampleWalk {
  public:
    using Tiles = GramTiles<T, R, Plain, Value, Tensor>;
    // Float32 panels stay with plain products: a block's product with itself sums squares, of which tensor cores cut a
    // little more than of mixed signs, and CKA would be off by 4e-8.
    using Pairs = PanelProducts<T, Tensor && std::is_same_v<T, double>>;

    SampleWalk(M& machine, const PlacedProblem& problem, const Kernels<M>& kernels)
        : machine_(machine), problem_(problem), kernels_(kernels) {}

    // One pass over the upper triangle; means [m].
    SampleSums walk(const std::vector<RowMeans>& means) {
        const Index m = problem_.m(), n = problem_.n();
        std::vector<typename M::template Array<double>> held;
        const auto blocks = sent(machine_, ordered_blocks(means, held));
        const auto places = upper_tiles(pieces(n, Tiles::kWidth));
        const auto tiles = sent(machine_, places);
        const auto strips = strip_pairs(m, problem_.left, Pairs::kWidth);
        const auto pairs = sent(machine_, strips);
        const Index all = static_cast<Index>(places.size());
        const Index room = larger(problem_.bytes - shared_bytes<T, Value>(m, n), 0) / tile_bytes<T, R>(m);
        const Index group = larger(1, smaller(all, room)), size = Tiles::kWidth * Tiles::kWidth;
        const Index cuts = pieces(size, Pairs::kPiece);
        auto panel = machine_.template array<T>(group * m * size);
        auto sums = machine_.template array<double>(group * m * 2 * Tiles::kWidth);
        auto parts = machine_.template array<double>(group * cuts * m * m);
        auto diagonal = machine_.template array<double>(m * n);
        auto r = machine_.template array<double>(m * n);
        auto p = machine_.template array<double>(m * m);
        machine_.zero(r, m * n);
        machine_.zero(p, m * m);
        for (Index first = 0; first < all; first += group) {
            const Index count = smaller(group, all - first);
            const TilePlace* here = tiles.data() + first;
            machine_.run(
                Tiles{blocks.data(), here, m, n, count, problem_.debiased, panel.data(), sums.data(), diagonal.data()},
                m * count);
            machine_.run(AddRowSums{here, sums.data(), m, n, count, Tiles::kWidth, r.data()},
                         m * pieces(n, AddRowSums::kThreads));
            machine_.run(Pairs{panel.data(), pairs.data(), m, size, count, parts.data()},
                         static_cast<Index>(strips.size()) * count * cuts);
            machine_.run(AddParts{here, parts.data(), m, problem_.left, count, cuts, p.data()},
                         pieces(m * m, AddParts::kThreads));
        }
        SampleSums out{fetched<M, double>(machine_, p, m * m), panel_products(machine_, r, m, problem_.left, n),
                       fetched<M, double>(machine_, r, m * n), std::vector<double>(m)};
        const auto own = fetched<M, double>(machine_, diagonal, m * n);
        for (Index b = 0; b < m; ++b)
            out.traces[b] = std::accumulate(own.begin() + b * n, own.begin() + (b + 1) * n, 0.0);
        return out;
    }

  private:
    // held: takes the arrays that they point to.
    std::vector<GramBlock<Value>> ordered_blocks(const std::vector<RowMeans>& means,
                                                 std::vector<typename M::template Array<double>>& held) const {
        std::vector<GramBlock<Value>> blocks;
        for (Index b = 0; b < problem_.m(); ++b) {
            Centre centre{nullptr, means[b].mean};
            if (!means[b].values.empty()) centre.means = held.emplace_back(sent(machine_, means[b].values)).data();
            const Operand rows = samples_of(problem_.blocks[b], sizeof(T) == 4);
            if constexpr (std::is_same_v<Value, KernelValue>)
                blocks.push_back({rows, {kernels_.of(b), centre}, b});
            else
                blocks.push_back({rows, {centre}, b});
        }
        std::stable_sort(blocks.begin(), blocks.end(),
                         [](const auto& x, const auto& y) { return x.rows.depth > y.rows.depth; });
        return blocks;
    }

    M& machine_;
    const PlacedProblem& problem_;
    const Kernels<M>& kernels_;
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
        return sums.p[at] - cross * sums.rr[at] + both * totals[a] * totals[b];
    };
    return asked_for(problem, sums.p, centred);
}

// A float64 self-product below this share of <K, K> has lost more digits than it may: K is centred by the row means
// that the pass has found, and the pass done again.
constexpr double kCancelled = 1e-4;

template <class T, int R, bool Plain, class Value, bool Tensor, class M>
PairSums sums_by_walk(M& machine, const PlacedProblem& problem) {
    const Kernels<M> kernels(machine, problem);
    std::vector<RowMeans> means = kernels.row_means();
    SampleWalk<T, R, Plain, Value, Tensor, M> walk(machine, problem, kernels);
    const SampleSums sums = walk.walk(means);
    PairSums out = centre_sums(problem, sums);
    if constexpr (std::is_same_v<T, double>) {
        const Index m = problem.m(), n = problem.n();
        bool cancelled = false;
        for (Index a = 0; a < m; ++a) cancelled |= out.self[a] < kCancelled * out.raw[a];
        if (!cancelled) return out;
        for (Index a = 0; a < m; ++a) means[a].absorb(sums.r.data() + a * n, n, problem.debiased);
        out = centre_sums(problem, walk.walk(means));
        // K_ij is right to eps of sqrt(K_ii K_jj), and centred before it is squared: what rounding leaves is eps^2.
        for (Index a = 0; a < m; ++a)
            out.raw[a] = std::max(out.raw[a], std::numeric_limits<double>::epsilon() * sums.traces[a] * sums.traces[a]);
    }
    return out;
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

// tensor: by tensor cores, which the machine must have.
template <class M>
PairSums pair_sums_sample(M& machine, const PlacedProblem& problem, bool double_products, bool tensor) {
    return tensor ? sums_on<true>(machine, problem, double_products)
                  : sums_on<false>(machine, problem, double_products);
}

}  // namespace simkit::cuda
