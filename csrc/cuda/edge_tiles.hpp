// Tiles of products of unit rows, turned into bits at every threshold while they are in registers.
#pragma once

#include <cstring>

#include "cuda/gram.hpp"
#include "cuda/packed.hpp"
#include "cuda/unit_rows.hpp"

namespace simkit::cuda {

// 2 - 2 cosine <= squared, as far as a product tells: an edge from `sure` on, none below `possible`.
template <class T>
struct EdgeLimit {
    T sure, possible;
};
template <class T>
struct CosineRange {
    T largest, smallest;
};
static_assert(kSentAs<EdgeLimit<float>, 8> && kSentAs<EdgeLimit<double>, 16>);
static_assert(kSentAs<CosineRange<float>, 8> && kSentAs<CosineRange<double>, 16>);

// Bit 8 r + s -> bit 8 s + r.
SIMKIT_BOTH inline Bits transposed(Bits x) {
    Bits swap = (x ^ (x >> 7)) & 0x00aa00aa00aa00aau;
    x ^= swap ^ (swap << 7);
    swap = (x ^ (x >> 14)) & 0x0000cccc0000ccccu;
    x ^= swap ^ (swap << 14);
    swap = (x ^ (x >> 28)) & 0x00000000f0f0f0f0u;
    return x ^ swap ^ (swap << 28);
}

// Eight bytes of four bits -> 32 bits.
SIMKIT_BOTH inline Bits joined_nibbles(Bits bytes) {
    bytes = (bytes | (bytes >> 4)) & 0x00ff00ff00ff00ffu;
    bytes = (bytes | (bytes >> 8)) & 0x0000ffff0000ffffu;
    return (bytes | (bytes >> 16)) & 0xffffffffu;
}

// Program blocks: tiles of the upper triangle.
//   bits [thresholds, n, words]: both triangles, the diagonal clear; near [n, words], above the diagonal of tiles: the
//   pairs that lie between `possible` and `sure` of some threshold; range [blocks]: of the cosines of its pairs
// Sums: T over kChunk columns and across chunks; what is left of p bounds the error (see `edge_bound`).
template <class T, int R>
struct EdgeTiles {
    using Tile = Product<T, R, sizeof(T) == 4>;
    static constexpr int kThreads = Tile::kThreads, kResident = 1, kWidth = Tile::kWidth, kWords = kWidth / kWord;
    static constexpr int kChunkSlices = 256 / kSlice, kPlanes = 4, kParts = 16;
    static_assert(R == 4 || R == 8, "a thread's pairs are the bits of a word");
    struct alignas(16) Nibbles {  // four bits of a word from each of the 16 threads along a side
        unsigned char of[kSide];
    };
    struct Planes {
        Nibbles rows[kPlanes][kWidth][kWords], columns[kPlanes][kWidth][kWords];
    };
    struct Shared {
        union {
            typename Tile::Slices slices;
            Planes planes;
        };
        CosineRange<T> range[kThreads];
    };
    struct Registers {
        typename Tile::Registers product;
        T cosine[R][R];
        Bits near;
    };

    const T* unit;           // [n, p]
    const TilePlace* tiles;  // [blocks]
    Index n, p, words, thresholds;
    const EdgeLimit<T>* limits;  // [thresholds]
    Bits *bits, *near;
    CosineRange<T>* range;

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers& registers) const {
        const TilePlace place = tiles[number];
        const Operand rows = ready_rows(unit, n, p, p);
        const Tile tile{rows, rows, place.row * kWidth, place.column * kWidth, 0, p};
        const int slices = tile.slices();
        if (k <= slices) {
            tile.step(k, thread, shared.slices, registers.product);
            if (k == 0) clear(registers);
            if (k > 0 && (k % kChunkSlices == 0 || k == slices)) put_away(registers);
            return true;
        }
        const int done = k - slices - 1, first = done / 2 * kPlanes;
        if (done == 0) leave_pairs(tile, thread, shared, registers);
        if (done == 1 && thread < kParts) shared.range[thread] = joined(shared.range, thread, kParts, kThreads);
        if (done == 2 && thread == 0) range[number] = joined(shared.range, 0, 1, kParts);
        const int end = static_cast<int>(smaller(thresholds + 1, first + kPlanes));
        if (done % 2 == 0) {
            for (int plane = first; plane < end; ++plane) compare(plane, thread, shared.planes, registers);
            return true;
        }
        for (int plane = first; plane < end; ++plane) store(plane, tile, place, thread, shared.planes);
        return end <= thresholds || done < 3;
    }

