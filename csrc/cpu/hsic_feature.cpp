// Feature space: tiles of the cross-products of all columns laid side by side, squared and summed by block. No p x p
// matrix is stored. Float64 products: the debiased form subtracts sums of the size of the result.
#include <algorithm>
#include <cmath>

#include "core/blas.hpp"
#include "core/buffer.hpp"
#include "core/micro_kernel.hpp"
#include "core/pack.hpp"
#include "core/slivers.hpp"
#include "ops/hsic.hpp"

namespace simkit {
namespace {

constexpr std::int64_t kDepth = 256;  // rows multiplied at a time
constexpr std::int64_t kRows = 128;   // of these on their way into slivers

// Columns [begin, end) of block b.
struct Segment {
    std::int64_t b, begin, end;
};
// Consecutive columns of one or more blocks, at most `tile` wide.
struct Strip {
    std::vector<Segment> segments;
    std::int64_t width = 0;
};
struct Item {
    const Strip *rows, *cols;
    bool same;
};
struct Contribution {
    std::int64_t a, b;
    double value;
};

// Of blocks [first, last) those that stand apart, or the others.
std::vector<Strip> cut(const PairProblem& problem, std::int64_t first, std::int64_t last,
                       const std::vector<bool>& apart, bool wanted) {
    std::vector<Strip> strips;
    for (std::int64_t b = first; b < last; ++b) {
        if (apart[b] != wanted) continue;
        for (std::int64_t c = 0; c < problem.blocks[b].x.cols;) {
            if (strips.empty() || strips.back().width == problem.tile) strips.emplace_back();
            Strip& strip = strips.back();
            const std::int64_t end = std::min(problem.blocks[b].x.cols, c + problem.tile - strip.width);
            strip.segments.push_back({b, c, end});
            strip.width += end - c;
            c = end;
        }
    }
    return strips;
}

void pair_up(const std::vector<Strip>& strips, std::vector<Item>& items) {
    for (std::size_t i = 0; i < strips.size(); ++i)
        for (std::size_t j = i; j < strips.size(); ++j) items.push_back({&strips[i], &strips[j], i == j});
}

void cross(const std::vector<Strip>& rows, const std::vector<Strip>& cols, std::vector<Item>& items) {
    for (const Strip& a : rows)
        for (const Strip& b : cols) items.push_back({&a, &b, false});
}

class Worker {
  public:
    Worker(const PairProblem& problem, const std::vector<Item>& items, std::vector<double>& p)
        : problem_(problem),
          items_(items),
          p_(p),
          rows_(kRows * problem.tile),
          a_(kDepth * round_up(problem.tile, micro_kernel<double>().width)),
          b_(kDepth * round_up(problem.tile, micro_kernel<double>().width)),
          g_(problem.tile * problem.tile) {}

    template <class Pause>
    void work(std::int64_t t, const Pause& pause) {
        const Item& item = items_[t];
        const std::int64_t wa = item.rows->width, wb = item.cols->width;
        for (std::int64_t r = 0; r < problem_.n(); r += kDepth) {
            const std::int64_t end = std::min(problem_.n(), r + kDepth);
            pack_strip(*item.rows, r, end, a_.data());
            if (!item.same) pack_strip(*item.cols, r, end, b_.data());
            const double* right = item.same ? a_.data() : b_.data();
            packed_product(wa, wb, end - r, a_.data(), right, item.same, r > 0, g_.data(), wb);
            pause();
        }
        reduce(item);
    }

    void commit(std::int64_t) {
        for (const Contribution& c : found_) p_[c.a * problem_.m() + c.b] += c.value;
    }

  private:
    void pack_strip(const Strip& strip, std::int64_t begin, std::int64_t end, double* out) {
        for (std::int64_t r = begin; r < end; r += kRows) {
            const std::int64_t last = std::min(end, r + kRows);
            std::int64_t at = 0;
            for (const Segment& s : strip.segments) {
                pack(problem_.blocks[s.b], r, last, s.begin, s.end, rows_.data() + at, strip.width);
                release_rows(problem_.blocks[s.b].x, r, last);
                at += s.end - s.begin;
            }
            column_slivers(rows_.data(), last - r, strip.width, end - begin, out, r - begin);
        }
    }

