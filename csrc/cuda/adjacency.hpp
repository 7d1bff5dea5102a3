// Graphs of rows at several thresholds, in one pass over the pairs, on any machine. See ops/adjacency.hpp.
//
// Unit rows are formed once, in the type of the products. A tile's products stay in registers: every threshold turns
// them into bits, 64 to a word, for the tile and for its mirror image. Pairs that the products' error bound leaves open
// at some threshold are marked, and decided by float64 differences of the rows as they came: the bits are those of the
// differences.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "cuda/gram.hpp"
#include "cuda/packed.hpp"
#include "cuda/unit_rows.hpp"
#include "ops/adjacency.hpp"

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

// Near pairs by their differences: the bits of every threshold, on both sides of the diagonal. Program blocks
// [words, words]: squares of 64 x 64 pairs, of which those below the diagonal do nothing.
struct DecidePairs {
    static constexpr int kLanes = 32, kGroups = 8, kThreads = kLanes * kGroups, kResident = 2, kEach = 4;
    static constexpr int kPairs = kWord * kWord, kBatch = kGroups * kEach;
    struct Shared {
        Bits near[kWord];             // of the square's rows; on the diagonal symmetric
        int begin[kWord + 1];         // a row's first pair
        std::uint16_t pairs[kPairs];  // 64 r + c, by rows; on the diagonal those above it
        int edges[kPairs];            // at how many thresholds, from the widest on, a pair is an edge
        double lanes[kBatch][kLanes + 1];
    };
    struct Registers {};

    Operand x;
    const double* scale;    // [n]
    const Bits* near;       // [n, words]
    const double* squared;  // [thresholds], falling
    const Index* planes;    // [thresholds], of the squared distances
    Index words, thresholds;
    Bits* bits;  // [thresholds, n, words]

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers&) const {
        const Index upper = number / words, right = number % words;
        if (right < upper) return false;
        const bool diagonal = upper == right;
        if (k == 0) {
            const Index i = upper * kWord + thread;
            if (thread < kWord) shared.near[thread] = i < x.rows ? near[i * words + right] : 0;
            return true;
        }
        if (k == 1) {
            if (thread <= kWord) shared.begin[thread] = pairs_before(thread, diagonal, shared);
            return true;
        }
        const int count = shared.begin[kWord];
        if (count == 0) return false;
        if (k == 2) {
            if (thread < kWord) list(thread, diagonal, shared);
            return true;
        }
        const int done = k - 3, first = done / 2 * kBatch;
        if (first < count) {
            if (done % 2 == 0)
                differ(upper, right, first, count, thread, shared);
            else if (thread < kBatch && first + thread < count)
                shared.edges[first + thread] = edges_by(shared.lanes[thread]);
            return true;
        }
        for (Index at = thread; at < thresholds * 2 * kWord; at += kThreads) {
            const int r = static_cast<int>(at % kWord);
            const bool mirrored = at / kWord % 2 != 0;
            if (!(mirrored && diagonal)) store(at / (2 * kWord), upper, right, r, mirrored, shared);
        }
        return false;
    }

  private:
    // A row's near pairs, on the diagonal those above it.
    SIMKIT_BOTH static Bits own(int r, bool diagonal, const Shared& shared) {
        return diagonal ? shared.near[r] & ~(bit(r) | (bit(r) - 1)) : shared.near[r];
    }

    SIMKIT_BOTH static int pairs_before(int row, bool diagonal, const Shared& shared) {
        int before = 0;
        for (int r = 0; r < row; ++r) before += bits_in(own(r, diagonal, shared));
        return before;
    }

    SIMKIT_BOTH static void list(int r, bool diagonal, Shared& shared) {
        int at = shared.begin[r];
        for (Bits left = own(r, diagonal, shared); left; left &= left - 1)
            shared.pairs[at++] = static_cast<std::uint16_t>(kWord * r + lowest_bit(left));
    }

    SIMKIT_BOTH void differ(Index upper, Index right, int first, int count, int thread, Shared& shared) const {
        const int group = thread / kLanes, lane = thread % kLanes;
        for (int e = 0; e < kEach; ++e) {
            const int at = group * kEach + e;
            if (first + at >= count) return;
            const int pair = shared.pairs[first + at];
            const Index i = upper * kWord + pair / kWord, j = right * kWord + pair % kWord;
            shared.lanes[at][lane] = lane_distance(x, i, scale[i], j, scale[j], lane, kLanes);
        }
    }

    SIMKIT_BOTH int edges_by(const double* lanes) const {
        double distance = 0.0;
        for (int lane = 0; lane < kLanes; ++lane) distance += lanes[lane];
        int many = 0;
        while (many < thresholds && distance <= squared[many]) ++many;
        return many;
    }

    SIMKIT_BOTH static int edges_of(int r, int c, bool diagonal, const Shared& shared) {
        if (diagonal && c < r) {
            const int swap = r;
            r = c;
            c = swap;
        }
        return shared.edges[shared.begin[r] + bits_in(own(r, diagonal, shared) & (bit(c) - 1))];
    }

    // Row r of the square, or of its mirror image, at the q-th threshold.
    SIMKIT_BOTH void store(Index q, Index upper, Index right, int r, bool mirrored, const Shared& shared) const {
        const bool diagonal = upper == right;
        Bits open = 0, edges = 0;
        if (mirrored)
            for (int c = 0; c < kWord; ++c) open |= (shared.near[c] >> r & 1) << c;
        else
            open = shared.near[r];
        if (!open) return;
        for (Bits left = open; left; left &= left - 1) {
            const int c = lowest_bit(left);
            const int many = mirrored ? edges_of(c, r, diagonal, shared) : edges_of(r, c, diagonal, shared);
            if (q < many) edges |= bit(c);
        }
        const Index row = (mirrored ? right : upper) * kWord + r, word = mirrored ? upper : right;
        Bits& to = bits[(planes[q] * x.rows + row) * words + word];
        to = (to & ~open) | edges;
    }
};

