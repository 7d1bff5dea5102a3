// Sample space: per tile of the n x n plane one product per block, stacked as a panel whose own Gram adds into P.
#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <type_traits>

#include "core/blas.hpp"
#include "core/buffer.hpp"
#include "core/pack.hpp"
#include "core/rounding.hpp"
#include "cpu/gram_tile.hpp"
#include "cpu/sample_walk.hpp"
#include "ops/hsic.hpp"

namespace simkit {
namespace {

constexpr std::int64_t kPilot = 256;  // rows that estimate the row means of a non-linear kernel

// A float64 self-product below this share of <K, K> has lost more digits than it may: K is centred by the row means
// that the pass has found, and the pass done again.
constexpr double kCancelled = 1e-4;

// Rows from all over a mapped file, each of which would bring in and keep what lies around it: copied one by one.
void hold_rows(MatrixView& pilot, const MatrixView& x, std::int64_t step, Buffer<std::byte>& held) {
    const std::int64_t item = item_size(x.dtype), width = x.cols * item;
    held = Buffer<std::byte>(pilot.rows * width);
    for (std::int64_t i = 0; i < pilot.rows; ++i) {
        const std::byte* from = x.data + i * step * x.row_stride;
        for (std::int64_t k = 0; k < x.cols; ++k)
            std::copy_n(from + k * x.col_stride, item, held.data() + i * width + k * item);
        release_rows(x, i * step, i * step + 1);
    }
    pilot.data = held.data();
    pilot.row_stride = width;
    pilot.col_stride = item;
}

Centre pilot_centre(const PairProblem& problem, std::int64_t number, const Poll& poll) {
    const BlockView& block = problem.blocks[number];
    const bool debiased = problem.debiased;
    const std::int64_t tile = problem.tile;
    const int threads = problem.threads;
    Centre centre;
    if (block.kernel == Kernel::linear) return centre;
    const std::int64_t n = block.x.rows;
    if (needs_distances(block.kernel)) centre.norms = row_norms(block, threads, poll);
    if (block.kernel == Kernel::custom &&
        std::any_of(block.shift, block.shift + block.x.cols, [](double shift) { return shift != 0.0; }))
        centre.zeros.assign(block.x.cols, 0.0);
    const std::int64_t count = std::min(n, kPilot), step = n / count;
    BlockView pilot = block;
    pilot.x.rows = count;
    pilot.x.row_stride *= step;
    pilot.x.mapped = false;
    Buffer<std::byte> held(0);
    if (block.x.mapped) hold_rows(pilot.x, block.x, step, held);
    centre.means.assign(n, 0.0);
    struct Worker {
        const BlockView &block, &pilot;
        Centre& centre;
        bool debiased;
        std::int64_t number, tile, count, step;
        PackedStrips<double> strips{std::max(tile, count), block.x.cols};
        std::vector<double> c = std::vector<double>(tile * count);
        Arguments arguments{};
        std::optional<KernelOutOfRange> bad{};
        void work(std::int64_t t) {
            const std::int64_t i0 = t * tile, ti = std::min(block.x.rows, i0 + tile) - i0;
            product_tile(block, i0, ti, pilot, 0, count, false, strips, c.data());
            if (block.kernel == Kernel::custom) {
                const std::int64_t k = apply_custom(block, centre.norms.data(), centre.no_shift(), i0, ti, pilot, 0,
                                                    count, step, false, strips, arguments, c.data());
                bad = out_of_range(number, arguments, c.data(), k);
            } else if (needs_distances(block.kernel)) {
                distances_from_products(block, pilot, centre.norms.data(), i0, ti, 0, count, step, c.data());
            }
            apply_kernel(block, c.data(), ti * count);
            for (std::int64_t i = 0; i < ti; ++i) {
                const bool drop = debiased && (i0 + i) % step == 0 && (i0 + i) / step < count;
                if (drop) c[i * count + (i0 + i) / step] = 0.0;
                double sum = 0.0;
                for (std::int64_t j = 0; j < count; ++j) sum += c[i * count + j];
                centre.means[i0 + i] = sum / static_cast<double>(count - drop);
            }
        }
        void commit(std::int64_t) {
            if (bad) throw *bad;
        }
    };
    for_each_tile((n + tile - 1) / tile, threads, poll,
                  [&] { return Worker{block, pilot, centre, debiased, number, tile, count, step}; });
    for (double value : centre.means) centre.mean += value / static_cast<double>(n);
    return centre;
}

// P, r -> S: the centring terms, in float64.
PairSums centre_sums(const PairProblem& problem, const Sums& sums) {
    const std::int64_t m = problem.m(), n = problem.n(), left = problem.left, right = problem.right();
    const double dn = static_cast<double>(n);
    const double cross = problem.debiased ? 2.0 / (dn - 2.0) : 2.0 / dn;
    const double both = problem.debiased ? 1.0 / ((dn - 1.0) * (dn - 2.0)) : 1.0 / (dn * dn);
    std::vector<double> totals(m);
    for (std::int64_t a = 0; a < m; ++a)
        for (std::int64_t i = 0; i < n; ++i) totals[a] += sums.r[a * n + i];
    auto centred = [&](std::int64_t a, std::int64_t b) {
        const double rr = dot(static_cast<int>(n), sums.r.data() + a * n, sums.r.data() + b * n);
        return sums.p[std::min(a, b) * m + std::max(a, b)] - cross * rr + both * totals[a] * totals[b];
    };
    PairSums out{std::vector<double>(left * right), std::vector<double>(m), std::vector<double>(m)};
    const std::int64_t first = problem.symmetric() ? 0 : left;
    for (std::int64_t a = 0; a < left; ++a)
        for (std::int64_t b = 0; b < right; ++b) {
            if (problem.symmetric() && b < a)
                out.values[a * right + b] = out.values[b * right + a];
            else
                out.values[a * right + b] = centred(a, first + b);
        }
    for (std::int64_t a = 0; a < m; ++a) {
        out.raw[a] = sums.p[a * m + a];
        out.self[a] = centred(a, a);
    }
    return out;
}

// Takes the row means that a pass has found (of what the centre left of K) into the centre.
void absorb(Centre& centre, const double* r, std::int64_t n, bool debiased) {
    const double dn = static_cast<double>(n), each = debiased ? dn - 2.0 : dn, all = debiased ? dn - 1.0 : dn;
    centre.means.resize(n, 0.0);
    double total = 0.0;
    for (std::int64_t i = 0; i < n; ++i) {
        centre.means[i] += r[i] / each;
        total += r[i];
    }
    centre.mean += total / (each * all);
}

// The sums of squares of which rounding leaves eps^2: K_ij is right to eps of itself, and centred before it is squared.
// One of products is right to eps of sqrt(K_ii K_jj), so that its diagonal counts even where it is dropped.
std::vector<double> rounded(const PairProblem& problem, const std::vector<Centre>& centres, const Sums& sums) {
    const std::int64_t m = problem.m(), n = problem.n();
    std::vector<double> squares(m);
    for (std::int64_t a = 0; a < m; ++a) {
        const Kernel kernel = problem.blocks[a].kernel;
        if (kernel == Kernel::linear) {
            squares[a] = sums.traces[a] * sums.traces[a];
            continue;
        }
        const bool distances = kernel == Kernel::rbf || kernel == Kernel::laplacian;
        squares[a] = uncentred_square(sums.p[a * m + a], sums.r.data() + a * n, centres[a].means.data(),
                                      centres[a].mean, n, problem.debiased) +
                     (problem.debiased && !distances ? sums.squares[a] : 0.0);
    }
    return squares;
}

template <class T>
PairSums run(const PairProblem& problem, const Poll& poll) {
    const std::int64_t m = problem.m(), n = problem.n();
    std::vector<Centre> centres;
    for (std::int64_t b = 0; b < m; ++b) centres.push_back(pilot_centre(problem, b, poll));
    const Sums sums = walk<T>(problem, centres, poll);
    PairSums out = centre_sums(problem, sums);
    if constexpr (std::is_same_v<T, double>) {
        const std::vector<double> squares = rounded(problem, centres, sums);
        bool cancelled = false;
        for (std::int64_t a = 0; a < m; ++a) cancelled |= out.self[a] < kCancelled * out.raw[a];
        if (cancelled) {
            for (std::int64_t a = 0; a < m; ++a) absorb(centres[a], sums.r.data() + a * n, n, problem.debiased);
            out = centre_sums(problem, walk<T>(problem, centres, poll));
        }
        // Where nothing cancelled too: what all of K has in common went with the first estimate of its row means.
        for (std::int64_t a = 0; a < m; ++a)
            out.raw[a] = std::max(out.raw[a], std::numeric_limits<double>::epsilon() * squares[a]);
    }
    return out;
}

}  // namespace

PairSums pair_sums_sample(const PairProblem& problem, const Poll& poll) {
    return problem.double_products ? run<double>(problem, poll) : run<float>(problem, poll);
}

}  // namespace simkit
