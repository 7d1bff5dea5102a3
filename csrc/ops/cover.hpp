// Components and covers of a graph given as packed adjacency [n, words]: bit j % 64 of word j / 64 of row i; symmetric,
// diagonal clear, bits from n on clear. N[v] is v with its neighbours.
//
// Components: searched with bit sets, each vertex expanded once, O(n words).
// Upper bound of the covering number (smallest C whose N[c] together hold every vertex; minimum dominating set): the
// greedy cover by residual degree |N[v] minus what is covered|, ties to the lowest index.
// Lower bounds: a packing (vertices more than two hops apart: their N[v] are disjoint, and each needs its own centre),
// filled by rising degree; and a dual of the linear relaxation, y_u = 1 / max_{v in N[u]} |N[v]|, feasible because
// sum_{u in N[v]} y_u <= 1; where there are at most 16 edges a vertex, each y_u is then raised, by rising degree, as
// far as that allows. Its float64 sum is a bound to within rounding.
#pragma once

#include <cstdint>
#include <vector>

#include "core/place.hpp"

namespace simkit {

struct Graph {
    const std::uint64_t* bits;  // [n, words]
    std::int64_t n, words;
};

// labels [n]: components numbered by their lowest vertex; returns the number of edges.
std::int64_t components(const Graph& graph, std::int64_t* labels);

struct Cover {
    std::vector<std::int64_t> centres;  // greedy, in the order of choice
    std::vector<std::int64_t> packing;  // pairwise more than two hops apart, in the order of choice
    double dual = 0.0;
};
Cover cover(const Graph& graph);

// On a device (core/place.hpp), of several graphs at once whose bits [graphs, n, words] lie there: the same components,
// centres and packings, labels [graphs, n] and edges [graphs]; the dual to within rounding.
namespace cuda {
void components(const Place& place, const std::uint64_t* bits, std::int64_t graphs, std::int64_t n,
                std::int64_t* labels, std::int64_t* edges);
std::vector<Cover> covers(const Place& place, const std::uint64_t* bits, std::int64_t graphs, std::int64_t n);
}  // namespace cuda

}  // namespace simkit