// Zero rows are adjacent to one another and to no other row. Program blocks: the zero rows.
struct JoinZeros {
    static constexpr int kThreads = 128, kResident = 4;
    struct Shared {};
    struct Registers {};

    const Index* zeros;   // [program blocks]
    const Bits* members;  // [words]: the zero rows
    Index n, words, thresholds;
    Bits* bits;

    SIMKIT_BOTH bool step(Index number, int thread, int, Shared&, Registers&) const {
        const Index i = zeros[number];
        for (Index at = thread; at < thresholds * words; at += kThreads) {
            const Index t = at / words, word = at % words;
            bits[(t * n + i) * words + word] = members[word] & ~(i / kWord == word ? bit(i) : 0);
        }
        return false;
    }
};

// What rounding may add to a product of unit rows of p columns.
template <class T>
double edge_bound(Index p) {
    const double unit = static_cast<double>(std::numeric_limits<T>::epsilon()) / 2;
    return std::max(sizeof(T) == 4 ? 1e-5 : 1e-11, static_cast<double>(256 + p / 256 + 12) * unit);
}

// Tiles that run at once share strips of rows: kNear x kNear of them, one such square after the other.
inline std::vector<TilePlace> near_tiles(Index tiles) {
    constexpr Index kNear = 12;
    std::vector<TilePlace> places;
    for (Index a = 0; a < tiles; a += kNear)
        for (Index b = a; b < tiles; b += kNear)
            for (Index i = a; i < smaller(tiles, a + kNear); ++i)
                for (Index j = larger(i, b); j < smaller(tiles, b + kNear); ++j) places.push_back({i, j});
    return places;
}

