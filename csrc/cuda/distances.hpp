// The median of all squared distances of a block's rows, on any machine (cuda/machine.hpp): passes over tiles that
// count distances between ever closer edges, and one that collects those that are left. No n x n matrix is stored.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "cuda/columns.hpp"
#include "cuda/distance_tiles.hpp"
#include "cuda/pair_sums.hpp"

namespace simkit::cuda {

// Rows that lie on the machine, for a DistanceSearch: float64 rows of z.
template <class M>
class RowsThere {
  public:
    RowsThere(M& machine, const Operand& rows)
        : machine_(machine),
          rows_(rows),
          norms_(machine.template array<double>(rows.rows)),
          tiles_(upper_tiles(pieces(rows.rows, DistanceTile::kWidth))),
          places_(sent(machine, tiles_)) {
        machine.run(RowNorms{rows, norms_.data()}, pieces(rows.rows, RowNorms::kRows));
    }

    Index count() const { return rows_.rows; }
    // Tiles that a call of `use` has, at most.
    Index most() const { return static_cast<Index>(tiles_.size()); }

    // Calls use(tiles, count) until every tile on and above the diagonal has come.
    template <class Use>
    void pass(const Use& use) const {
        use(DistanceTile{rows_, norms_.data(), places_.data()}, most());
    }

    // All distances of sampled_rows; room: as DistanceSearch takes it.
    std::vector<double> sample(Index room) const;

  private:
    M& machine_;
    Operand rows_;
    typename M::template Array<double> norms_;
    std::vector<TilePlace> tiles_;
    typename M::template Array<TilePlace> places_;
};

constexpr Index kSampledRows = 256;  // from all over, whose distances place the first edges

// Rows: as RowsThere, whose functions are all that is asked of it.
template <class M, class Rows>
class DistanceSearch {
  public:
    // most: so many distances are collected at once. room: bytes of tiles in flight, about.
    DistanceSearch(M& machine, Rows& rows, Index most, Index room)
        : machine_(machine), rows_(rows), most_(most), room_(room), pairs_(rows.count() * (rows.count() - 1) / 2) {}

    Index pairs() const { return pairs_; }

    // The distance of rank `first` among all pairs, and the next one where `second` is its rank.
    std::pair<double, double> select(Index first, Index second) {
        Part part{0.0, std::numeric_limits<double>::infinity(), 0, pairs_};
        if (part.count > most_) narrow(part, first, edges_from_sample(first));
        while (part.count > most_ && part.keys() > 1) narrow(part, first, edges_between(part.least, part.most));
        if (part.keys() == 1) {  // they are equal
            if (second < part.below + part.count) return {part.least, part.least};
            return {part.least, select(second, second).first};
        }
        std::vector<double> values = collect(part.least, part.most, part.count);
        const auto at = [&](Index rank) {
            const auto place = values.begin() + (rank - part.below);
            std::nth_element(values.begin(), place, values.end());
            return *place;
        };
        const double one = at(first);
        return {one, second < part.below + part.count ? at(second) : select(second, second).first};
    }

    // All distances least <= d < most, of which there are `count`.
    std::vector<double> collect(double least, double most, Index count) {
        const Index group = larger(1, smaller(rows_.most(), room_ / kCollected));
        auto values = machine_.template array<double>(group * DistanceTile::kCells);
        auto found = machine_.template array<Index>(group), begin = machine_.template array<Index>(group);
        auto next = machine_.template array<Index>(1);
        auto out = machine_.template array<double>(count);
        machine_.zero(next, 1);
        in_groups(group, [&](const DistanceTile& tiles, Index here) {
            machine_.run(CollectDistances{tiles, least, most, values.data(), found.data()}, here);
            machine_.run(PlaceDistances{found.data(), here, next.data(), begin.data()}, 1);
            machine_.run(GatherDistances{values.data(), found.data(), begin.data(), out.data()}, here);
        });
        return fetched<M, double>(machine_, out, count);
    }

  private:
    static constexpr Index kCollected = DistanceTile::kCells * 8 + 16;  // bytes of a tile in flight
    static constexpr Index kCounted = CountDistances::kBins * 4 + CountDistances::kBins * 8 / SumCounts::kTiles;
    static constexpr double kAround = 0.15;  // the share of the sample on either side of the wanted rank
    using Edges = std::vector<double>;

    // Calls use(tiles, count) for all tiles, `group` of them at once at most.
    template <class Use>
    void in_groups(Index group, const Use& use) {
        rows_.pass([&](const DistanceTile& tiles, Index all) {
            DistanceTile here = tiles;
            for (Index first = 0; first < all; first += group) {
                here.tiles = tiles.tiles + first;
                use(here, smaller(group, all - first));
                machine_.pause();
            }
        });
    }

    static std::uint64_t key_of(double value) {  // ordered like the value, for values >= 0
        std::uint64_t key;
        std::memcpy(&key, &value, sizeof key);
        return key;
    }

    // The distances least <= d < most: `count` of them, and `below` smaller ones.
    struct Part {
        double least, most;
        Index below, count;
        std::uint64_t keys() const { return key_of(most) - key_of(least); }
    };

