// Packed graphs on a machine, and what their components and covers share: least values over balls, flags, rounds.
//
// N[v] is v with its neighbours. A word of a row holds 64 vertices, and so does a tile: what is known of the vertices
// of a tile, yes or no, is one word, written by one block.
#pragma once

#include <stdexcept>
#include <vector>

#include "cuda/machine.hpp"

namespace simkit::cuda {

constexpr int kWord = 64;

using Bits = std::uint64_t;
using Vertex = std::uint32_t;

SIMKIT_BOTH inline int bits_in(Bits word) {
#ifdef __CUDA_ARCH__
    return __popcll(static_cast<long long>(word));
#else
    return __builtin_popcountll(word);
#endif
}
SIMKIT_BOTH inline int lowest_bit(Bits word) {  // of a word that is not 0
#ifdef __CUDA_ARCH__
    return __ffsll(static_cast<long long>(word)) - 1;
#else
    return __builtin_ctzll(word);
#endif
}
SIMKIT_BOTH constexpr Bits bit(Index v) { return Bits{1} << (v % kWord); }
SIMKIT_BOTH inline bool has(const Bits* words, Index v) { return (words[v / kWord] & bit(v)) != 0; }

// Bit j % 64 of word j / 64 of row i: symmetric, diagonal clear, bits from n on clear. Values of vertices lie
// [count, n], words of vertices [count, words]. Tiles of all graphs: the blocks of most programs.
struct Graphs {
    const Bits* bits;  // [count, n, words]
    Index count, n, words;

    SIMKIT_BOTH Index vertices() const { return count * n; }
    SIMKIT_BOTH Index tiles() const { return count * words; }
    SIMKIT_BOTH const Bits* row(Index graph, Index v) const { return bits + (graph * n + v) * words; }
    SIMKIT_BOTH Bits ball(Index graph, Index v, Index word) const {
        return row(graph, v)[word] | (v / kWord == word ? bit(v) : 0);
    }
    SIMKIT_BOTH Bits inside(Index word) const {  // the vertices that a word holds
        const Index left = n - word * kWord;
        return left >= kWord ? ~Bits{0} : bit(left) - 1;
    }
};

// Which graphs have a round `round` to do, and which are to have another: the programs of a round do nothing to the
// others, so that rounds can be queued before anybody knows how many there are.
struct Watch {
    const Vertex* now;  // [count]
    Vertex* next;       // [count]; many blocks write the same number
    Vertex round;

    SIMKIT_BOTH bool live(Index graph) const { return now[graph] == round; }
    SIMKIT_BOTH void go_on(Index graph) const { next[graph] = round + 1; }
    Watch after() const { return {next, nullptr, round + 1}; }  // for what follows `go_on` within a round
};

// Queues rounds, and looks once in a while whether any graph goes on. first [count]: 1 for graphs that begin. A graph
// takes at most n + 1 rounds, unless its bits are not symmetric.
template <class M, class Round>
void until_finished(M& machine, const Graphs& graphs, std::vector<Vertex> first, Round&& queue) {
    constexpr Vertex kFew = 4, kMany = 32;  // rounds between looks, at first and later
    auto one = sent(machine, std::move(first));
    auto other = machine.template array<Vertex>(graphs.count);
    machine.zero(other, graphs.count);
    Vertex round = 1;
    for (Vertex queued = kFew;; queued = kMany) {
        for (Vertex k = 0; k < queued; ++k, ++round) {
            const bool odd = round % 2 != 0;
            queue(Watch{odd ? one.data() : other.data(), odd ? other.data() : one.data(), round});
        }
        bool more = false;
        for (const Vertex stamp : fetched<M, Vertex>(machine, round % 2 ? one : other, graphs.count))
            more = more || stamp == round;
        if (!more) return;
        if (round > graphs.n + 2) throw std::invalid_argument("the adjacency is not symmetric");
    }
}

// A word of flags, one for each vertex of a tile, by threads that know them.
struct TileFlags {
    unsigned char flag[kWord];

    SIMKIT_BOTH Bits word() const {
        Bits word = 0;
        for (int r = 0; r < kWord; ++r) word |= static_cast<Bits>(flag[r] != 0) << r;
        return word;
    }
};

// A tile's rows, 32 lanes each: lane l reads words l, l + 32, ... of a row.
struct TileRows {
    static constexpr int kThreads = 256, kLanes = 32, kGroups = kThreads / kLanes;
};

// What a ball is reduced to: an array's least value, its largest, its sum; or its lowest vertex.
using Key = std::uint64_t;
constexpr Key kNone = ~Key{0};
struct LeastKey {
    using Value = Key;
    static constexpr bool kLowestOnly = false;
    const Key* values;  // [count, n]

    SIMKIT_BOTH static Value nothing() { return kNone; }
    SIMKIT_BOTH Value of(const Graphs& graphs, Index graph, Index v) const { return values[graph * graphs.n + v]; }
    SIMKIT_BOTH static Value join(Value a, Value b) { return b < a ? b : a; }
};
struct LowestVertex {
    using Value = Key;
    static constexpr bool kLowestOnly = true;