template <class M>
void join_zeros(M& machine, std::vector<Index> zeros, Index n, Index thresholds, Bits* bits) {
    const Index words = words_of(n);
    std::vector<Bits> members(static_cast<std::size_t>(words), 0);
    for (const Index i : zeros) members[i / kWord] |= bit(i);
    const auto held = sent(machine, std::move(members));
    const auto count = static_cast<Index>(zeros.size());
    const auto rows = sent(machine, std::move(zeros));
    machine.run(JoinZeros{rows.data(), held.data(), n, words, thresholds, bits}, count);
}

template <class T, int R, class M>
Adjacency adjacency_in(M& machine, const MatrixView& x, const std::vector<double>& squared, Bits* bits) {
    using Tiles = EdgeTiles<T, R>;
    const Index n = x.rows, p = x.cols, words = words_of(n), thresholds = static_cast<Index>(squared.size());
    const Operand rows = raw_rows(x);
    auto scale = machine.template array<double>(n);
    auto unit = machine.template array<T>(n * p);
    machine.run(UnitRows<T>{rows, scale.data(), unit.data()}, pieces(n, UnitRows<T>::kRows));

    const double bound = edge_bound<T>(p);
    std::vector<EdgeLimit<T>> limits;
    for (const double limit : squared)
        limits.push_back({static_cast<T>(1.0 - 0.5 * limit + bound), static_cast<T>(1.0 - 0.5 * limit - bound)});
    const auto held_limits = sent(machine, std::move(limits));
    const auto places = near_tiles(pieces(n, Tiles::kWidth));
    const auto all = static_cast<Index>(places.size());
    const auto tiles = sent(machine, places);
    auto near = machine.template array<Bits>(n * words);
    auto range = machine.template array<CosineRange<T>>(all);
    machine.run(
        Tiles{unit.data(), tiles.data(), n, p, words, thresholds, held_limits.data(), bits, near.data(), range.data()},
        all);

    std::vector<Index> planes(squared.size());
    std::iota(planes.begin(), planes.end(), Index{0});
    std::stable_sort(planes.begin(), planes.end(), [&](Index a, Index b) { return squared[a] > squared[b]; });
    std::vector<double> falling;
    for (const Index plane : planes) falling.push_back(squared[plane]);
    const auto held_planes = sent(machine, std::move(planes));
    const auto held_squared = sent(machine, std::move(falling));
    machine.run(
        DecidePairs{rows, scale.data(), near.data(), held_squared.data(), held_planes.data(), words, thresholds, bits},
        words * words);

    Adjacency out;
    const auto scales = fetched<M, double>(machine, scale, n);
    for (Index i = 0; i < n; ++i) {
        out.finite = out.finite && scales[i] == scales[i];
        if (scales[i] == 0.0) out.zeros.push_back(i);
    }
    if (!out.finite) return Adjacency{false, kNotANumber<double>, kNotANumber<double>, {}};
    CosineRange<T> found{T(-2), T(2)};
    for (const auto& of : fetched<M, CosineRange<T>>(machine, range, all)) {
        found.largest = std::max(found.largest, of.largest);
        found.smallest = std::min(found.smallest, of.smallest);
    }
    const bool pairs = found.largest >= found.smallest;
    out.nearest = pairs ? std::max(0.0, 2.0 - 2.0 * static_cast<double>(found.largest)) : kNotANumber<double>;
    out.farthest = pairs ? std::min(4.0, 2.0 - 2.0 * static_cast<double>(found.smallest)) : kNotANumber<double>;
    if (out.zeros.size() > 1) join_zeros(machine, out.zeros, n, thresholds, bits);
    return out;
}

// Float32 tiles are 128 wide, float64 ones 64.
template <class M>
Adjacency adjacency(M& machine, const MatrixView& x, const std::vector<double>& squared, Bits* bits) {
    return x.dtype == Dtype::f64 ? adjacency_in<double, 4>(machine, x, squared, bits)
                                 : adjacency_in<float, 8>(machine, x, squared, bits);
}

}  // namespace simkit::cuda