  private:
    SIMKIT_BOTH static void clear(Registers& registers) {
        registers.near = 0;
        SIMKIT_UNROLL
        for (int r = 0; r < R; ++r) {
            SIMKIT_UNROLL
            for (int s = 0; s < R; ++s) registers.cosine[r][s] = T(0);
        }
    }

    SIMKIT_BOTH static void put_away(Registers& registers) {
        SIMKIT_UNROLL
        for (int r = 0; r < R; ++r) {
            SIMKIT_UNROLL
            for (int s = 0; s < R; ++s) registers.cosine[r][s] += registers.product.c[r][s];
        }
        Tile::clear(registers.product);
    }

    // NaN where there is no pair: every comparison with it is false.
    SIMKIT_BOTH void leave_pairs(const Tile& tile, int thread, Shared& shared, Registers& registers) const {
        CosineRange<T> own{T(-2), T(2)};
        SIMKIT_UNROLL
        for (int r = 0; r < R; ++r) {
            SIMKIT_UNROLL
            for (int s = 0; s < R; ++s) {
                const Index i = tile.i0 + Tile::row(thread, r), j = tile.j0 + Tile::column(thread, s);
                T& value = registers.cosine[r][s];
                if (i >= n || j >= n || i == j) value = kNotANumber<T>;
                if (value > own.largest) own.largest = value;
                if (value < own.smallest) own.smallest = value;
            }
        }
        shared.range[thread] = own;
    }

    SIMKIT_BOTH static CosineRange<T> joined(const CosineRange<T>* parts, int first, int stride, int end) {
        CosineRange<T> all = parts[first];
        for (int other = first + stride; other < end; other += stride) {
            if (parts[other].largest > all.largest) all.largest = parts[other].largest;
            if (parts[other].smallest < all.smallest) all.smallest = parts[other].smallest;
        }
        return all;
    }

    // Bit 8 r + s: of the thread's rows r and columns s.
    SIMKIT_BOTH static Bits at_least(const Registers& registers, T limit) {
        Bits found = 0;
        SIMKIT_UNROLL
        for (int r = 0; r < R; ++r) {
            SIMKIT_UNROLL
            for (int s = 0; s < R; ++s) found |= static_cast<Bits>(registers.cosine[r][s] >= limit) << (8 * r + s);
        }
        return found;
    }

    // The last plane is that of near pairs.
    SIMKIT_BOTH void compare(int plane, int thread, Planes& planes, Registers& registers) const {
        Bits found = registers.near;
        if (plane < thresholds) {
            found = at_least(registers, limits[plane].sure);
            registers.near |= at_least(registers, limits[plane].possible) & ~found;
        }
        leave(found, thread / kSide, thread % kSide, planes.rows[plane % kPlanes]);
        leave(transposed(found), thread % kSide, thread / kSide, planes.columns[plane % kPlanes]);
    }

    SIMKIT_BOTH static void leave(Bits found, int along, int across, Nibbles (*rows)[kWords]) {
        SIMKIT_UNROLL
        for (int r = 0; r < R; ++r) {
            SIMKIT_UNROLL
            for (int word = 0; word < kWords; ++word)
                rows[PlainMultiply<T, R>::spread(along, r)][word].of[across] =
                    static_cast<unsigned char>((found >> (8 * r + 4 * word)) & 15);
        }
    }

    SIMKIT_BOTH void store(int plane, const Tile& tile, const TilePlace& place, int thread,
                           const Planes& planes) const {
        if (thread >= kWidth * kWords) return;
        const int row = thread / kWords, word = thread % kWords;
        Bits* to = plane < thresholds ? bits + plane * n * words : near;
        store_word(to, tile.i0 + row, tile.j0 / kWord + word, planes.rows[plane % kPlanes][row][word]);
        if (plane < thresholds && !place.diagonal())
            store_word(to, tile.j0 + row, tile.i0 / kWord + word, planes.columns[plane % kPlanes][row][word]);
    }

    SIMKIT_BOTH void store_word(Bits* to, Index row, Index word, const Nibbles& nibbles) const {
        if (row >= n || word >= words) return;
        Bits half[2];
        memcpy(half, nibbles.of, sizeof half);
        to[row * words + word] = joined_nibbles(half[0]) | (joined_nibbles(half[1]) << 32);
    }
};

}  // namespace simkit::cuda
