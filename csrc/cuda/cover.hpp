// Covers of packed graphs and their bounds, on any machine. See ops/cover.hpp.
#pragma once

#include <stdexcept>
#include <vector>

#include "cuda/cover_bounds.hpp"
#include "cuda/greedy_cover.hpp"
#include "ops/cover.hpp"

namespace simkit::cuda {

// The chosen vertices by rising rank(v), 0 to n, ties in their order.
template <class Rank>
std::vector<Index> by_rank(const std::vector<Index>& chosen, Index n, const Rank& rank) {
    std::vector<Index> place(static_cast<std::size_t>(n) + 2, 0), ordered(chosen.size());
    for (const Index v : chosen) ++place[rank(v) + 1];
    for (Index r = 0; r <= n; ++r) place[r + 1] += place[r];
    for (const Index v : chosen) ordered[place[rank(v)]++] = v;
    return ordered;
}

constexpr Index kSparse = 16;  // edges a vertex up to which the dual is raised

template <class M>
std::vector<Cover> covers(M& machine, const Graphs& graphs) {
    const Index n = graphs.n, all = graphs.vertices(), tiles = graphs.tiles();
    auto degree = machine.template array<Vertex>(all), level = machine.template array<Vertex>(all);
    auto sums = machine.template array<Index>(tiles);
    machine.run(Survey{{}, graphs, degree.data(), level.data(), sums.data()}, tiles);
    std::vector<Vertex> sparse;
    for (const Index sum : degree_sums(machine, graphs, sums)) sparse.push_back(sum <= 2 * kSparse * n ? 1 : 0);
    greedy_cover(machine, graphs, degree.data(), level.data());
    CoverBounds<M> bounds(machine, graphs, degree.data());
    const auto packed = bounds.packing();
    const auto dual = bounds.dual(sparse);
    const auto levels = fetched<M, Vertex>(machine, level, all), degrees = fetched<M, Vertex>(machine, degree, all);
    std::vector<Cover> out;
    for (Index graph = 0; graph < graphs.count; ++graph) {
        std::vector<Index> centres, packing;
        Index covered = 0;
        const Vertex *of = levels.data() + graph * n, *by = degrees.data() + graph * n;
        for (Index v = 0; v < n; ++v) {
            if (of[v] > 0) centres.push_back(v);
            covered += of[v];
            if (has(packed.data() + graph * graphs.words, v)) packing.push_back(v);
        }
        if (covered != n) throw std::invalid_argument("the adjacency is not symmetric");
        out.push_back({by_rank(centres, n, [&](Index v) { return n - static_cast<Index>(of[v]); }),
                       by_rank(packing, n, [&](Index v) { return static_cast<Index>(by[v]); }), dual[graph]});
    }
    return out;
}

}  // namespace simkit::cuda
