// Every candidate of a tile of pairs: the kernel without it and the sums of ops/candidates.hpp, then sums over tiles.
//
// A thread keeps 16 pairs: what they start from and L stay in registers while the candidates of a block pass, one at a
// time, so that of a candidate only its features at 64 + 64 samples are read. A pair and candidate takes, one feature a
// unit and the quick form, a difference, a fused square, 2^x, two of the levels, and four sums: 9 instructions, one of
// them special. A multiprocessor of sm_90 starts 128 a clock, 16 of the special ones: both limits are 16 pairs a clock,
// that is 4.2e12 a second for 132 multiprocessors at 1.98 GHz. The sums of rows, columns and products across threads
// add about 30 instructions to a thread's 16 pairs, a quarter.
#pragma once

#include "cuda/pair_tiles.hpp"

namespace simkit::cuda {

// A row of z that a candidate leaves out (-1: none), and the rows begin .. end that are its unit.
struct alignas(16) CandidateRow {
    static constexpr std::int32_t kFirst = 1, kLast = 2;
    std::int32_t row, flags, begin, end;

    SIMKIT_BOTH bool first() const { return flags & kFirst; }
    SIMKIT_BOTH bool last() const { return flags & kLast; }
};
static_assert(kSentAs<CandidateRow, 16>);

// Rows that come at once, from `begin` of the list on; candidates first .. first + count are complete with them.
struct alignas(16) CandidateSlice {
    std::int32_t begin, rows, first, count;
};
static_assert(kSentAs<CandidateSlice, 16>);

// What a distance is at least, as a share of what it was, that is not formed again from the rows that are left.
template <class T>
SIMKIT_BOTH constexpr T kept_share() {
    return sizeof(T) == 4 ? T(0.1) : T(1e-4);
}

// Program blocks [parts, count]: `count` tiles and one part of the candidates each, slices[begins[part]] ..
//   slots [candidates, strips, n], T: sums of rows over the other samples' strips (a tile's columns are rows too)
//   sums [candidates, 2, tiles], float64: of K L and of K^2, i < j once, and the half of i = j where it counts
// Sums: T over a thread's 16 pairs and 16 threads (rows: 64 pairs); float64 from there on.
template <class T, class Value>
struct CandidateTiles {
    static constexpr bool kSingle = sizeof(T) == 4;
    static constexpr int kThreads = PairTile::kThreads, kResident = 2, kWidth = PairTile::kWidth;
    static constexpr int kOwn = PairTile::kOwn, kEdge = PairTile::kEdge;
    static constexpr int kRows = 8, kEach = 2 * kRows * kWidth / kThreads;  // of a slice
    static constexpr int kBatch = kSingle ? 4 : 1;                          // candidates of a slice
    struct Parts {
        alignas(16) T rows[kSide][kWidth + 4], columns[kSide][kWidth + 4];
        T cross[kThreads], squares[kThreads];
    };
    struct Shared {
        alignas(16) T z[kRows][2][kWidth];
        Parts parts[kBatch];
        T groups[kBatch][2][kSide];
    };
    struct Registers {
        T start[kOwn], l[kOwn], x[kOwn];
        T next[kEach];
        std::uint32_t inside;  // the pairs that count
        bool careful;
    };

    const T *z, *start, *l;  // start, l [count]: PairTiles
    const std::int32_t* kept;
    Index n, strips, kept_rows;
    const CandidateRow* rows;
    const CandidateSlice* slices;
    const std::int32_t* begins;  // [parts + 1]
    const TilePlace* places;     // [count]
    Index count, first, tiles;   // of them, its first one's number, all there are
    bool diagonal;               // i = j counts
    Value value;
    const T* levels;  // [n] in rows of whole strips, each candidate's `each` further, or 0
    Index each;
    T* slots;
    double* sums;

