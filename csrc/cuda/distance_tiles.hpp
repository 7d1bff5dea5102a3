// Squared distances of pairs of rows, by tiles: counted between edges, and collected. The programs of distances.hpp.
#pragma once

#include "cuda/gram.hpp"

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
    Index across = 0;        // as in GramBlock

    SIMKIT_BOTH Tile tile(Index number) const {
        Operand columns = rows;
        columns.data += across;
        return {rows, columns, tiles[number].row * kWidth, tiles[number].column * kWidth, 0, rows.depth};
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
            value = i < j && j < rows.rows ? of.squared_distance(value, rows, i, j, across) : -1.0;
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

// totals [kBins] += sums [count, kBins]. One program block.
struct AddCounts {
    static constexpr int kThreads = CountDistances::kBins, kResident = 1;
    struct Shared {};
    struct Registers {};

    const Index* sums;
    Index count;
    Index* totals;

    SIMKIT_BOTH bool step(Index, int thread, int, Shared&, Registers&) const {
        Index sum = totals[thread];
        for (Index part = 0; part < count; ++part) sum += sums[part * kThreads + thread];
        totals[thread] = sum;
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

// begin [count]: where tiles put what they have found [count], one behind the other from `next` on, which moves to the
// end. One program block.
struct PlaceDistances {
    static constexpr int kThreads = 256, kResident = 1;
    struct Shared {
        Index own[kThreads];  // of a thread's tiles
        Index first;
    };
    struct Registers {};

    const Index* found;
    Index count;
    Index *next, *begin;

    SIMKIT_BOTH bool step(Index, int thread, int k, Shared& shared, Registers&) const {
        const Index each = pieces(count, kThreads), first = thread * each, end = smaller(count, first + each);
        if (k == 0) {
            Index own = 0;
            for (Index t = first; t < end; ++t) own += found[t];
            shared.own[thread] = own;
            if (thread == 0) shared.first = *next;
            return true;
        }
        Index place = shared.first;
        for (int other = 0; other < thread; ++other) place += shared.own[other];
        for (Index t = first; t < end; ++t) {
            begin[t] = place;
            place += found[t];
        }
        if (thread == kThreads - 1) *next = place;
        return false;
    }
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

}  // namespace simkit::cuda
