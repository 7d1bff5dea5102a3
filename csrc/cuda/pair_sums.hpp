// All-pairs sums in sample space, for any machine that runs programs: a device, or the host in tests.
//
// A machine M offers
//   M::Array<T> with data(), [count] elements that start out as anything
//   array<T>(count), send(array, values, count), fetch(values, array, count), zero(array, count)
//   run(program, blocks)
// all in the order of the calls; what `fetch` fills is there when it returns.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <type_traits>
#include <vector>

#include "cuda/gram.hpp"
#include "ops/hsic.hpp"

namespace simkit::cuda {

// A block whose view, shift and row_scale lie on the machine, with the shift in float32 too, and on the host.
struct PlacedBlock {
    BlockView view;
    const float* narrow_shift;
    bool narrow;
    const double* shift;  // on the host
};

inline Operand samples_of(const PlacedBlock& block, bool single) {
    const BlockView& v = block.view;
    const bool narrow = single && block.narrow;
    return {v.x.data,
            v.x.rows,
            v.x.cols,
            v.x.row_stride,
            v.x.col_stride,
            v.x.dtype,
            narrow,
            false,
            v.shift,
            v.row_scale,
            narrow ? block.narrow_shift : nullptr,
            v.scale};
}

struct PlacedProblem {
    std::vector<PlacedBlock> blocks;
    Index left;  // as in PairProblem
    bool debiased;
    Index bytes;  // of workspace, about

    Index n() const { return blocks.front().view.x.rows; }
    Index m() const { return static_cast<Index>(blocks.size()); }
};

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

template <class M, class T>
typename M::template Array<T> sent(M& machine, const std::vector<T>& values) {
    auto array = machine.template array<T>(static_cast<Index>(values.size()));
    machine.send(array, values.data(), static_cast<Index>(values.size()));
    return array;
}

template <class M, class T>
std::vector<T> fetched(M& machine, const typename M::template Array<T>& array, Index count) {
    std::vector<T> values(static_cast<std::size_t>(count));
    machine.fetch(values.data(), array, count);
    return values;
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
inline Index shared_bytes(Index m, Index n) { return 8 * (2 * m * n + (2 + pieces(n, 2048)) * m * m); }

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

template <class T, int R, bool Plain, class M>
class SampleWalk {
  public:
    using Tiles = GramTiles<T, R, Plain>;
    using Pairs = PanelProducts<T>;

    SampleWalk(M& machine, const PlacedProblem& problem) : machine_(machine), problem_(problem) {}

    // One pass over the upper triangle; means [m][n] and mean [m] may be empty.
    SampleSums walk(const std::vector<std::vector<double>>& means, const std::vector<double>& mean) {
        const Index m = problem_.m(), n = problem_.n();
        std::vector<typename M::template Array<double>> held;
        for (const auto& of : means) held.push_back(sent(machine_, of));
        const auto blocks = sent(machine_, ordered_blocks(held, mean));
        const auto places = upper_tiles(pieces(n, Tiles::kWidth));
        const auto tiles = sent(machine_, places);
        const auto strips = strip_pairs(m, problem_.left, Pairs::kWidth);
        const auto pairs = sent(machine_, strips);
        const Index all = static_cast<Index>(places.size());
        const Index room = larger(problem_.bytes - shared_bytes(m, n), 0) / tile_bytes<T, R>(m);
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
    std::vector<GramBlock> ordered_blocks(const std::vector<typename M::template Array<double>>& means,
                                          const std::vector<double>& mean) const {
        std::vector<GramBlock> blocks;
        for (Index b = 0; b < problem_.m(); ++b)
            blocks.push_back({samples_of(problem_.blocks[b], sizeof(T) == 4),
                              {means.empty() ? nullptr : means[b].data(), means.empty() ? 0.0 : mean[b]},
                              b});
        std::stable_sort(blocks.begin(), blocks.end(),
                         [](const GramBlock& x, const GramBlock& y) { return x.rows.depth > y.rows.depth; });
        return blocks;
    }

    M& machine_;
    const PlacedProblem& problem_;
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

template <class T, int R, bool Plain, class M>
PairSums sums_by_walk(M& machine, const PlacedProblem& problem) {
    SampleWalk<T, R, Plain, M> walk(machine, problem);
    const SampleSums sums = walk.walk({}, {});
    PairSums out = centre_sums(problem, sums);
    if constexpr (std::is_same_v<T, double>) {
        const Index m = problem.m(), n = problem.n();
        bool cancelled = false;
        for (Index a = 0; a < m; ++a) cancelled |= out.self[a] < kCancelled * out.raw[a];
        if (!cancelled) return out;
        const double dn = static_cast<double>(n), each = problem.debiased ? dn - 2.0 : dn,
                     all = problem.debiased ? dn - 1.0 : dn;
        std::vector<std::vector<double>> means;
        std::vector<double> mean;
        for (Index a = 0; a < m; ++a) {
            means.emplace_back(sums.r.begin() + a * n, sums.r.begin() + (a + 1) * n);
            mean.push_back(std::accumulate(means[a].begin(), means[a].end(), 0.0) / (each * all));
            for (double& value : means[a]) value /= each;
        }
        out = centre_sums(problem, walk.walk(means, mean));
        // K_ij is right to eps of sqrt(K_ii K_jj), and centred before it is squared: what rounding leaves is eps^2.
        for (Index a = 0; a < m; ++a)
            out.raw[a] = std::max(out.raw[a], std::numeric_limits<double>::epsilon() * sums.traces[a] * sums.traces[a]);
    }
    return out;
}

// Float32 tiles are 128 wide, float64 ones 64.
template <class M>
PairSums pair_sums_sample(M& machine, const PlacedProblem& problem, bool double_products) {
    if (double_products) return sums_by_walk<double, 4, false>(machine, problem);
    const bool plain = std::all_of(problem.blocks.begin(), problem.blocks.end(), [](const PlacedBlock& block) {
        return block.narrow && block.view.x.dtype == Dtype::f32;
    });
    return plain ? sums_by_walk<float, 8, true>(machine, problem) : sums_by_walk<float, 8, false>(machine, problem);
}

}  // namespace simkit::cuda