    // Step 0 brings the tile in; then in turns, what a slice's candidates are and the sums across threads.
    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers& registers) const {
        const auto part = static_cast<std::uint32_t>(number) / static_cast<std::uint32_t>(count);
        const Index t = number - Index{part} * count;
        const TilePlace& place = places[t];
        const CandidateSlice* const mine = slices + begins[part];
        const int many = begins[part + 1] - begins[part], turn = (k - 1) / 2;
        if (k == 0) {
            load(t, place, thread, registers);
            fetch(mine[0], place, thread, registers);
            store(mine[0], thread, registers, shared);
            return true;
        }
        if (k % 2 == 1) {
            if (turn > 0) add_groups(mine[turn - 1], first + t, thread, shared);
            if (turn == many) return false;
            if (turn + 1 < many) fetch(mine[turn + 1], place, thread, registers);
            pass(mine[turn], place, thread, shared, registers);
            return true;
        }
        add_parts(mine[turn], place, thread, shared);
        if (turn + 1 < many) store(mine[turn + 1], thread, registers, shared);
        return true;
    }

  private:
    SIMKIT_BOTH void load(Index t, const TilePlace& place, int thread, Registers& g) const {
        g.inside = 0;
        bool near = true;
        SIMKIT_UNROLL
        for (int e = 0; e < kOwn; ++e) {
            const Index i = place.row * kWidth + PairTile::row(thread, e);
            const Index j = place.column * kWidth + PairTile::column(thread, e);
            if (j < n && (i < j || (i == j && diagonal))) g.inside |= 1u << e;
            g.start[e] = start[PairTile::at(t, e, thread)];
            g.l[e] = l[PairTile::at(t, e, thread)];
            if constexpr (Value::kDistance && Value::kQuick) near = near && -g.start[e] <= Value::most();
        }
        g.careful = !near || g.inside != (1u << kOwn) - 1;
    }

    SIMKIT_BOTH void fetch(const CandidateSlice& slice, const TilePlace& place, int thread, Registers& g) const {
        SIMKIT_UNROLL
        for (int e = 0; e < kEach; ++e) {
            const int at = thread + e * kThreads, side = at / kWidth % 2;
            const std::int32_t r = at / (2 * kWidth);
            g.next[e] = T(0);
            if (r >= slice.rows) continue;
            const Index row = rows[slice.begin + r].row, i = (side ? place.column : place.row) * kWidth + at % kWidth;
            if (row >= 0 && i < n) g.next[e] = z[row * n + i];
        }
    }

    SIMKIT_BOTH static void store(const CandidateSlice& slice, int thread, const Registers& g, Shared& shared) {
        SIMKIT_UNROLL
        for (int e = 0; e < kEach; ++e) {
            const int at = thread + e * kThreads;
            if (at / (2 * kWidth) < slice.rows) shared.z[at / (2 * kWidth)][at / kWidth % 2][at % kWidth] = g.next[e];
        }
    }

    SIMKIT_BOTH void pass(const CandidateSlice& slice, const TilePlace& place, int thread, Shared& shared,
                          Registers& g) const {
        int done = 0;
        SIMKIT_NO_UNROLL
        for (int r = 0; r < slice.rows; ++r) {
            const CandidateRow row = rows[slice.begin + r];
            const auto a = *reinterpret_cast<const PairEdge<T>*>(&shared.z[r][0][PairTile::row(thread, 0)]);
            const auto b = *reinterpret_cast<const PairEdge<T>*>(&shared.z[r][1][PairTile::column(thread, 0)]);
            if (row.first())
                leave_out(a, b, g.start, g.x);
            else
                leave_out(a, b, g.x, g.x);
            if (row.last()) {
                finish(row, place, slice.first + done, thread, shared.parts[done], g);
                ++done;
            }
        }
    }

    SIMKIT_BOTH static void leave_out(const PairEdge<T>& a, const PairEdge<T>& b, const T* from, T* x) {
        SIMKIT_UNROLL
        for (int e = 0; e < kOwn; ++e) {
            const T own = a.value[e / kEdge], other = b.value[e % kEdge], d = own - other;
            x[e] = Value::kDistance ? from[e] + d * d : from[e] - own * other;
        }
    }

