// The median of all squared distances of a block's rows, on any machine (cuda/machine.hpp): passes over tiles that
// count distances between ever closer edges, and one that collects those that are left. No n x n matrix is stored.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "cuda/gram.hpp"
#include "cuda/pair_sums.hpp"

namespace simkit::cuda {

// The distances above the diagonal of tiles of rows, float64, in shared memory: a thread's own values, or -1 outside.
struct DistanceTile {
    static constexpr int R = 4;
    using Tile = Product<double, R, false>;
    static constexpr int kThreads = Tile::kThreads, kWidth = Tile::kWidth, kCells = kWidth * kWidth;
    using Registers = Tile::Registers;

    Operand rows;
    const double* norms;     // [n]
    const TilePlace* tiles;  // [program blocks]

    SIMKIT_BOTH Tile tile(Index number) const {
        return {rows, rows, tiles[number].row * kWidth, tiles[number].column * kWidth, 0, rows.depth};
    }

    // All threads must have left the product before.
    SIMKIT_BOTH void distances(const Tile& tile, int thread, const Registers& registers, double* values) const {
        SIMKIT_UNROLL
        for (int r = 0; r < R; ++r) {
            SIMKIT_UNROLL
            for (int s = 0; s < R; ++s)
                values[Tile::row(thread, r) * kWidth + Tile::column(thread, s)] = registers.c[r][s];
        }
        const KernelOfRows of{Kernel::rbf, 1.0, 0.0, 1, norms};
        SIMKIT_NO_UNROLL
        for (int q = 0; q < R * R; ++q) {
            double& value = values[cell(thread, q)];
            const Index i = tile.i0 + Tile::row(thread, q / R), j = tile.j0 + Tile::column(thread, q % R);
            value = i < j && j < rows.rows ? of.squared_distance(value, rows, i, j) : -1.0;
        }
    }

    SIMKIT_BOTH static int cell(int thread, int q) {
        return Tile::row(thread, q / R) * kWidth + Tile::column(thread, q % R);
    }
};

// counts [tiles, kBins] = the distances d of every tile with edges[b - 1] <= d < edges[b]. Program blocks: tiles.
struct CountDistances {
    static constexpr int kThreads = DistanceTile::kThreads, kResident = 2, kBins = 256;
    static constexpr int kWords = DistanceTile::kCells / 8;
    static_assert(kBins == kThreads, "a thread counts one of the bins");
    struct Shared {
        union {
            DistanceTile::Tile::Slices slices;
            double values[DistanceTile::kCells];
        };
        std::uint64_t bins[kWords];  // a byte for every distance
    };
    using Registers = DistanceTile::Registers;

    DistanceTile of;
    const double* edges;  // [kBins - 1], ascending
    std::uint32_t* counts;

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers& registers) const {
        const auto tile = of.tile(number);
        const int slices = tile.slices();
        if (k <= slices) {
            tile.step(k, thread, shared.slices, registers);
            return true;
        }
        if (k == slices + 1) {
            of.distances(tile, thread, registers, shared.values);
            return true;
        }
        if (k == slices + 2) {
            for (int word = thread; word < kWords; word += kThreads)
                shared.bins[word] = bins_of(shared.values + 8 * word);
            return true;
        }
        // Those outside are in the first bin.
        std::uint32_t count = 0;
        for (int word = 0; word < kWords; ++word) count += bytes_that_are(shared.bins[word], thread);
        counts[number * kBins + thread] = count;
        return false;
    }

  private:
    SIMKIT_BOTH std::uint64_t bins_of(const double* values) const {
        std::uint64_t word = 0;
        SIMKIT_NO_UNROLL
        for (int k = 0; k < 8; ++k) word |= static_cast<std::uint64_t>(bin_of(values[k])) << (8 * k);
        return word;
    }

    SIMKIT_BOTH int bin_of(double value) const {  // the number of edges <= value
        int first = 0;
        for (int half = kBins / 2; half > 0; half /= 2)
            if (edges[first + half - 1] <= value) first += half;
        return first;
    }

