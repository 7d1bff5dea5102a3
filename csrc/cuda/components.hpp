// Components of packed graphs: labels fall to the lowest vertex of a component, all graphs at once. See ops/cover.hpp.
//
// A label is a vertex of the same component, not above its owner, that is its own label: a root. A round: every vertex
// takes the least label of its neighbours (`ReduceBalls`), every root the least one that has reached its vertices
// (`HookRoots`), and then chains of roots are followed to their ends. Whoever writes owns what he writes: no atomics,
// nothing that depends on who is first. Rounds: about the logarithm of the components that still merge.
#pragma once

#include "cuda/packed.hpp"

namespace simkit::cuda {

// parent -> label: the end of its chain; open [count, words]: the vertices whose label may still fall. Program blocks:
// tiles.
struct FollowParents {
    static constexpr int kThreads = kWord, kResident = 8;
    using Shared = TileFlags;
    struct Registers {};

    Graphs graphs;
    Watch watch;
    const Vertex *parent, *degree;  // [count, n]
    Key* label;                     // [count, n]
    Bits* open;

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers&) const {
        const Index graph = number / graphs.words, v = number % graphs.words * kWord + thread;
        if (!watch.live(graph)) return false;
        if (k == 0) {
            shared.flag[thread] = 0;
            if (v >= graphs.n) return true;
            const Vertex* of = parent + graph * graphs.n;
            auto end = static_cast<Vertex>(v);
            while (of[end] != end) end = of[end];  // parents descend
            label[graph * graphs.n + v] = end;
            shared.flag[thread] = end > 0 && degree[graph * graphs.n + v] > 0;
            return true;
        }
        if (thread == 0) open[number] = shared.word();
        return false;
    }
};

// news [count, words]: the vertices that have seen a label below their own; a graph without any is finished. Program
// blocks: tiles.
struct FindNews {
    static constexpr int kThreads = kWord, kResident = 8;
    using Shared = TileFlags;
    struct Registers {};

    Graphs graphs;
    Watch watch;
    const Bits* open;
    const Key *label, *least;
    Bits* news;

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers&) const {
        const Index graph = number / graphs.words, at = graph * graphs.n + number % graphs.words * kWord + thread;
        if (!watch.live(graph)) return false;
        if (k == 0) {
            shared.flag[thread] = (open[number] >> thread & 1) && least[at] < label[at];
            return true;
        }
        if (thread > 0) return false;
        news[number] = shared.word();
        if (news[number]) watch.go_on(graph);
        return false;
    }
};

// parent [count, n]: of a root the least label that its vertices have seen, of others their root. Program blocks
// [count, pieces(n, kThreads)].
struct HookRoots {
    static constexpr int kThreads = 256, kResident = 4;
    struct Shared {};
    struct Registers {};

    Graphs graphs;
    Watch watch;
    const Bits* news;
    const Key *label, *least;
    Vertex* parent;

    SIMKIT_BOTH bool step(Index number, int thread, int, Shared&, Registers&) const {
        const Index strips = pieces(graphs.n, kThreads), graph = number / strips;
        const Index v = number % strips * kThreads + thread, base = graph * graphs.n;
        if (v >= graphs.n || !watch.live(graph)) return false;
        Key found = label[base + v];
        if (found == static_cast<Key>(v))
            for (Index w = 0; w < graphs.words; ++w)
                for (Bits word = news[graph * graphs.words + w]; word; word &= word - 1) {
                    const Index u = base + w * kWord + lowest_bit(word);
                    if (label[u] == static_cast<Key>(v) && least[u] < found) found = least[u];
                }
        parent[base + v] = static_cast<Vertex>(found);
        return false;
    }
};

// numbers [count, n]: labels that are roots -> 0, 1, ... by their order. Program blocks: count.
struct NumberRoots {
    static constexpr int kThreads = 256, kResident = 1;
    struct Shared {
        Index roots[kThreads], before[kThreads];
    };
    struct Registers {};

    Graphs graphs;
    const Key* label;
    Vertex* places;  // [count, n], of roots
    Index* numbers;

    SIMKIT_BOTH bool step(Index graph, int thread, int k, Shared& shared, Registers&) const {
        const Index each = pieces(graphs.n, kThreads), base = graph * graphs.n;
        const Index begin = smaller(graphs.n, thread * each), end = smaller(graphs.n, begin + each);
        if (k == 0) {
            Index own = 0;
            for (Index v = begin; v < end; ++v) own += label[base + v] == static_cast<Key>(v);
            shared.roots[thread] = own;
            return true;
        }
        if (k == 1) {
            Index before = 0;
            for (int other = 0; other < thread; ++other) before += shared.roots[other];
            for (Index v = begin; v < end; ++v)
                if (label[base + v] == static_cast<Key>(v)) places[base + v] = static_cast<Vertex>(before++);
            return true;
        }
        for (Index v = thread; v < graphs.n; v += kThreads) numbers[base + v] = places[base + label[base + v]];
        return false;
    }
};

// labels [count, n]: components numbered by their lowest vertex; edges [count].
template <class M>
void components(M& machine, const Graphs& graphs, Index* labels, Index* edges) {
    const Index all = graphs.vertices(), tiles = graphs.tiles();
    auto degree = machine.template array<Vertex>(all), parent = machine.template array<Vertex>(all);
    auto sums = machine.template array<Index>(tiles);
    auto label = machine.template array<Key>(all), least = machine.template array<Key>(all);
    auto open = machine.template array<Bits>(tiles), news = machine.template array<Bits>(tiles);
    machine.run(Survey{{}, graphs, degree.data(), parent.data(), sums.data()}, tiles);
    const auto begin = sent(machine, std::vector<Vertex>(static_cast<std::size_t>(graphs.count), 0));
    machine.run(
        FollowParents{graphs, {begin.data(), nullptr, 0}, parent.data(), degree.data(), label.data(), open.data()},
        tiles);
    until_finished(
        machine, graphs, std::vector<Vertex>(static_cast<std::size_t>(graphs.count), 1), [&](const Watch& watch) {
            machine.run(ReduceBalls<LeastKey>{{}, graphs, watch, open.data(), nullptr, {label.data()}, least.data()},
                        tiles);
            machine.run(FindNews{graphs, watch, open.data(), label.data(), least.data(), news.data()}, tiles);
            const Watch on = watch.after();
            machine.run(HookRoots{graphs, on, news.data(), label.data(), least.data(), parent.data()},
                        graphs.count * pieces(graphs.n, HookRoots::kThreads));
            machine.run(FollowParents{graphs, on, parent.data(), degree.data(), label.data(), open.data()}, tiles);
        });
    auto places = machine.template array<Vertex>(all);
    auto numbers = machine.template array<Index>(all);
    machine.run(NumberRoots{graphs, label.data(), places.data(), numbers.data()}, graphs.count);
    machine.fetch(labels, numbers, all);
    const auto total = degree_sums(machine, graphs, sums);
    for (Index graph = 0; graph < graphs.count; ++graph) edges[graph] = total[graph] / 2;
}

}  // namespace simkit::cuda
