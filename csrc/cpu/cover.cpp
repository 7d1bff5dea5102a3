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
[[gnu::always_inline]] inline void each_of_word(std::uint64_t word, std::int64_t base, See& see) {
    for (; word; word &= word - 1) see(base + __builtin_ctzll(word));
}
template <class See>
void each(const std::uint64_t* bits, std::int64_t words, See&& see) {
    std::int64_t w = 0;
    for (; w + 4 <= words; w += 4) {
        if (!(bits[w] | bits[w + 1] | bits[w + 2] | bits[w + 3])) continue;  // sparse rows are mostly zero
        for (std::int64_t k = w; k < w + 4; ++k) each_of_word(bits[k], k * kBits, see);
    }
    for (; w < words; ++w) each_of_word(bits[w], w * kBits, see);
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

// taken = row & from, which leaves `from`.
SIMKIT_CLONES void move_bits(const std::uint64_t* row, std::uint64_t* from, std::int64_t words, std::uint64_t* taken) {
    for (std::int64_t w = 0; w < words; ++w) {
        taken[w] = row[w] & from[w];
        from[w] &= ~taken[w];
    }
}

SIMKIT_CLONES std::int32_t largest(const std::int32_t* values, std::int64_t count) {
    std::int32_t most = values[0];
    for (std::int64_t k = 1; k < count; ++k) most = values[k] > most ? values[k] : most;
    return most;
}

std::int64_t sum(const std::vector<std::int32_t>& degree) {
    return std::accumulate(degree.begin(), degree.end(), std::int64_t{0});
}

// The balls N[v] of a graph: neighbours from lists where edges are few, otherwise from the bits.
class Balls {
  public:
    Balls(const Graph& graph, const std::vector<std::int32_t>& degree)
        : graph_(graph), listed_(sum(degree) <= 2 * kSparse * graph.n), bits_(listed_ ? 0 : graph.words) {
        if (!listed_) return;
        starts_.assign(graph.n + 1, 0);
        for (std::int64_t v = 0; v < graph.n; ++v) starts_[v + 1] = starts_[v] + degree[v];
        lists_.resize(starts_.back());
        std::int64_t* next = lists_.data();
        for (std::int64_t v = 0; v < graph.n; ++v)
            if (degree[v] > 0)
                simkit::each(graph.bits + v * graph.words, graph.words, [&](std::int64_t u) { *next++ = u; });
    }
    bool listed() const { return listed_; }

    // Calls see(u) for every neighbour of v, ascending.
    template <class See>
    void each(std::int64_t v, See&& see) const {
        if (!listed_) return simkit::each(graph_.bits + v * graph_.words, graph_.words, see);
        for (std::int64_t k = starts_[v]; k < starts_[v + 1]; ++k) see(lists_[k]);
    }

    // Moves N[v] out of `from`: the vertices that were in it.
    const Indices& take(std::int64_t v, Bits& from) {
        taken_.clear();
        auto move = [&](std::int64_t u) {
            if (!test(from, u)) return;
            from[u / kBits] &= ~(std::uint64_t{1} << u % kBits);
            taken_.push_back(u);
        };
        move(v);
        if (listed_) {
            each(v, move);
        } else {
            move_bits(graph_.bits + v * graph_.words, from.data(), graph_.words, bits_.data());
            simkit::each(bits_.data(), graph_.words, [&](std::int64_t u) { taken_.push_back(u); });
        }
        return taken_;
    }

  private:
    static constexpr std::int64_t kSparse = 16;  // edges a vertex
    const Graph& graph_;
    bool listed_;
    Bits bits_;
    Indices starts_, lists_, taken_;
};

// Gains only fall, so all picks of one gain are found in one ascending sweep.
Indices greedy(const Graph& graph, const std::vector<std::int32_t>& degree, Balls& balls) {
    constexpr std::int64_t per_bit = 8;  // a decrement costs about as much as so many words of a full count
    std::vector<std::int32_t> gain(degree);
    for (std::int32_t& value : gain) ++value;
    Indices centres;
    Bits uncovered = all(graph), gone(graph.words);
    std::int32_t most = largest(gain.data(), graph.n);
    std::int64_t v = 0;
    for (std::int64_t left = graph.n; left > 0;) {
        v = std::find(gain.begin() + v, gain.end(), most) - gain.begin();
        if (v == graph.n) {
            v = 0;
            most = largest(gain.data(), graph.n);
            continue;
        }
        const Indices& covered = balls.take(v, uncovered);
        if (covered.empty()) throw std::invalid_argument("the adjacency is not symmetric");
        centres.push_back(v);
        left -= static_cast<std::int64_t>(covered.size());
        std::int64_t decrements = 0;
        for (const std::int64_t u : covered) {
            --gain[u];
            decrements += degree[u];
        }
        if (balls.listed() || per_bit * decrements < graph.n * graph.words) {
            for (const std::int64_t u : covered) balls.each(u, [&](std::int64_t w) { --gain[w]; });
        } else {
            std::fill(gone.begin(), gone.end(), 0);
            for (const std::int64_t u : covered) gone[u / kBits] |= std::uint64_t{1} << u % kBits;
            count(graph, gone, -1, gain);
        }
    }
    return centres;
}

Indices pack(const Graph& graph, const Indices& by_degree, Balls& balls) {
    Indices packing;
    Bits free = all(graph);
    for (const std::int64_t v : by_degree) {
        if (!test(free, v)) continue;
        packing.push_back(v);
        balls.take(v, free);
        balls.each(v, [&](std::int64_t u) { balls.take(u, free); });
    }
    return packing;
}

// y_u = 1 / max_{v in N[u]} |N[v]|
std::vector<double> degree_dual(const Graph& graph, const std::vector<std::int32_t>& degree, const Indices& by_degree,
                                Balls& balls) {
    std::vector<double> y(graph.n);
    Bits unassigned = all(graph);
    for (auto v = by_degree.rbegin(); v != by_degree.rend(); ++v)
        for (const std::int64_t u : balls.take(*v, unassigned)) y[u] = 1.0 / (degree[*v] + 1);
    return y;
}

// Raises y_u, by rising degree, by what is left of 1 in every constraint that it is in, from 1e-9 on.
void fill(const Indices& by_degree, const Balls& balls, std::vector<double>& y) {
    std::vector<double> load(y);
    for (std::size_t u = 0; u < y.size(); ++u) balls.each(u, [&](std::int64_t v) { load[v] += y[u]; });
    for (const std::int64_t u : by_degree) {
        double most = load[u];
        balls.each(u, [&](std::int64_t v) { most = std::max(most, load[v]); });
        const double rise = 1.0 - most;
        if (!(rise > 1e-9)) continue;
        y[u] += rise;
        load[u] += rise;
        balls.each(u, [&](std::int64_t v) { load[v] += rise; });
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
    Bits unseen = all(graph), found(graph.words);
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
            if (static_cast<std::int64_t>(queue.size()) == left || degree[v] == 0) continue;
            move_bits(graph.bits + v * graph.words, unseen.data(), graph.words, found.data());
            each(found.data(), graph.words, [&](std::int64_t u) { queue.push_back(u); });
        }
        ++label;
    }
    return sum(degree) / 2;
}

Cover cover(const Graph& graph) {
    const std::vector<std::int32_t> degree = degrees(graph);
    const Indices by_degree = ranked(degree);
    Balls balls(graph, degree);
    std::vector<double> y = degree_dual(graph, degree, by_degree, balls);
    if (balls.listed()) fill(by_degree, balls, y);
    return {greedy(graph, degree, balls), pack(graph, by_degree, balls), std::accumulate(y.begin(), y.end(), 0.0)};
}

}  // namespace simkit