    SIMKIT_BOTH static std::uint32_t bytes_that_are(std::uint64_t word, int bin) {
        constexpr std::uint64_t ones = 0x0101010101010101u, low = 0x7f * ones;
        const std::uint64_t rest = word ^ (static_cast<std::uint64_t>(bin) * ones);
        const std::uint64_t zero = ~(((rest & low) + low) | rest | low);  // 0x80 in the bytes that are 0
        return static_cast<std::uint32_t>(((zero >> 7) * ones) >> 56);
    }
};

// sums [pieces(count, kTiles), kBins] = the counts of kTiles tiles each. Program blocks: pieces(count, kTiles).
struct SumCounts {
    static constexpr int kThreads = CountDistances::kBins, kResident = 1;
    static constexpr Index kTiles = 64;
    struct Shared {};
    struct Registers {};

    const std::uint32_t* counts;
    Index count;
    Index* sums;

    SIMKIT_BOTH bool step(Index number, int thread, int, Shared&, Registers&) const {
        const Index end = smaller(count, (number + 1) * kTiles);
        Index sum = 0;
        for (Index t = number * kTiles; t < end; ++t) sum += counts[t * kThreads + thread];
        sums[number * kThreads + thread] = sum;
        return false;
    }
};

// The distances least <= d < most of every tile, one behind the other: found [tiles] of them in values [tiles, kCells].
// Program blocks: tiles.
struct CollectDistances {
    static constexpr int kThreads = DistanceTile::kThreads, kResident = 2;
    struct Shared {
        union {
            DistanceTile::Tile::Slices slices;
            double values[DistanceTile::kCells];
        };
        int own[kThreads];  // how many a thread has found
    };
    using Registers = DistanceTile::Registers;

    DistanceTile of;
    double least, most;
    double* values;
    Index* found;

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers& registers) const {
        const auto tile = of.tile(number);
        const int slices = tile.slices();
        if (k <= slices) {
            tile.step(k, thread, shared.slices, registers);
            return true;
        }
        if (k == slices + 1) {
            of.distances(tile, thread, registers, shared.values);
            int own = 0;
            for (int q = 0; q < DistanceTile::R * DistanceTile::R; ++q)
                own += wanted(shared.values[DistanceTile::cell(thread, q)]);
            shared.own[thread] = own;
            return true;
        }
        Index place = 0;
        for (int other = 0; other < thread; ++other) place += shared.own[other];
        for (int q = 0; q < DistanceTile::R * DistanceTile::R; ++q) {
            const double value = shared.values[DistanceTile::cell(thread, q)];
            if (wanted(value)) values[number * DistanceTile::kCells + place++] = value;
        }
        if (thread == kThreads - 1) found[number] = place;
        return false;
    }

  private:
    SIMKIT_BOTH bool wanted(double value) const { return least <= value && value < most; }
};

// out: what `tiles` have found, one behind the other, from begin [tiles] on. Program blocks: tiles.
struct GatherDistances {
    static constexpr int kThreads = 128, kResident = 4;
    struct Shared {};
    struct Registers {};

    const double* values;  // [tiles, kCells]
    const Index *found, *begin;
    double* out;

    SIMKIT_BOTH bool step(Index number, int thread, int, Shared&, Registers&) const {
        for (Index k = thread; k < found[number]; k += kThreads)
            out[begin[number] + k] = values[number * DistanceTile::kCells + k];
        return false;
    }
};

