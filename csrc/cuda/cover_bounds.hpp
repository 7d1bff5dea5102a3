// Lower bounds of the covering numbers of packed graphs, all at once: a packing and the dual. See ops/cover.hpp.
//
// Both go through vertices by rising degree, ties by rising number, and what becomes of a vertex depends on those
// before it within two hops only. A round takes every vertex that comes before all others left within two hops: the
// least key of a ball, and the least of those, is its own. Nothing of a round touches what another vertex of it
// touches, and every value is added to in the order of the one-by-one procedure.
#pragma once

#include <algorithm>
#include <vector>

#include "cuda/packed.hpp"

namespace simkit::cuda {

constexpr double kSlack = 1e-9;  // of a constraint: less is rounding

SIMKIT_BOTH inline Key key_of(Vertex degree, Index v) { return (static_cast<Key>(degree) << 32) | static_cast<Key>(v); }

// Which vertices go first in a round: key [count, n] of all; first and agreed of `ReduceBalls`.
struct FirstOfTwoHops {
    const Key* key;     // [count, n]
    const Key* first;   // the least key in N[v] of the vertices that are left
    const Key* agreed;  // of vertices that are left: the least of those over N[v]

    SIMKIT_BOTH bool goes(Index at) const { return agreed[at] == key[at]; }

    // The vertex of N[v] that goes: there is one at most. -1 where there is none; base: of the graph.
    SIMKIT_BOTH Index goes_near(Index base, Index v) const {
        const Key least = first[base + v];
        const Index u = static_cast<Index>(least & 0xffffffffu);
        return least != kNone && agreed[base + u] == least ? u : -1;
    }
};

// key, |N[v]| as a number, and every vertex left. Program blocks: tiles.
struct BeginBounds {
    static constexpr int kThreads = kWord, kResident = 8;
    struct Shared {};
    struct Registers {};

    Graphs graphs;
    const Vertex* degree;
    Key* key;
    double* size;
    Bits *free, *active, *packed;

    SIMKIT_BOTH bool step(Index number, int thread, int, Shared&, Registers&) const {
        const Index tile = number % graphs.words, v = tile * kWord + thread;
        if (thread == 0) {
            free[number] = active[number] = graphs.inside(tile);
            packed[number] = 0;
        }
        if (v >= graphs.n) return false;
        const Index at = number / graphs.words * graphs.n + v;
        key[at] = key_of(degree[at], v);
        size[at] = static_cast<double>(degree[at]) + 1.0;
        return false;
    }
};

// Goes on with graphs that have a vertex left. Program blocks [count, pieces(words, kThreads)].
struct AnyLeft {
    static constexpr int kThreads = 64, kResident = 8;
    struct Shared {};
    struct Registers {};

    Graphs graphs;
    Watch watch;
    const Bits* left;

    SIMKIT_BOTH bool step(Index number, int thread, int, Shared&, Registers&) const {
        const Index strips = pieces(graphs.words, kThreads), graph = number / strips;
        const Index word = number % strips * kThreads + thread;
        if (word < graphs.words && watch.live(graph) && left[graph * graphs.words + word]) watch.go_on(graph);
        return false;
    }
};

// packed: the vertices that go join it; reached [count, words]: the vertices near one. Program blocks: tiles.
struct PackFirst {
    static constexpr int kThreads = kWord, kResident = 8;
    struct Shared {
        TileFlags packed, reached;
    };
    struct Registers {};

    Graphs graphs;
    Watch watch;
    const Bits* free;
    FirstOfTwoHops order;
    Bits *packed, *reached;

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers&) const {
        const Index graph = number / graphs.words, v = number % graphs.words * kWord + thread, base = graph * graphs.n;
        if (!watch.live(graph)) return false;
        if (k == 0) {
            shared.packed.flag[thread] = (free[number] >> thread & 1) && order.goes(base + v);
            shared.reached.flag[thread] = v < graphs.n && order.goes_near(base, v) >= 0;
            return true;
        }
        if (thread > 0) return false;
        packed[number] |= shared.packed.word();
        reached[number] = shared.reached.word();
        return false;
    }
};

// free: less the vertices that have a neighbour, or are one, that was reached. Program blocks: tiles.
struct LeaveReached {
    static constexpr int kThreads = kWord, kResident = 8;
    using Shared = TileFlags;
    struct Registers {};