    SIMKIT_BOTH void finish(const CandidateRow& row, const TilePlace& place, Index candidate, int thread, Parts& parts,
                            Registers& g) const {
        if constexpr (Value::kQuick) {
            if (!g.careful) {
                add_up<false>(place, candidate, thread, parts, g);
                return;
            }
        }
        if constexpr (Value::kDistance) mend(row, place, thread, g);
        add_up<true>(place, candidate, thread, parts, g);
    }

    // Distances that have cancelled are formed again from the rows that are left: what rounding leaves of them may be
    // larger than they are, and a root makes much of it. (Of infinite ones nothing is known but that they are.)
    SIMKIT_BOTH void mend(const CandidateRow& row, const TilePlace& place, int thread, Registers& g) const {
        std::uint32_t cancelled = 0;
        SIMKIT_UNROLL
        for (int e = 0; e < kOwn; ++e)
            cancelled |= static_cast<std::uint32_t>(!(g.x[e] <= kept_share<T>() * g.start[e])) << e;
        cancelled &= g.inside;
        if (!cancelled) return;
        SIMKIT_NO_UNROLL
        for (int at = 0; at < kOwn; ++at) {
            if (!(cancelled >> at & 1u)) continue;
            const T left = distance_left(row, place.row * kWidth + PairTile::row(thread, at),
                                         place.column * kWidth + PairTile::column(thread, at));
            SIMKIT_UNROLL
            for (int e = 0; e < kOwn; ++e) g.x[e] = e == at ? -left : g.x[e];
        }
    }

    SIMKIT_BOTH T distance_left(const CandidateRow& of, Index i, Index j) const {
        double sum = 0.0;  // of many rows that are alike, which round alike
        for (Index k = 0; k < kept_rows; ++k) {
            const std::int32_t row = kept[k];
            if (row >= of.begin && row < of.end) continue;
            const double d = static_cast<double>(z[row * n + i] - z[row * n + j]);
            sum += rounded_product(d, d);
        }
        return static_cast<T>(sum);
    }

    template <bool Masked>
    SIMKIT_BOTH void add_up(const TilePlace& place, Index candidate, int thread, Parts& parts,
                            const Registers& g) const {
        const T* const off = levels + candidate * each;
        const auto own = *reinterpret_cast<const PairEdge<T>*>(off + place.row * kWidth + PairTile::row(thread, 0));
        const auto other =
            *reinterpret_cast<const PairEdge<T>*>(off + place.column * kWidth + PairTile::column(thread, 0));
        PairEdge<T> down{}, across{};
        T cross = T(0), squares = T(0);
        SIMKIT_UNROLL
        for (int e = 0; e < kOwn; ++e) {
            T k = value(g.x[e]) - (own.value[e / kEdge] + other.value[e % kEdge]), counted = k;
            bool twice = true;
            if constexpr (Masked) {
                if (!(g.inside >> e & 1u)) k = T(0);
                twice = !place.diagonal() || thread / kSide != thread % kSide || e / kEdge != e % kEdge;
                counted = twice ? k : T(0.5) * k;
            }
            cross += counted * g.l[e];
            squares += counted * k;
            down.value[e / kEdge] += k;
            if (twice) across.value[e % kEdge] += k;
        }
        *reinterpret_cast<PairEdge<T>*>(&parts.rows[thread % kSide][PairTile::row(thread, 0)]) = down;
        *reinterpret_cast<PairEdge<T>*>(&parts.columns[thread / kSide][PairTile::column(thread, 0)]) = across;
        parts.cross[thread] = cross;
        parts.squares[thread] = squares;
    }

    // The sum of 16 values, `stride` apart.
    SIMKIT_BOTH static T sum_of(const T* values, int stride) {
        T part[4];
        SIMKIT_UNROLL
        for (int q = 0; q < 4; ++q) part[q] = values[q * stride];
        SIMKIT_UNROLL
        for (int q = 4; q < kSide; ++q) part[q % 4] += values[q * stride];
        return (part[0] + part[1]) + (part[2] + part[3]);
    }

