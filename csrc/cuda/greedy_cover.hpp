// The greedy cover of packed graphs, all at once, without a word to the host between picks.
//
// A gain is how much of N[v] is uncovered; gains only fall. The one-by-one procedure takes vertices of the largest gain
// by rising number while their gain stays: those of one gain that share no uncovered vertex with a lower one can be
// taken together, and are the same ones. A round takes the vertices of the largest gain that are the lowest such one
// for every uncovered vertex of their balls. Rounds: about the number of different gains, at most about sqrt(2 n), and
// a few more where vertices of one gain crowd each other out one after the other.
#pragma once

#include <vector>

#include "cuda/packed.hpp"

namespace simkit::cuda {

// What the threads of a strip know of its vertices.
struct VertexStrip {
    static constexpr int kThreads = 256, kWords = kThreads / kWord, kGroup = 32, kGroups = kThreads / kGroup;

    SIMKIT_BOTH static int sum(const int* values, int count) {
        int all = 0;
        for (int k = 0; k < count; ++k) all += values[k];
        return all;
    }
    SIMKIT_BOTH static int largest(const int* values, int count) {
        int most = 0;
        for (int k = 0; k < count; ++k) most = values[k] > most ? values[k] : most;
        return most;
    }
};

// gain = |N[v]|, most [count, strips]: the largest of a strip; level = 0, everything uncovered. Program blocks
// [count, strips].
struct BeginCover : VertexStrip {
    static constexpr int kResident = 4;
    struct Shared {
        int gain[kThreads];
    };
    struct Registers {};

    Graphs graphs;
    const Vertex* degree;
    Vertex* level;
    int *gain, *most;
    Bits* uncovered;

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers&) const {
        const Index strips = pieces(graphs.n, kThreads), graph = number / strips, strip = number % strips;
        if (k == 0) {
            const Index v = strip * kThreads + thread, at = graph * graphs.n + v;
            shared.gain[thread] = 0;
            if (v >= graphs.n) return true;
            level[at] = 0;
            shared.gain[thread] = gain[at] = static_cast<int>(degree[at]) + 1;
            return true;
        }
        const Index word = strip * kWords + thread;
        if (thread < kWords && word < graphs.words) uncovered[graph * graphs.words + word] = graphs.inside(word);
        if (thread == 0) most[number] = largest(shared.gain, kThreads);
        return false;
    }
};

// candidates [count, words]: the vertices of the largest gain; without a gain a graph is finished. Program blocks:
// tiles.
struct FindCandidates {
    static constexpr int kThreads = kWord, kResident = 8;
    struct Shared {
        int largest[kWord];
        TileFlags flags;
    };
    struct Registers {};

    Graphs graphs;
    Watch watch;
    const int *gain, *most;
    Bits* candidates;

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers&) const {
        const Index graph = number / graphs.words, v = number % graphs.words * kWord + thread;
        if (!watch.live(graph)) return false;
        if (k == 0) {
            const Index strips = pieces(graphs.n, VertexStrip::kThreads);
            int own = 0;
            for (Index strip = thread; strip < strips; strip += kThreads)
                own = static_cast<int>(larger(Index{own}, Index{most[graph * strips + strip]}));
            shared.largest[thread] = own;
            return true;
        }
        if (k == 1) {
            const int all = VertexStrip::largest(shared.largest, kWord);
            shared.flags.flag[thread] = all > 0 && v < graphs.n && gain[graph * graphs.n + v] == all;
            if (all > 0) watch.go_on(graph);
            return true;
        }
        if (thread == 0) candidates[number] = shared.flags.word();
        return false;
    }
};

// The candidates that are taken: gains less what they cover, their gain as their level, and what is left uncovered.
// Program blocks [count, strips].
struct TakeCandidates : VertexStrip {
    static constexpr int kResident = 4, kEach = 16, kChunk = kThreads * kEach;
    struct Shared {
        int own[kThreads], group[kGroups];
        std::uint16_t covered[kChunk];
        unsigned char left[kThreads];
    };
    enum class Phase { look, join, list, count, close, tell };
    struct Registers {  // `phase` and `chunk` are alike in all threads
        Phase phase;
        Index chunk;
        Bits found;  // of the thread's vertices of the chunk, those that are covered now
        int fall;
    };

