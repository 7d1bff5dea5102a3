// Tiles of products of unit rows, and for each row the few others that they cannot tell from the k best. See
// ops/partners.hpp.
#pragma once

#include "cuda/pair_score.hpp"
#include "cuda/product.hpp"

namespace simkit::cuda {

SIMKIT_BOTH inline int lowest_bit(std::uint32_t bits) {
#ifdef __CUDA_ARCH__
    return __ffs(static_cast<int>(bits)) - 1;
#else
    return __builtin_ctz(bits);
#endif
}

// For each row, and each of several parts of the others: the lowest scores, ascending, and whose they are, as far as
// they are within `window` of the k-th, twice the error of a score and what ties. Of more than `room`, k + 1 at least,
// the highest are forgotten.
template <class T>
struct NearLists {
    T* values;             // [parts, rows, room]
    std::int32_t* places;  // alike
    int* counts;           // [parts, rows]
    Index rows;
    int room, k;
    T window;

    SIMKIT_BOTH Index begin(Index part, Index row) const { return (part * rows + row) * room; }

    // The largest score that still matters: what is higher than the last of a full list may have been forgotten.
    SIMKIT_BOTH T limit(Index begin, int count) const {
        if (count == room) return values[begin + room - 1];
        return count < k ? static_cast<T>(kInfinite) : values[begin + k - 1] + window;
    }

    // Whether the list holds all scores up to `limit`.
    SIMKIT_BOTH bool complete(Index begin, int count, T limit) const {
        return count < room || limit < values[begin + room - 1];
    }

    // Returns the new count.
    SIMKIT_BOTH int insert(Index begin, int count, T value, Index place) const {
        int at = count;
        if (count == room) {
            if (!(value < values[begin + --at])) return count;
        } else {
            ++count;
        }
        for (; at > 0 && values[begin + at - 1] > value; --at) {
            values[begin + at] = values[begin + at - 1];
            places[begin + at] = places[begin + at - 1];
        }
        values[begin + at] = value;
        places[begin + at] = static_cast<std::int32_t>(place);
        if (count < k) return count;
        const T most = values[begin + k - 1] + window;
        while (count > k && values[begin + count - 1] > most) --count;
        return count;
    }
};

// Program blocks [pieces(rows, W), parts]: a strip of rows and every parts-th tile of the others, whose scores join the
// strip's lists. The products of a tile wait in registers; their scores go through shared memory, kStage rows at a
// time, where kLanes threads a row look for those within its limit and one inserts them.
// Sums: T over kChunk entries, the chunks' sums in T.
template <class T, int R>
struct NearTiles {
    using Tile = Product<T, R, sizeof(T) == 4>;
    static constexpr int kThreads = Tile::kThreads, kResident = 2, kWidth = Tile::kWidth;
    static constexpr int kStage = 4 * kSide, kStages = kWidth / kStage, kLanes = kThreads / kStage;
    static constexpr int kBits = kWidth / kLanes, kChunk = 2048, kChunkSlices = kChunk / kSlice;
    static_assert(kBits <= 32, "a lane's columns are the bits of a word");
    struct Scores {
        T values[kStage][kWidth + 1];
        std::uint32_t near[kStage][kLanes];
    };
    struct Shared {
        union {
            typename Tile::Slices slices;
            Scores scores;
        };
        T limits[kWidth];
        int counts[kWidth];
    };
    using Registers = typename Tile::Registers;

    PairScore of;
    const T *left, *right;  // unit rows [rows, depth], [others, depth]: groups of those of the score, from places on
    Index first_row, rows, first_other, others, parts;
    NearLists<T> lists;
    T* waiting;  // [blocks, W, W] where a row has more than kChunk entries

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers& registers) const {
        const Index strip = number / parts, part = number % parts, depth = of.depth();
        const Index turns = pieces(pieces(others, kWidth) - part, parts);
        const int slices = static_cast<int>(pieces(depth, kSlice)), steps = slices + 1 + 3 * kStages;
        const int turn = k / steps, within = k % steps;
        const Tile tile{ready_rows(left, rows, depth, depth),
                        ready_rows(right, others, depth, depth),
                        strip * kWidth,
                        (part + turn * parts) * kWidth,
                        0,
                        depth};
        T* mine = slices > kChunkSlices ? waiting + number * kWidth * kWidth : nullptr;
        if (k == 0 && thread < kWidth && tile.i0 + thread < rows) {
            const int count = lists.counts[part * lists.rows + tile.i0 + thread];
            shared.counts[thread] = count;
            shared.limits[thread] = lists.limit(lists.begin(part, tile.i0 + thread), count);
        }
        if (within <= slices) {
            tile.step(within, thread, shared.slices, registers);
            if (within > 0 && within < slices && within % kChunkSlices == 0)
                put_away(mine, within > kChunkSlices, thread, registers);
            return true;
        }
        const int stage = (within - slices - 1) / 3, phase = (within - slices - 1) % 3;
        if (phase == 0) {
            spread(tile, stage, mine, thread, shared.scores.values, registers);
            return true;
        }
        if (phase == 1) {
            find(stage, thread, shared);
            return true;
        }
        const bool over = turn == turns - 1;
        insert(tile, part, stage, over, thread, shared);
        return !(over && stage == kStages - 1);
    }