    SIMKIT_BOTH static Value nothing() { return kNone; }
    SIMKIT_BOTH Value of(const Graphs&, Index, Index v) const { return static_cast<Key>(v); }
    SIMKIT_BOTH static Value join(Value a, Value b) { return b < a ? b : a; }
};
struct LargestValue {  // of values that are not negative
    using Value = double;
    static constexpr bool kLowestOnly = false;
    const double* values;  // [count, n]

    SIMKIT_BOTH static Value nothing() { return 0.0; }
    SIMKIT_BOTH Value of(const Graphs& graphs, Index graph, Index v) const { return values[graph * graphs.n + v]; }
    SIMKIT_BOTH static Value join(Value a, Value b) { return larger(a, b); }
};
struct SumOfValues : LargestValue {
    SIMKIT_BOTH static Value join(Value a, Value b) { return a + b; }
};

// out [count, n], of the vertices in `rows` (null: all): what the vertices of N[v] that are in `from` (null: all) come
// to. Program blocks: tiles.
template <class Of>
struct ReduceBalls : TileRows {
    static constexpr int kResident = 4;
    using Value = typename Of::Value;
    struct Shared {
        Value lanes[kWord][kLanes + 1];
    };
    struct Registers {};

    Graphs graphs;
    Watch watch;
    const Bits *rows, *from;  // [count, words]
    Of values;
    Value* out;

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers&) const {
        const Index graph = number / graphs.words, tile = number % graphs.words;
        const Bits wanted = (rows ? rows[number] : ~Bits{0}) & graphs.inside(tile);
        if (!wanted || !watch.live(graph)) return false;
        if (k == 0) {
            for (int r = thread / kLanes; r < kWord; r += kGroups)
                if (wanted >> r & 1) shared.lanes[r][thread % kLanes] = lane(graph, tile * kWord + r, thread % kLanes);
            return true;
        }
        if (thread < kWord && wanted >> thread & 1) {
            Value found = shared.lanes[thread][0];
            for (int other = 1; other < kLanes; ++other) found = Of::join(found, shared.lanes[thread][other]);
            out[graph * graphs.n + tile * kWord + thread] = found;
        }
        return false;
    }

  private:
    SIMKIT_BOTH Value lane(Index graph, Index v, int lane) const {
        Value found = Of::nothing();
        for (Index w = lane; w < graphs.words; w += kLanes) {
            const Bits of = from ? from[graph * graphs.words + w] : ~Bits{0};
            if (!of) continue;
            for (Bits word = graphs.ball(graph, v, w) & of; word; word &= word - 1) {
                found = Of::join(found, values.of(graphs, graph, w * kWord + lowest_bit(word)));
                if constexpr (Of::kLowestOnly) return found;  // words and their bits ascend
            }
        }
        return found;
    }
};

// degree [count, n]; lowest [count, n]: the lowest vertex of N[v]; edges [count, words]: the sum of a tile's degrees.
// Program blocks: tiles.
struct Survey : TileRows {
    static constexpr int kResident = 4;
    struct Shared {
        Vertex degree[kWord][kLanes + 1], lowest[kWord][kLanes + 1], total[kWord];
    };
    struct Registers {};

    Graphs graphs;
    Vertex *degree, *lowest;
    Index* sums;

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers&) const {
        const Index graph = number / graphs.words, tile = number % graphs.words;
        const Index count = smaller(kWord, graphs.n - tile * kWord);
        if (k == 0) {
            for (Index r = thread / kLanes; r < count; r += kGroups)
                survey(graph, tile * kWord + r, thread % kLanes, shared.degree[r][thread % kLanes],
                       shared.lowest[r][thread % kLanes]);
            return true;
        }
        if (k == 1) {
            if (thread < count) join(graph, tile * kWord + thread, thread, shared);
            return true;
        }
        if (thread > 0) return false;
        Index sum = 0;
        for (Index r = 0; r < count; ++r) sum += shared.total[r];
        sums[number] = sum;
        return false;
    }

  private:
    SIMKIT_BOTH void survey(Index graph, Index v, int lane, Vertex& many, Vertex& least) const {
        const Bits* row = graphs.row(graph, v);
        many = 0;
        least = static_cast<Vertex>(v);
        for (Index w = lane; w < graphs.words; w += kLanes) {
            const Bits word = row[w];
            many += static_cast<Vertex>(bits_in(word));
            if (!word) continue;
            const auto first = static_cast<Vertex>(w * kWord + lowest_bit(word));
            least = first < least ? first : least;
        }
    }

    SIMKIT_BOTH void join(Index graph, Index v, int r, Shared& shared) const {
        Vertex many = 0, least = static_cast<Vertex>(v);
        for (int other = 0; other < kLanes; ++other) {
            many += shared.degree[r][other];
            least = shared.lowest[r][other] < least ? shared.lowest[r][other] : least;
        }
        degree[graph * graphs.n + v] = many;
        lowest[graph * graphs.n + v] = least;
        shared.total[r] = many;
    }
};

// The sum of degrees of every graph.
template <class M>
std::vector<Index> degree_sums(M& machine, const Graphs& graphs, const typename M::template Array<Index>& sums) {
    const auto parts = fetched<M, Index>(machine, sums, graphs.tiles());
    std::vector<Index> total(static_cast<std::size_t>(graphs.count), 0);
    for (Index k = 0; k < graphs.tiles(); ++k) total[k / graphs.words] += parts[k];
    return total;
}

}  // namespace simkit::cuda