    Graphs graphs;
    Watch watch;
    const Bits *candidates, *uncovered;
    const Key* lowest;  // [count, n], of uncovered vertices: their lowest candidate
    const Key* agreed;  // [count, n], of candidates: the lowest of those over their uncovered vertices
    Vertex* level;
    int *gain, *most;
    Bits* left;  // as uncovered

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers& at) const {
        const Index strips = pieces(graphs.n, kThreads), graph = number / strips;
        if (!watch.live(graph)) return false;
        if (k == 0) {
            at.phase = Phase::look;
            at.chunk = 0;
            at.fall = 0;
        }
        const Index v = number % strips * kThreads + thread;
        switch (at.phase) {
            case Phase::look:
                at.found = look(graph, at.chunk * kChunk + thread * kEach);
                shared.own[thread] = bits_in(at.found);
                break;
            case Phase::join:
                if (thread < kGroups) shared.group[thread] = sum(shared.own + thread * kGroup, kGroup);
                break;
            case Phase::list:
                if (listed(shared) > 0) list(thread, at.found, shared);
                break;
            case Phase::count:
                if (v < graphs.n) at.fall += fall(graph, v, at.chunk * kChunk, shared);
                break;
            case Phase::close:
                if (thread < kWords) keep(graph, number % strips * kWords + thread, thread, shared);
                if (thread >= kThreads - kGroups) {
                    const int group = thread - (kThreads - kGroups);
                    shared.group[group] = largest(shared.own + group * kGroup, kGroup);
                }
                break;
            case Phase::tell:
                if (thread == 0) most[number] = largest(shared.group, kGroups);
                return false;
        }
        const bool chunk_done = at.phase == Phase::count || (at.phase == Phase::list && listed(shared) == 0);
        if (!chunk_done) {
            at.phase = static_cast<Phase>(static_cast<int>(at.phase) + 1);
        } else if (++at.chunk * kChunk < graphs.n) {
            at.phase = Phase::look;
        } else {
            at.phase = Phase::close;
            finish(graph, v, thread, at.fall, shared);
        }
        return true;
    }

  private:
    SIMKIT_BOTH bool taken(Index graph, Index v) const {
        return has(candidates + graph * graphs.words, v) && agreed[graph * graphs.n + v] == static_cast<Key>(v);
    }

    SIMKIT_BOTH bool covered_now(Index graph, Index u) const {
        if (u >= graphs.n || !has(uncovered + graph * graphs.words, u)) return false;
        const Key by = lowest[graph * graphs.n + u];
        return by != kNone && agreed[graph * graphs.n + static_cast<Index>(by)] == by;
    }

    SIMKIT_BOTH Bits look(Index graph, Index first) const {
        Bits found = 0;
        if (first >= graphs.n || !(uncovered[graph * graphs.words + first / kWord] >> (first % kWord))) return found;
        for (int e = 0; e < kEach; ++e) found |= static_cast<Bits>(covered_now(graph, first + e)) << e;
        return found;
    }

    SIMKIT_BOTH static int listed(const Shared& shared) { return sum(shared.group, kGroups); }

    SIMKIT_BOTH static void list(int thread, Bits found, Shared& shared) {
        const int group = thread / kGroup;
        int to = sum(shared.group, group) + sum(shared.own + group * kGroup, thread % kGroup);
        for (Bits rest = found; rest; rest &= rest - 1)
            shared.covered[to++] = static_cast<std::uint16_t>(thread * kEach + lowest_bit(rest));
    }

    // How many of the listed vertices are in N[v].
    SIMKIT_BOTH int fall(Index graph, Index v, Index base, const Shared& shared) const {
        const int count = listed(shared);
        const Bits* column = graphs.row(graph, base) + v / kWord;
        int many = 0;
        SIMKIT_UNROLL_FOUR
        for (int k = 0; k < count; ++k) {
            const Index u = shared.covered[k];
            many += static_cast<int>(column[u * graphs.words] >> (v % kWord) & 1);
        }
        return many;
    }

    SIMKIT_BOTH void finish(Index graph, Index v, int thread, int fall, Shared& shared) const {
        shared.left[thread] = 0;
        shared.own[thread] = 0;
        if (v >= graphs.n) return;
        const Index at = graph * graphs.n + v;
        const bool now = covered_now(graph, v);
        shared.left[thread] = has(uncovered + graph * graphs.words, v) && !now;
        if (taken(graph, v)) level[at] = static_cast<Vertex>(gain[at]);
        gain[at] -= fall + (now ? 1 : 0);
        shared.own[thread] = gain[at];
    }

    SIMKIT_BOTH void keep(Index graph, Index word, int part, const Shared& shared) const {
        if (word >= graphs.words) return;
        Bits rest = 0;
        for (int r = 0; r < kWord; ++r) rest |= static_cast<Bits>(shared.left[part * kWord + r] != 0) << r;
        left[graph * graphs.words + word] = rest;
    }
};

// level [count, n]: what a centre covered when it was chosen, 0 for others.
template <class M>
void greedy_cover(M& machine, const Graphs& graphs, const Vertex* degree, Vertex* level) {
    const Index all = graphs.vertices(), tiles = graphs.tiles();
    auto gain = machine.template array<int>(all);
    auto lowest = machine.template array<Key>(all), agreed = machine.template array<Key>(all);
    auto candidates = machine.template array<Bits>(tiles);
    auto one = machine.template array<Bits>(tiles), other = machine.template array<Bits>(tiles);
    const Index strips = graphs.count * pieces(graphs.n, VertexStrip::kThreads);
    auto most = machine.template array<int>(strips);
    machine.run(BeginCover{{}, graphs, degree, level, gain.data(), most.data(), one.data()}, strips);
    until_finished(
        machine, graphs, std::vector<Vertex>(static_cast<std::size_t>(graphs.count), 1), [&](const Watch& watch) {
            Bits* uncovered = watch.round % 2 ? one.data() : other.data();
            Bits* left = watch.round % 2 ? other.data() : one.data();
            machine.run(FindCandidates{graphs, watch, gain.data(), most.data(), candidates.data()}, tiles);
            const Watch on = watch.after();
            machine.run(ReduceBalls<LowestVertex>{{}, graphs, on, uncovered, candidates.data(), {}, lowest.data()},
                        tiles);
            machine.run(
                ReduceBalls<LeastKey>{{}, graphs, on, candidates.data(), uncovered, {lowest.data()}, agreed.data()},
                tiles);
            machine.run(TakeCandidates{{},
                                       graphs,
                                       on,
                                       candidates.data(),
                                       uncovered,
                                       lowest.data(),
                                       agreed.data(),
                                       level,
                                       gain.data(),
                                       most.data(),
                                       left},
                        strips);
        });
}

}  // namespace simkit::cuda