template <class M>
class DistanceSearch {
  public:
    // rows: of z, float64. most: so many distances are collected at once. room: bytes of tiles in flight, about.
    DistanceSearch(M& machine, const Operand& rows, Index most, Index room)
        : machine_(machine),
          rows_(rows),
          most_(most),
          room_(room),
          pairs_(rows.rows * (rows.rows - 1) / 2),
          norms_(machine.template array<double>(rows.rows)),
          places_(upper_tiles(pieces(rows.rows, DistanceTile::kWidth))),
          tiles_(sent(machine, places_)) {
        machine.run(RowNorms{rows, norms_.data()}, pieces(rows.rows, RowNorms::kRows));
    }

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
        const Index all = static_cast<Index>(places_.size());
        const Index group = larger(1, smaller(all, room_ / (DistanceTile::kCells * 8)));
        auto values = machine_.template array<double>(group * DistanceTile::kCells);
        auto found = machine_.template array<Index>(group);
        auto out = machine_.template array<double>(count);
        Index next = 0;
        for (Index first = 0; first < all; first += group) {
            const Index here = smaller(group, all - first);
            machine_.run(CollectDistances{tile(first), least, most, values.data(), found.data()}, here);
            std::vector<Index> begin = fetched<M, Index>(machine_, found, here);
            for (Index& of : begin) next += std::exchange(of, next);
            const auto held = sent(machine_, std::move(begin));
            machine_.run(GatherDistances{values.data(), found.data(), held.data(), out.data()}, here);
        }
        return fetched<M, double>(machine_, out, count);
    }

  private:
    static constexpr Index kSample = 256;    // rows whose distances place the first edges
    static constexpr double kAround = 0.15;  // the share of them on either side of the wanted rank
    using Edges = std::vector<double>;

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

    DistanceTile tile(Index first) const { return {rows_, norms_.data(), tiles_.data() + first}; }

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
        const Index all = static_cast<Index>(places_.size()), group = larger(1, smaller(all, room_ / (bins * 4)));
        const auto held = sent(machine_, edges);
        auto counts = machine_.template array<std::uint32_t>(group * bins);
        auto sums = machine_.template array<Index>(pieces(group, SumCounts::kTiles) * bins);
        std::vector<Index> total(bins, 0);
        for (Index first = 0; first < all; first += group) {
            const Index here = smaller(group, all - first), parts = pieces(here, SumCounts::kTiles);
            machine_.run(CountDistances{tile(first), held.data(), counts.data()}, here);
            machine_.run(SumCounts{counts.data(), here, sums.data()}, parts);
            const auto found = fetched<M, Index>(machine_, sums, parts * bins);
            for (Index k = 0; k < parts * bins; ++k) total[k % bins] += found[k];
        }
        total[0] -= all * DistanceTile::kCells - pairs_;  // what lies outside
        return total;
    }

    // Quantiles of the distances of a few rows, around the rank.
    Edges edges_from_sample(Index rank) {
        Operand few = rows_;
        few.rows = smaller(few.rows, kSample);
        few.row_stride *= rows_.rows / few.rows;
        DistanceSearch sample(machine_, few, few.rows * few.rows, room_);
        std::vector<double> values = sample.collect(0.0, std::numeric_limits<double>::infinity(), sample.pairs());
        std::sort(values.begin(), values.end());
        const double at = static_cast<double>(rank) / static_cast<double>(pairs_);
        Edges edges;
        for (int k = 1; k < CountDistances::kBins; ++k) {
            const double share = at + kAround * (2.0 * k / CountDistances::kBins - 1.0);
            const double place = share * static_cast<double>(sample.pairs() - 1);
            edges.push_back(values[std::clamp<Index>(static_cast<Index>(place), 0, sample.pairs() - 1)]);
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
    Operand rows_;
    Index most_, room_, pairs_;
    typename M::template Array<double> norms_;
    std::vector<TilePlace> places_;
    typename M::template Array<TilePlace> tiles_;
};

// Median of the full n x n matrix of |z_i - z_j|^2, which holds n zeros and every distance above the diagonal twice.
// most: so many distances are collected at once, whatever their number; room: bytes of tiles in flight, about. No bit
// depends on either.
constexpr Index kDistancesRoom = Index{1} << 28;
template <class M>
double distance_median(M& machine, const Operand& rows, Index most = Index{1} << 20, Index room = kDistancesRoom) {
    const Index n = rows.rows, total = n * n, low = (total - 1) / 2, high = total / 2;  // ranks of the middle values
    const auto above = [&](Index rank) { return rank < n ? -1 : (rank - n) / 2; };  // among those above the diagonal
    if (above(high) < 0) return 0.0;
    DistanceSearch<M> search(machine, rows, most, room);
    const auto [first, second] = search.select(larger(above(low), 0), above(high));
    return 0.5 * ((above(low) < 0 ? 0.0 : first) + second);
}

}  // namespace simkit::cuda