    void reduce(const Item& item) {
        found_.clear();
        const std::int64_t ld = item.cols->width;
        std::int64_t i0 = 0;
        for (const Segment& a : item.rows->segments) {
            const std::int64_t i1 = i0 + a.end - a.begin;
            std::int64_t j0 = 0;
            for (const Segment& b : item.cols->segments) {
                const std::int64_t j1 = j0 + b.end - b.begin;
                if (!item.same || a.b < b.b) {
                    const double twice = a.b == b.b ? 2.0 : 1.0;  // the other half of a block's own square
                    found_.push_back({std::min(a.b, b.b), std::max(a.b, b.b), twice * square_sum(i0, i1, j0, j1, ld)});
                } else if (a.b == b.b) {
                    found_.push_back({a.b, a.b, triangle_sum(i0, i1, ld)});
                }
                j0 = j1;
            }
            i0 = i1;
        }
    }

    double square_sum(std::int64_t i0, std::int64_t i1, std::int64_t j0, std::int64_t j1, std::int64_t ld) const {
        double sum = 0.0;
        for (std::int64_t i = i0; i < i1; ++i) {
            const double* g = g_.data() + i * ld + j0;
            sum += dot(static_cast<int>(j1 - j0), g, g);
        }
        return sum;
    }

    // A symmetric square of which only the upper triangle was formed.
    double triangle_sum(std::int64_t i0, std::int64_t i1, std::int64_t ld) const {
        double sum = 0.0;
        for (std::int64_t i = i0; i < i1; ++i) {
            const double* g = g_.data() + i * ld + i;
            sum += 2.0 * dot(static_cast<int>(i1 - i), g, g) - g[0] * g[0];
        }
        return sum;
    }

    const PairProblem& problem_;
    const std::vector<Item>& items_;
    std::vector<double>& p_;
    Buffer<double> rows_, a_, b_, g_;  // rows of a strip, two strips in slivers, their product
    std::vector<Contribution> found_;
};

}  // namespace

PairSums pair_sums_feature(const PairProblem& problem, const Poll& poll, const std::vector<bool>& none_or_apart) {
    const std::int64_t m = problem.m(), n = problem.n(), left = problem.left, right = problem.right();
    const std::vector<bool> apart = none_or_apart.empty() ? std::vector<bool>(m) : none_or_apart;
    const std::vector<Strip> rows = cut(problem, 0, left, apart, false), far_rows = cut(problem, 0, left, apart, true);
    const std::vector<Strip> cols = cut(problem, left, m, apart, false), far_cols = cut(problem, left, m, apart, true);
    std::vector<std::vector<Strip>> own;
    std::vector<Item> items;
    if (problem.symmetric()) {
        pair_up(rows, items);
        cross(rows, far_rows, items);
    } else {
        cross(rows, cols, items);
        cross(rows, far_cols, items);
        cross(far_rows, cols, items);
        own.reserve(m);
        for (std::int64_t b = 0; b < m; ++b) pair_up(own.emplace_back(cut(problem, b, b + 1, apart, false)), items);
    }
    std::vector<double> p(m * m);
    for_each_tile(static_cast<std::int64_t>(items.size()), problem.threads, poll,
                  [&] { return Worker(problem, items, p); });

    // K~ = K - diag(a). Its row sums r are -a but for the rounding of the means, which counts beside a small result.
    RowGrams rows_of;
    if (problem.debiased) rows_of = row_grams(problem.blocks, problem.threads, poll);
    const double dn = static_cast<double>(n);
    auto centred = [&](std::int64_t a, std::int64_t b) {
        if (apart[a] && apart[b]) return 0.0;
        const std::int64_t at = std::min(a, b) * m + std::max(a, b);
        if (!problem.debiased) return p[at];
        return p[at] - rows_of.squares[at] - 2.0 / (dn - 2.0) * rows_of.sums[at] +
               rows_of.totals[a] * rows_of.totals[b] / ((dn - 1.0) * (dn - 2.0));
    };
    PairSums out{std::vector<double>(left * right), std::vector<double>(m), std::vector<double>(m)};
    const std::int64_t first = problem.symmetric() ? 0 : left;
    for (std::int64_t a = 0; a < left; ++a)
        for (std::int64_t b = 0; b < right; ++b) out.values[a * right + b] = centred(a, first + b);
    for (std::int64_t a = 0; a < m; ++a) {
        out.self[a] = centred(a, a);
        out.raw[a] = p[a * m + a];
    }
    return out;
}

}  // namespace simkit
