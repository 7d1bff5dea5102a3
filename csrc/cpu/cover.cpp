#include "ops/cover.hpp"

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "core/clones.hpp"

namespace simkit {
namespace {

constexpr int kBits = 64;

using Bits = std::vector<std::uint64_t>;
using Indices = std::vector<std::int64_t>;

bool test(const Bits& bits, std::int64_t v) { return bits[v / kBits] >> (v % kBits) & 1; }

Bits all(const Graph& graph) {
    Bits bits(graph.words, ~std::uint64_t{0});
    if (graph.n % kBits) bits.back() >>= kBits - graph.n % kBits;
    return bits;
}

// Calls see(v) for every set bit, ascending.
template <class See>
void each(const std::uint64_t* bits, std::int64_t words, See&& see) {
    for (std::int64_t w = 0; w < words; ++w)
        for (std::uint64_t left = bits[w]; left; left &= left - 1) see(w * kBits + __builtin_ctzll(left));
}
template <class See>
void each(const Bits& bits, See&& see) {
    each(bits.data(), static_cast<std::int64_t>(bits.size()), see);
}
// For every neighbour of v.
template <class See>
void each(const Graph& graph, std::int64_t v, See&& see) {
    each(graph.bits + v * graph.words, graph.words, see);
}

[[gnu::always_inline]] inline void add_counts(const std::uint64_t* rows, std::int64_t n, std::int64_t words,
                                              const std::uint64_t* mask, std::int32_t sign, std::int32_t* counts) {
    for (std::int64_t v = 0; v < n; ++v) {
        std::int64_t count = 0;
        for (std::int64_t w = 0; w < words; ++w) count += __builtin_popcountll(rows[v * words + w] & mask[w]);
        counts[v] += sign * static_cast<std::int32_t>(count);
    }
}
SIMKIT_CLONES void count_plain(const std::uint64_t* rows, std::int64_t n, std::int64_t words, const std::uint64_t* mask,
                               std::int32_t sign, std::int32_t* counts) {
    add_counts(rows, n, words, mask, sign, counts);
}
#ifdef SIMKIT_X86
__attribute__((target("avx512vpopcntdq,prefer-vector-width=512"))) void count_avx512(const std::uint64_t* rows,
                                                                                     std::int64_t n, std::int64_t words,
                                                                                     const std::uint64_t* mask,
                                                                                     std::int32_t sign,
                                                                                     std::int32_t* counts) {
    add_counts(rows, n, words, mask, sign, counts);
}
#endif
// counts[v] += sign * |row v & mask|
void count(const Graph& graph, const Bits& mask, std::int32_t sign, std::vector<std::int32_t>& counts) {
    auto* run = count_plain;
#ifdef SIMKIT_X86
    if (__builtin_cpu_supports("avx512vpopcntdq")) run = count_avx512;
#endif
    run(graph.bits, graph.n, graph.words, mask.data(), sign, counts.data());
}

// taken = row & from, which leaves `from`; returns how many.
SIMKIT_CLONES std::int64_t move_bits(const std::uint64_t* row, std::uint64_t* from, std::int64_t words,
                                     std::uint64_t* taken) {
    std::int64_t count = 0;
    for (std::int64_t w = 0; w < words; ++w) {
        taken[w] = row[w] & from[w];
        from[w] &= ~taken[w];
        count += __builtin_popcountll(taken[w]);
    }
    return count;
}

SIMKIT_CLONES std::int32_t largest(const std::int32_t* values, std::int64_t count) {
    std::int32_t most = values[0];
    for (std::int64_t k = 1; k < count; ++k) most = values[k] > most ? values[k] : most;
    return most;
}

// Takes balls N[v] out of a set of vertices.
class Ball {
  public:
    explicit Ball(const Graph& graph) : graph_(graph), bits_(graph.words) {}
    // Moves N[v] out of `from`; returns how many vertices that were.
    std::int64_t take(std::int64_t v, Bits& from) {
        const std::uint64_t own = from[v / kBits] & std::uint64_t{1} << v % kBits;
        const std::int64_t count = move_bits(graph_.bits + v * graph_.words, from.data(), graph_.words, bits_.data());
        from[v / kBits] &= ~own;
        bits_[v / kBits] |= own;
        return count + (own ? 1 : 0);
    }
    const Bits& bits() const { return bits_; }

