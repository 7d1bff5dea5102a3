// Sample space: per tile of the n x n plane one product per block, stacked as a panel whose own Gram adds into P.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <optional>
#include <type_traits>

#include "core/blas.hpp"
#include "core/clones.hpp"
#include "core/panel.hpp"
#include "cpu/gram_tile.hpp"
#include "ops/hsic.hpp"

namespace simkit {
namespace {

constexpr std::int64_t kPilot = 256;  // rows that estimate the row means of a non-linear kernel

// A float64 self-product below this share of <K, K> has lost more digits than it may: K is centred by the row means
// that the pass has found, and the pass done again.
constexpr double kCancelled = 1e-4;

struct Sums {
    explicit Sums(std::int64_t m, std::int64_t n) : p(m * m), r(m * n), traces(m), squares(m) {}
    std::vector<double> p;        // [m, m], the pairs that were asked for and the diagonal
    std::vector<double> r;        // [m, n]
    std::vector<double> traces;   // [m], of |K_ii|
    std::vector<double> squares;  // [m], of custom kernels, which need not be positive: |K|^2
};

// What is subtracted from K before it is multiplied, c_i + c_j - mean, the row norms that distances need, and the zeros
// that stand for the shift in a custom kernel's products (empty where there is none). For a
// non-linear kernel c estimates the row means; a linear one's features are centred, so c is empty at first. The
// debiased form drops the diagonal, so it stays out of c too: one outlier's own square would drown the rest.
struct Centre {
    std::vector<double> norms, means, zeros;
    double mean = 0.0;