    SIMKIT_BOTH void add_parts(const CandidateSlice& slice, const TilePlace& place, int thread, Shared& shared) const {
        for (int at = thread; at < slice.count * 2 * kWidth; at += kThreads) {
            const Parts& parts = shared.parts[at / (2 * kWidth)];
            const int within = at % kWidth;
            const bool column = at / kWidth % 2 == 1;
            const Index i = (column ? place.column : place.row) * kWidth + within;
            if (i >= n || (column && place.diagonal())) continue;
            T sum = sum_of(column ? &parts.columns[0][within] : &parts.rows[0][within], kWidth + 4);
            if (place.diagonal()) sum += sum_of(&parts.columns[0][within], kWidth + 4);
            const Index candidate = slice.first + at / (2 * kWidth), strip = column ? place.row : place.column;
            slots[(candidate * strips + strip) * n + i] = sum;
        }
        const int group = thread % kSide, which = thread / kSide % 2, b = thread / (2 * kSide);
        if (b < slice.count) {
            const Parts& parts = shared.parts[b];
            shared.groups[b][which][group] = sum_of((which ? parts.squares : parts.cross) + group, kSide);
        }
    }

    // By threads of different warps, for the others go on.
    SIMKIT_BOTH void add_groups(const CandidateSlice& slice, Index tile, int thread, const Shared& shared) const {
        constexpr int apart = kThreads / (2 * kBatch);
        const int which = thread / apart % 2, b = thread / (2 * apart);
        if (thread % apart || b >= slice.count) return;
        double sum = 0.0;
        SIMKIT_UNROLL
        for (int group = 0; group < kSide; ++group) sum += static_cast<double>(shared.groups[b][which][group]);
        sums[(Index{slice.first + b} * 2 + which) * tiles + tile] = sum;
    }
};

// Program blocks [candidates]: the sums of all tiles, in their order.
//   rows [candidates, n], or null; totals [candidates, 4]: of K L, K^2, rows and rows^2. All float64.
template <class T>
struct JoinCandidates {
    static constexpr int kThreads = 256, kResident = 2, kSums = 4;
    struct Shared {
        double lanes[kSums][kThreads];
    };
    struct Registers {};

    const T* slots;
    const double* sums;
    Index n, strips, tiles;
    double *rows, *totals;

    SIMKIT_BOTH bool step(Index candidate, int thread, int k, Shared& shared, Registers&) const {
        if (k == 0) {
            first_sums(candidate, thread, shared);
            return true;
        }
        const int half = kThreads >> k;
        if (thread < half) {
            SIMKIT_UNROLL
            for (int q = 0; q < kSums; ++q) shared.lanes[q][thread] += shared.lanes[q][thread + half];
        }
        if (half > 1) return true;
        if (thread == 0)
            for (int q = 0; q < kSums; ++q) totals[candidate * kSums + q] = (q < 2 ? 2.0 : 1.0) * shared.lanes[q][0];
        return false;
    }

  private:
    SIMKIT_BOTH void first_sums(Index candidate, int thread, Shared& shared) const {
        double sum[kSums] = {};
        for (Index t = thread; t < tiles; t += kThreads) {
            sum[0] += sums[candidate * 2 * tiles + t];
            sum[1] += sums[(candidate * 2 + 1) * tiles + t];
        }
        for (Index i = thread; i < n; i += kThreads) {
            double row = 0.0;
            for (Index strip = 0; strip < strips; ++strip)
                row += static_cast<double>(slots[(candidate * strips + strip) * n + i]);
            if (rows) rows[candidate * n + i] = row;
            sum[2] += row;
            sum[3] += row * row;
        }
        SIMKIT_UNROLL
        for (int q = 0; q < kSums; ++q) shared.lanes[q][thread] = sum[q];
    }
};

}  // namespace simkit::cuda