    // The part of the `part` that holds the rank.
    void narrow(Part& part, Index rank, const Edges& edges) {
        std::vector<Index> counts = histogram(edges);
        counts.front() -= part.below;
        counts.back() -= pairs_ - part.below - part.count;
        Index below = part.below;
        std::size_t bin = 0;
        while (rank >= below + counts[bin]) below += counts[bin++];
        if (bin > 0) part.least = edges[bin - 1];
        if (bin < edges.size()) part.most = edges[bin];
        part.below = below;
        part.count = counts[bin];
    }

    std::vector<Index> histogram(const Edges& edges) {
        constexpr Index bins = CountDistances::kBins;
        const Index group = larger(1, smaller(rows_.most(), room_ / kCounted));
        const auto held = sent(machine_, edges);
        auto counts = machine_.template array<std::uint32_t>(group * bins);
        auto sums = machine_.template array<Index>(pieces(group, SumCounts::kTiles) * bins);
        auto totals = machine_.template array<Index>(bins);
        machine_.zero(totals, bins);
        in_groups(group, [&](const DistanceTile& tiles, Index here) {
            const Index parts = pieces(here, SumCounts::kTiles);
            machine_.run(CountDistances{tiles, held.data(), counts.data()}, here);
            machine_.run(SumCounts{counts.data(), here, sums.data()}, parts);
            machine_.run(AddCounts{sums.data(), parts, totals.data()}, 1);
        });
        auto total = fetched<M, Index>(machine_, totals, bins);
        const Index strips = pieces(rows_.count(), DistanceTile::kWidth), tiles = strips * (strips + 1) / 2;
        total[0] -= tiles * DistanceTile::kCells - pairs_;  // what lies outside
        return total;
    }

    // Quantiles of the distances of a few rows, around the rank.
    Edges edges_from_sample(Index rank) {
        std::vector<double> values = rows_.sample(room_);
        std::sort(values.begin(), values.end());
        const Index count = static_cast<Index>(values.size());
        const double at = static_cast<double>(rank) / static_cast<double>(pairs_);
        Edges edges;
        for (int k = 1; k < CountDistances::kBins; ++k) {
            const double share = at + kAround * (2.0 * k / CountDistances::kBins - 1.0);
            const double place = share * static_cast<double>(count - 1);
            edges.push_back(values[std::clamp<Index>(static_cast<Index>(place), 0, count - 1)]);
        }
        return edges;
    }

    // Values that divide the numbers between two evenly.
    static Edges edges_between(double least, double most) {
        const std::uint64_t first = key_of(least), keys = key_of(most) - first;
        Edges edges;
        for (std::uint64_t k = 1; k < CountDistances::kBins; ++k) {
            const std::uint64_t key =
                first + keys / CountDistances::kBins * k + keys % CountDistances::kBins * k / CountDistances::kBins;
            edges.emplace_back();
            std::memcpy(&edges.back(), &key, sizeof key);
        }
        return edges;
    }

    M& machine_;
    Rows& rows_;
    Index most_, room_, pairs_;
};

// All distances of rows that lie on the machine.
template <class M>
std::vector<double> distances_of(M& machine, const Operand& rows, Index room) {
    RowsThere<M> there(machine, rows);
    DistanceSearch<M, RowsThere<M>> search(machine, there, 1, room);
    return search.collect(0.0, std::numeric_limits<double>::infinity(), search.pairs());
}

// A view of such rows, `most` at most.
template <class View>
View sampled_rows(View x, Index most = kSampledRows) {
    const Index count = smaller(x.rows, smaller(most, kSampledRows));
    x.row_stride *= x.rows / count;
    x.rows = count;
    return x;
}

template <class M>
std::vector<double> RowsThere<M>::sample(Index room) const {
    return distances_of(machine_, sampled_rows(rows_), room);
}

// Median of the full n x n matrix of |z_i - z_j|^2, which holds n zeros and every distance above the diagonal twice.
// make(): rows as DistanceSearch takes them. most: so many distances are collected at once, whatever their number;
// room: bytes of tiles in flight, about. No bit depends on either.
template <class M, class Make>
double median_of(M& machine, Index n, const Make& make, Index most, Index room) {
    const Index total = n * n, low = (total - 1) / 2, high = total / 2;             // ranks of the middle values
    const auto above = [&](Index rank) { return rank < n ? -1 : (rank - n) / 2; };  // among those above the diagonal
    if (above(high) < 0) return 0.0;
    auto rows = make();
    DistanceSearch<M, decltype(rows)> search(machine, rows, most, room);
    const auto [first, second] = search.select(larger(above(low), 0), above(high));
    return 0.5 * ((above(low) < 0 ? 0.0 : first) + second);
}

constexpr Index kMostCollected = Index{1} << 20, kDistancesRoom = Index{1} << 28;
template <class M>
double distance_median(M& machine, const Operand& rows, Index most = kMostCollected, Index room = kDistancesRoom) {
    return median_of(machine, rows.rows, [&] { return RowsThere<M>(machine, rows); }, most, room);
}

}  // namespace simkit::cuda