    Graphs graphs;
    Watch watch;
    const Key* near;  // [count, n], of free vertices: the lowest vertex of N[v] that was reached
    Bits* free;

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers&) const {
        const Index graph = number / graphs.words, v = number % graphs.words * kWord + thread;
        if (!watch.live(graph)) return false;
        if (k == 0) {
            shared.flag[thread] = (free[number] >> thread & 1) && near[graph * graphs.n + v] == kNone;
            return true;
        }
        if (thread == 0) free[number] = shared.word();
        return false;
    }
};

// y = 1 / max over N[v] of |N[u]|. Program blocks: pieces(count n, kThreads).
struct InvertSizes {
    static constexpr int kThreads = 256, kResident = 4;
    struct Shared {};
    struct Registers {};

    const double* widest;
    Index count;
    double* y;

    SIMKIT_BOTH bool step(Index number, int thread, int, Shared&, Registers&) const {
        const Index at = number * kThreads + thread;
        if (at < count) y[at] = 1.0 / widest[at];
        return false;
    }
};

// active: those of it whose constraints all have slack left. Program blocks: tiles.
struct FindSlack {
    static constexpr int kThreads = kWord, kResident = 8;
    using Shared = TileFlags;
    struct Registers {};

    Graphs graphs;
    Watch watch;
    const double* heaviest;  // [count, n], of active vertices: the largest load in N[v]
    Bits* active;

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers&) const {
        const Index graph = number / graphs.words, v = number % graphs.words * kWord + thread;
        if (!watch.live(graph)) return false;
        if (k == 0) {
            shared.flag[thread] = (active[number] >> thread & 1) && 1.0 - heaviest[graph * graphs.n + v] > kSlack;
            return true;
        }
        if (thread > 0) return false;
        active[number] = shared.word();
        if (active[number]) watch.go_on(graph);
        return false;
    }
};

// y of the vertices that go rises by what is left of 1, and so do the loads of their balls. Program blocks: tiles.
struct RaiseFirst {
    static constexpr int kThreads = kWord, kResident = 8;
    using Shared = TileFlags;
    struct Registers {};

    Graphs graphs;
    Watch watch;
    const double* heaviest;
    FirstOfTwoHops order;
    Bits* active;
    double *y, *load;

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers&) const {
        const Index graph = number / graphs.words, v = number % graphs.words * kWord + thread, base = graph * graphs.n;
        if (!watch.live(graph)) return false;
        if (k == 0) {
            const bool active_still = (active[number] >> thread & 1) != 0, goes = active_still && order.goes(base + v);
            shared.flag[thread] = active_still && !goes;
            if (v >= graphs.n) return true;
            if (goes) y[base + v] += 1.0 - heaviest[base + v];
            const Index by = order.goes_near(base, v);
            if (by >= 0) load[base + v] += 1.0 - heaviest[base + by];
            return true;
        }
        if (thread == 0) active[number] = shared.word();
        return false;
    }
};

// sums [tiles] of y. Program blocks: tiles.
struct SumTiles {
    static constexpr int kThreads = kWord, kResident = 8;
    struct Shared {
        double values[kWord];
    };
    struct Registers {};

    Graphs graphs;
    const double* y;
    double* sums;

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers&) const {
        const Index v = number % graphs.words * kWord + thread;
        if (k == 0) {
            shared.values[thread] = v < graphs.n ? y[number / graphs.words * graphs.n + v] : 0.0;
            return true;
        }
        if (thread > 0) return false;
        double sum = 0.0;
        for (const double value : shared.values) sum += value;
        sums[number] = sum;
        return false;
    }
};

// What both bounds go through.
template <class M>
class CoverBounds {
  public:
    CoverBounds(M& machine, const Graphs& graphs, const Vertex* degree)
        : machine_(machine),
          graphs_(graphs),
          key_(machine.template array<Key>(graphs.vertices())),
          first_(machine.template array<Key>(graphs.vertices())),
          agreed_(machine.template array<Key>(graphs.vertices())),
          heaviest_(machine.template array<double>(graphs.vertices())),
          y_(machine.template array<double>(graphs.vertices())),
          load_(machine.template array<double>(graphs.vertices())),
          free_(machine.template array<Bits>(graphs.tiles())),
          active_(machine.template array<Bits>(graphs.tiles())),
          reached_(machine.template array<Bits>(graphs.tiles())),
          packed_(machine.template array<Bits>(graphs.tiles())) {
        machine.run(
            BeginBounds{graphs, degree, key_.data(), load_.data(), free_.data(), active_.data(), packed_.data()},
            graphs.tiles());
    }