    const double* no_shift() const { return zeros.empty() ? nullptr : zeros.data(); }
};

std::optional<KernelOutOfRange> out_of_range(std::int64_t block, const Arguments& arguments, const double* c,
                                             std::int64_t k) {
    if (k < 0) return std::nullopt;
    return KernelOutOfRange{block, arguments.products[k], arguments.distances[k], c[k]};
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
    centre.means.assign(n, 0.0);
    struct Worker {
        const BlockView &block, &pilot;
        Centre& centre;
        bool debiased;
        std::int64_t number, tile, count, step;
        Strips<double> strips{std::max(tile, count), block.x.cols};
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
                distances_from_products(block, centre.norms.data(), i0, ti, 0, count, step, c.data());
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

// The sum of a row, which is also added to the columns' sums.
template <class T>
[[gnu::always_inline]] inline double sum_row_body(const T* c, std::int64_t count, double* columns) {
    constexpr std::int64_t lanes = 16;
    double part[lanes] = {};
    std::int64_t j = 0;
    for (; j + lanes <= count; j += lanes)
        for (std::int64_t l = 0; l < lanes; ++l) {
            part[l] += c[j + l];
            columns[j + l] += c[j + l];
        }
    for (; j < count; ++j) {
        part[0] += c[j];
        columns[j] += c[j];
    }
    double sum = 0.0;
    for (double value : part) sum += value;
    return sum;
}
SIMKIT_CLONES double sum_row(const float* c, std::int64_t count, double* columns) {
    return sum_row_body(c, count, columns);
}
SIMKIT_CLONES double sum_row(const double* c, std::int64_t count, double* columns) {
    return sum_row_body(c, count, columns);
}

std::int64_t widest(const PairProblem& problem) {
    std::int64_t cols = 0;
    for (const BlockView& block : problem.blocks) cols = std::max(cols, block.x.cols);
    return cols;
}

template <class T>
class Worker {
  public:
    Worker(const PairProblem& problem, const std::vector<Centre>& centres, Sums& sums)
        : problem_(problem),
          centres_(centres),
          sums_(sums),
          m_(problem.m()),
          tile_(problem.tile),
          strips_(tile_, widest(problem)),
          panel_(m_ * tile_ * tile_),
          panel_gram_(m_, problem.symmetric() ? 0 : problem.left),
          gram_(m_ * m_),
          row_sums_(m_ * tile_),
          col_sums_(m_ * tile_),
          traces_(m_),
          squares_(m_) {}

    template <class Pause>
    void work(std::int64_t t, const Pause& pause) {
        locate(t);
        const std::int64_t size = ti_ * tj_;
        bad_.reset();
        for (std::int64_t b = 0; b < m_; ++b) {
            T* c = panel_.data() + b * size;
            product_tile(problem_.blocks[b], i0_, ti_, problem_.blocks[b], j0_, tj_, i0_ == j0_, strips_, c,
                         b + 1 < m_ ? &problem_.blocks[b + 1] : nullptr, std::ref(pause));
            if constexpr (std::is_same_v<T, double>) finish_kernel(b, c);
            traces_[b] = 0.0;
            for (std::int64_t i = 0; i0_ == j0_ && i < ti_; ++i) {
                traces_[b] += std::fabs(c[i * tj_ + i]);
                if (problem_.debiased) c[i * tj_ + i] = T(0);
            }
            sum_rows(b, c);
        }
        std::fill(gram_.begin(), gram_.end(), 0.0);
        panel_gram_.add(panel_.data(), size, gram_.data());
    }

    void commit(std::int64_t) {
        if (bad_) throw *bad_;
        const double weight = i0_ == j0_ ? 1.0 : 2.0;
        for (std::size_t k = 0; k < gram_.size(); ++k) sums_.p[k] += weight * gram_[k];
        const std::int64_t n = problem_.n();
        for (std::int64_t b = 0; b < m_; ++b) {
            sums_.traces[b] += traces_[b];
            sums_.squares[b] += weight * squares_[b];
            double* r = sums_.r.data() + b * n;
            for (std::int64_t i = 0; i < ti_; ++i) r[i0_ + i] += row_sums_[b * tile_ + i];
            if (i0_ != j0_)
                for (std::int64_t j = 0; j < tj_; ++j) r[j0_ + j] += col_sums_[b * tile_ + j];
        }
    }

  private:
    // Tile number -> (I, J) with I < J, row by row, and then the diagonal: tiles that cost alike stand together, so
    // that workers do not wait for one another when they commit in order.
    void locate(std::int64_t t) {
        const std::int64_t n = problem_.n(), tiles = (n + tile_ - 1) / tile_, above = tiles * (tiles - 1) / 2;
        std::int64_t row = 0, column = t - above;
        if (t < above) {
            while (t >= tiles - 1 - row) t -= tiles - 1 - row++;
            column = row + 1 + t;
        } else {
            row = column;
        }
        i0_ = row * tile_;
        j0_ = column * tile_;
        ti_ = std::min(n, i0_ + tile_) - i0_;
        tj_ = std::min(n, j0_ + tile_) - j0_;
    }

    void finish_kernel(std::int64_t b, double* c) {
        const BlockView& block = problem_.blocks[b];
        const Centre& centre = centres_[b];
        if (block.kernel == Kernel::custom)
            finish_custom(b, c);
        else if (needs_distances(block.kernel))
            distances_from_products(block, centre.norms.data(), i0_, ti_, j0_, tj_, 1, c);
        apply_kernel(block, c, ti_ * tj_);
        if (centre.means.empty()) return;
        for (std::int64_t i = 0; i < ti_; ++i) {
            const double own = centre.means[i0_ + i] - centre.mean;
            for (std::int64_t j = 0; j < tj_; ++j) c[i * tj_ + j] -= own + centre.means[j0_ + j];
        }
    }

    void finish_custom(std::int64_t b, double* c) {
        const BlockView& block = problem_.blocks[b];
        const Centre& centre = centres_[b];
        const std::int64_t k = apply_custom(block, centre.norms.data(), centre.no_shift(), i0_, ti_, block, j0_, tj_, 1,
                                            i0_ == j0_, strips_, arguments_, c);
        if (!bad_) bad_ = out_of_range(b, arguments_, c, k);
        squares_[b] = 0.0;
        for (std::int64_t l = 0; l < ti_ * tj_; ++l) squares_[b] += c[l] * c[l];
    }

    void sum_rows(std::int64_t b, const T* c) {
        double* columns = col_sums_.data() + b * tile_;
        std::fill_n(columns, tj_, 0.0);
        for (std::int64_t i = 0; i < ti_; ++i) row_sums_[b * tile_ + i] = sum_row(c + i * tj_, tj_, columns);
    }

    const PairProblem& problem_;
    const std::vector<Centre>& centres_;
    Sums& sums_;
    std::int64_t m_, tile_;
    Strips<T> strips_;
    std::vector<T> panel_;
    PanelGram<T> panel_gram_;
    std::vector<double> gram_, row_sums_, col_sums_, traces_, squares_;
    Arguments arguments_;
    std::optional<KernelOutOfRange> bad_;
    std::int64_t i0_ = 0, j0_ = 0, ti_ = 0, tj_ = 0;
};

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

template <class T>
Sums walk(const PairProblem& problem, const std::vector<Centre>& centres, const Poll& poll) {
    Sums sums(problem.m(), problem.n());
    const std::int64_t tiles = (problem.n() + problem.tile - 1) / problem.tile;
    for_each_tile(tiles * (tiles + 1) / 2, problem.threads, poll, [&] { return Worker<T>(problem, centres, sums); });
    return sums;
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

template <class T>
PairSums run(const PairProblem& problem, const Poll& poll) {
    const std::int64_t m = problem.m(), n = problem.n();
    std::vector<Centre> centres;
    for (std::int64_t b = 0; b < m; ++b) centres.push_back(pilot_centre(problem, b, poll));
    const Sums sums = walk<T>(problem, centres, poll);
    PairSums out = centre_sums(problem, sums);
    if constexpr (std::is_same_v<T, double>) {
        bool cancelled = false;
        for (std::int64_t a = 0; a < m; ++a) cancelled |= out.self[a] < kCancelled * out.raw[a];
        if (cancelled) {
            for (std::int64_t a = 0; a < m; ++a) absorb(centres[a], sums.r.data() + a * n, n, problem.debiased);
            PairSums again = centre_sums(problem, walk<T>(problem, centres, poll));
            // K_ij is right to eps of sqrt(K_ii K_jj), and centred before it is squared: what rounding leaves is eps^2.
            for (std::int64_t a = 0; a < m; ++a)
                again.raw[a] = std::max(again.raw[a], std::numeric_limits<double>::epsilon() *
                                                          std::max(sums.traces[a] * sums.traces[a], sums.squares[a]));
            return again;
        }
    }
    return out;
}

}  // namespace

PairSums pair_sums_sample(const PairProblem& problem, const Poll& poll) {
    return problem.double_products ? run<double>(problem, poll) : run<float>(problem, poll);
}

}  // namespace simkit
