// Graphs of rows at several thresholds, in one pass over the pairs, on any machine. See ops/adjacency.hpp.
//
// Unit rows are formed once, in the type of the products. A tile's products stay in registers: every threshold turns
// them into bits, 64 to a word, for the tile and for its mirror image. Pairs that the products' error bound leaves open
// at some threshold are marked, and decided by float64 differences of the rows as they came: the bits are those of the
// differences.
#pragma once

#include <algorithm>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "cuda/edge_tiles.hpp"
#include "cuda/unit_rows.hpp"
#include "ops/adjacency.hpp"

namespace simkit::cuda {

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
    out.farthest = pairs ? std::clamp(2.0 - 2.0 * static_cast<double>(found.smallest), 0.0, 4.0) : kNotANumber<double>;
    if (out.zeros.size() > 1) join_zeros(machine, out.zeros, n, thresholds, bits);
    return out;
}

// Float32 tiles are 128 wide, float64 ones 64.
template <class M>
Adjacency adjacency(M& machine, const MatrixView& x, const std::vector<double>& squared, Bits* bits) {
    return x.dtype == Dtype::f64 ? adjacency_in<double, 4>(machine, x, squared, bits)
                                 : adjacency_in<float, 8>(machine, x, squared, bits);
}

// The same on a machine that make() gives, in memory that stays.
template <class Make>
DeviceGraphs adjacency_there(const Make& make, const MatrixView& x, const std::vector<double>& squared) {
    const auto thresholds = static_cast<Index>(squared.size()), bytes = 8 * thresholds * x.rows * words_of(x.rows);
    return explained("the graphs of " + std::to_string(x.rows) + " rows at " + std::to_string(thresholds) +
                         " thresholds take " + std::to_string(bytes) +
                         " bytes there, less with fewer thresholds at a time",
                     [&] {
                         return with_memory(make, Index{0}, [&](auto& machine, Index) {
                             const auto memory = machine.memory(bytes);
                             const std::shared_ptr<Bits> bits(memory, reinterpret_cast<Bits*>(memory.get()));
                             return DeviceGraphs{adjacency(machine, x, squared, bits.get()), bits};
                         });
                     });
}

}  // namespace simkit::cuda