    // [count, words]
    std::vector<Bits> packing() {
        const Index tiles = graphs_.tiles();
        until_finished(machine_, graphs_, std::vector<Vertex>(static_cast<std::size_t>(graphs_.count), 1),
                       [&](const Watch& watch) {
                           machine_.run(AnyLeft{graphs_, watch, free_.data()},
                                        graphs_.count * pieces(graphs_.words, AnyLeft::kThreads));
                           const Watch on = watch.after();
                           agree(on, free_.data());
                           machine_.run(PackFirst{graphs_, on, free_.data(), order(), packed_.data(), reached_.data()},
                                        tiles);
                           reduce(LowestVertex{}, on, free_.data(), reached_.data(), first_.data());
                           machine_.run(LeaveReached{graphs_, on, first_.data(), free_.data()}, tiles);
                       });
        return fetched<M, Bits>(machine_, packed_, tiles);
    }

    // Of every graph; raised: 1 for graphs whose dual is raised as far as it goes.
    std::vector<double> dual(const std::vector<Vertex>& raised) {
        const Index all = graphs_.vertices(), tiles = graphs_.tiles();
        const auto zeros = sent(machine_, std::vector<Vertex>(raised.size(), 0));
        const Watch everyone{zeros.data(), nullptr, 0};
        reduce(LargestValue{load_.data()}, everyone, nullptr, nullptr, heaviest_.data());
        machine_.run(InvertSizes{heaviest_.data(), all, y_.data()}, pieces(all, InvertSizes::kThreads));
        if (std::find(raised.begin(), raised.end(), Vertex{1}) != raised.end()) raise(raised);
        auto sums = machine_.template array<double>(tiles);
        machine_.run(SumTiles{graphs_, y_.data(), sums.data()}, tiles);
        const auto parts = fetched<M, double>(machine_, sums, tiles);
        std::vector<double> total(raised.size(), 0.0);
        for (Index k = 0; k < tiles; ++k) total[k / graphs_.words] += parts[k];
        return total;
    }

  private:
    template <class Of>
    void reduce(const Of& values, const Watch& watch, const Bits* rows, const Bits* from, typename Of::Value* out) {
        machine_.run(ReduceBalls<Of>{{}, graphs_, watch, rows, from, values, out}, graphs_.tiles());
    }

    // Who goes first among the vertices that are left.
    void agree(const Watch& watch, const Bits* left) {
        reduce(LeastKey{key_.data()}, watch, nullptr, left, first_.data());
        reduce(LeastKey{first_.data()}, watch, left, nullptr, agreed_.data());
    }

    FirstOfTwoHops order() const { return {key_.data(), first_.data(), agreed_.data()}; }

    void raise(const std::vector<Vertex>& which) {
        const Index tiles = graphs_.tiles();
        const auto one = sent(machine_, std::vector<Vertex>(which));
        reduce(SumOfValues{{y_.data()}}, {one.data(), nullptr, 1}, nullptr, nullptr, load_.data());
        until_finished(machine_, graphs_, which, [&](const Watch& watch) {
            reduce(LargestValue{load_.data()}, watch, active_.data(), nullptr, heaviest_.data());
            machine_.run(FindSlack{graphs_, watch, heaviest_.data(), active_.data()}, tiles);
            const Watch on = watch.after();
            agree(on, active_.data());
            machine_.run(RaiseFirst{graphs_, on, heaviest_.data(), order(), active_.data(), y_.data(), load_.data()},
                         tiles);
        });
    }

    M& machine_;
    Graphs graphs_;
    typename M::template Array<Key> key_, first_, agreed_;
    typename M::template Array<double> heaviest_, y_, load_;
    typename M::template Array<Bits> free_, active_, reached_, packed_;
};

}  // namespace simkit::cuda