  private:
    const Graph& graph_;
    Bits bits_;
};

// Gains only fall, so all picks of one gain are found in one ascending sweep.
Indices greedy(const Graph& graph, const std::vector<std::int32_t>& degree) {
    constexpr std::int64_t per_bit = 8;  // a decrement costs about as much as so many words of a full count
    std::vector<std::int32_t> gain(degree);
    for (std::int32_t& value : gain) ++value;
    Indices centres;
    Bits uncovered = all(graph);
    Ball ball(graph);
    std::int32_t most = largest(gain.data(), graph.n);
    std::int64_t v = 0;
    for (std::int64_t left = graph.n; left > 0;) {
        v = std::find(gain.begin() + v, gain.end(), most) - gain.begin();
        if (v == graph.n) {
            v = 0;
            most = largest(gain.data(), graph.n);
            continue;
        }
        const std::int64_t covered = ball.take(v, uncovered);
        if (covered == 0) throw std::invalid_argument("the adjacency is not symmetric");
        centres.push_back(v);
        left -= covered;
        std::int64_t decrements = 0;
        each(ball.bits(), [&](std::int64_t u) {
            --gain[u];
            decrements += degree[u];
        });
        if (per_bit * decrements >= graph.n * graph.words)
            count(graph, ball.bits(), -1, gain);
        else if (decrements > 0)
            each(ball.bits(), [&](std::int64_t u) { each(graph, u, [&](std::int64_t w) { --gain[w]; }); });
    }
    return centres;
}

Indices pack(const Graph& graph, const std::vector<std::int32_t>& degree, const Indices& by_degree) {
    Indices packing;
    Bits free = all(graph);
    Ball ball(graph);
    for (const std::int64_t v : by_degree) {
        if (!test(free, v)) continue;
        packing.push_back(v);
        if (degree[v] == 0) continue;
        ball.take(v, free);
        each(graph, v, [&](std::int64_t u) { ball.take(u, free); });
    }
    return packing;
}

// y_u = 1 / max_{v in N[u]} |N[v]|
std::vector<double> degree_dual(const Graph& graph, const std::vector<std::int32_t>& degree, const Indices& by_degree) {
    std::vector<double> y(graph.n, 1.0);
    Bits unassigned = all(graph);
    Ball ball(graph);
    for (auto v = by_degree.rbegin(); v != by_degree.rend() && degree[*v] > 0; ++v)
        if (ball.take(*v, unassigned) > 0) each(ball.bits(), [&](std::int64_t u) { y[u] = 1.0 / (degree[*v] + 1); });
    return y;
}

// The largest load in N[u], or the first that is met from `full` on.
double most_loaded(const Graph& graph, std::int64_t u, const std::vector<double>& load, double full) {
    double most = load[u];
    const std::uint64_t* row = graph.bits + u * graph.words;
    for (std::int64_t w = 0; w < graph.words; ++w)
        for (std::uint64_t left = row[w]; left && most < full; left &= left - 1)
            most = std::max(most, load[w * kBits + __builtin_ctzll(left)]);
    return most;
}

// Raises y_u, by rising degree, by what is left of 1 in every constraint that it is in, from 1e-9 on.
void fill(const Graph& graph, const Indices& by_degree, std::vector<double>& y) {
    constexpr double full = 1.0 - 1e-9;
    std::vector<double> load(y);
    for (std::int64_t u = 0; u < graph.n; ++u) each(graph, u, [&](std::int64_t v) { load[v] += y[u]; });
    for (const std::int64_t u : by_degree) {
        const double most = most_loaded(graph, u, load, full);
        if (most >= full) continue;
        const double rise = 1.0 - most;
        y[u] += rise;
        load[u] += rise;
        each(graph, u, [&](std::int64_t v) { load[v] += rise; });
    }
}

std::vector<std::int32_t> degrees(const Graph& graph) {
    std::vector<std::int32_t> degree(graph.n);
    count(graph, all(graph), 1, degree);
    return degree;
}

Indices ranked(const std::vector<std::int32_t>& degree) {
    Indices start(degree.size() + 1), order(degree.size());
    for (const std::int32_t d : degree) ++start[d + 1];
    std::partial_sum(start.begin(), start.end(), start.begin());
    for (std::size_t v = 0; v < degree.size(); ++v) order[start[degree[v]]++] = static_cast<std::int64_t>(v);
    return order;
}

}  // namespace

std::int64_t components(const Graph& graph, std::int64_t* labels) {
    const std::vector<std::int32_t> degree = degrees(graph);
    Bits unseen = all(graph);
    Ball ball(graph);
    Indices queue;
    std::int64_t label = 0, left = graph.n;
    for (std::int64_t start = 0; start < graph.n; ++start) {
        if (!test(unseen, start)) continue;
        unseen[start / kBits] &= ~(std::uint64_t{1} << start % kBits);
        queue.assign(1, start);
        while (!queue.empty()) {
            const std::int64_t v = queue.back();
            queue.pop_back();
            labels[v] = label;
            --left;
            if (static_cast<std::int64_t>(queue.size()) == left || degree[v] == 0 || ball.take(v, unseen) == 0)
                continue;
            each(ball.bits(), [&](std::int64_t u) { queue.push_back(u); });
        }
        ++label;
    }
    return std::accumulate(degree.begin(), degree.end(), std::int64_t{0}) / 2;
}

Cover cover(const Graph& graph) {
    constexpr std::int64_t cheap = 16;  // edges a vertex up to which the dual is filled
    const std::vector<std::int32_t> degree = degrees(graph);
    const Indices by_degree = ranked(degree);
    std::vector<double> y = degree_dual(graph, degree, by_degree);
    if (std::accumulate(degree.begin(), degree.end(), std::int64_t{0}) <= 2 * cheap * graph.n)
        fill(graph, by_degree, y);
    return {greedy(graph, degree), pack(graph, degree, by_degree), std::accumulate(y.begin(), y.end(), 0.0)};
}

}  // namespace simkit