  private:
    SIMKIT_BOTH static void put_away(T* mine, bool more, int thread, Registers& registers) {
        SIMKIT_UNROLL
        for (int r = 0; r < R; ++r) {
            SIMKIT_UNROLL
            for (int s = 0; s < R; ++s) {
                T& to = mine[Tile::row(thread, r) * kWidth + Tile::column(thread, s)];
                to = more ? to + registers.c[r][s] : registers.c[r][s];
            }
        }
        Tile::clear(registers);
    }

    // A thread's products with the rows of a stage -> their scores, infinite where there is none; one by one, so that
    // the code of a score stands there once.
    SIMKIT_BOTH void spread(const Tile& tile, int stage, const T* mine, int thread, T (*values)[kWidth + 1],
                            const Registers& registers) const {
        SIMKIT_UNROLL
        for (int r = 0; r < R; ++r) {
            if (r / 4 != stage) continue;
            const int row = Tile::row(thread, r);
            SIMKIT_UNROLL
            for (int s = 0; s < R; ++s) {
                const int column = Tile::column(thread, s);
                const T before = mine ? mine[row * kWidth + column] : T(0);
                values[row - stage * kStage][column] = before + registers.c[r][s];
            }
        }
        SIMKIT_NO_UNROLL
        for (int q = 0; q < 4 * R; ++q) {
            const int row = Tile::row(thread, q / R), column = Tile::column(thread, q % R);
            const Index i = tile.i0 + stage * kStage + row, j = tile.j0 + column;
            T& value = values[row][column];
            value = i < rows && j < others ? score(value, first_row + i, first_other + j) : static_cast<T>(kInfinite);
        }
    }

    SIMKIT_BOTH T score(T product, Index place, Index other) const {
        const double r = of.residue(of.rows[place], of.others[other]);
        return static_cast<T>(r == r ? of.score(static_cast<double>(product), r, place) : kInfinite);
    }

    SIMKIT_BOTH void find(int stage, int thread, Shared& shared) const {
        const int row = thread / kLanes, lane = thread % kLanes;
        const T limit = shared.limits[stage * kStage + row];
        std::uint32_t near = 0;
        SIMKIT_UNROLL
        for (int bit = 0; bit < kBits; ++bit) {
            const T value = shared.scores.values[row][lane + bit * kLanes];
            near |= static_cast<std::uint32_t>(value <= limit && value < static_cast<T>(kInfinite)) << bit;
        }
        shared.scores.near[row][lane] = near;
    }

    SIMKIT_BOTH void insert(const Tile& tile, Index part, int stage, bool over, int thread, Shared& shared) const {
        const int at = stage * kStage + thread;
        const Index row = tile.i0 + at;
        if (thread >= kStage || row >= rows) return;
        const Index begin = lists.begin(part, row);
        int count = shared.counts[at];
        T limit = shared.limits[at];
        for (int lane = 0; lane < kLanes; ++lane)
            for (std::uint32_t near = shared.scores.near[thread][lane]; near; near &= near - 1) {
                const int column = lane + lowest_bit(near) * kLanes;
                const T value = shared.scores.values[thread][column];
                if (!(value <= limit)) continue;
                count = lists.insert(begin, count, value, first_other + tile.j0 + column);
                limit = lists.limit(begin, count);
            }
        shared.counts[at] = count;
        shared.limits[at] = limit;
        if (over) lists.counts[part * lists.rows + row] = count;
    }
};

}  // namespace simkit::cuda
