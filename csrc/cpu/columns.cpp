#include "ops/columns.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/clones.hpp"
#include "core/micro_kernel.hpp"
#include "core/pack.hpp"

namespace simkit {
namespace {

constexpr std::int64_t kElements = std::int64_t{1} << 18;  // of x in one piece of work
constexpr std::int64_t kSegment = 512;
constexpr std::int64_t kPilot = 64;  // rows

// Per column: sums of d = value - origin and of d^2; over all columns, lane by lane: the largest |value| and |d|.
template <class T>
[[gnu::always_inline]] inline void add_body(const T* v, const double* origin, double r, double* sum, double* square,
                                            double* top, double* far, std::int64_t count) {
    for (std::int64_t k = 0; k < count; ++k) {
        const double value = v[k] * r, d = value - origin[k], size = std::fabs(value), away = std::fabs(d);
        sum[k] += d;
        square[k] += d * d;
        top[k] = size > top[k] ? size : top[k];
        far[k] = away > far[k] ? away : far[k];
    }
}
SIMKIT_CLONES void add_row(const float* v, const double* origin, double r, double* sum, double* square, double* top,
                           double* far, std::int64_t count) {
    add_body(v, origin, r, sum, square, top, far, count);
}
SIMKIT_CLONES void add_row(const double* v, const double* origin, double r, double* sum, double* square, double* top,
                           double* far, std::int64_t count) {
    add_body(v, origin, r, sum, square, top, far, count);
}

// Four rows at once, so that the sums are fetched and stored a quarter as often.
SIMKIT_CLONES void add_four_rows(const float* const* v, const double* origin, double* sum, double* square, double* top,
                                 double* far, std::int64_t count) {
    const float *a = v[0], *b = v[1], *c = v[2], *d = v[3];
    const auto larger = [](auto x, auto y) { return x > y ? x : y; };
    for (std::int64_t k = 0; k < count; ++k) {
        const float size = larger(larger(std::fabs(a[k]), std::fabs(b[k])), larger(std::fabs(c[k]), std::fabs(d[k])));
        const double o = origin[k], da = a[k] - o, db = b[k] - o, dc = c[k] - o, dd = d[k] - o;
        const double ab = larger(std::fabs(da), std::fabs(db)), cd = larger(std::fabs(dc), std::fabs(dd));
        sum[k] += (da + db) + (dc + dd);
        square[k] += (da * da + db * db) + (dc * dc + dd * dd);
        top[k] = larger(static_cast<double>(size), top[k]);
        far[k] = larger(larger(ab, cd), far[k]);
    }
}

class StatsWorker {
  public:
    StatsWorker(const MatrixView& x, const double* row_scale, const std::vector<double>& origin, std::int64_t rows,
                ColumnStats& stats)
        : x_(x),
          row_scale_(row_scale),
          origin_(origin),
          rows_(rows),
          stats_(stats),
          sums_(x.cols),
          squares_(x.cols),
          tops_(kSegment),
          far_(kSegment) {}

    void work(std::int64_t t) {
        std::fill(sums_.begin(), sums_.end(), 0.0);
        std::fill(squares_.begin(), squares_.end(), 0.0);
        bad_ = 0;
        const std::int64_t i0 = t * rows_, i1 = std::min(x_.rows, i0 + rows_);
        for (std::int64_t k = 0; k < x_.cols; k += kSegment) {
            const std::int64_t count = std::min(kSegment, x_.cols - k);
            std::int64_t i = i0;
            for (; x_.dtype != Dtype::f64 && !row_scale_ && i + 4 <= i1; i += 4) add_four(i, k, count);
            for (; i < i1; ++i) {
                if (x_.dtype == Dtype::f64)
                    add(double_row(x_, i, k, count, scratch_), i, k, count);
                else
                    add(float_row(x_, i, k, count, reinterpret_cast<float*>(scratch_)), i, k, count);
            }
        }
        // A NaN or an infinity makes its column's sum one, so only such pieces are searched.
        if (!std::all_of(sums_.begin(), sums_.end(), [](double s) { return std::isfinite(s); })) search(i0, i1);
        release_rows(x_, i0, i1);
    }

    void commit(std::int64_t) {
        for (std::int64_t k = 0; k < x_.cols; ++k) {
            stats_.mean[k] += sums_[k];
            stats_.sum_sq_dev[k] += squares_[k];
        }
        stats_.max_abs = std::max(stats_.max_abs, *std::max_element(tops_.begin(), tops_.end()));
        stats_.max_dev = std::max(stats_.max_dev, *std::max_element(far_.begin(), far_.end()));
        if (bad_ && !stats_.nonfinite) {
            stats_.first_row = bad_row_;
            stats_.first_col = bad_col_;
        }
        stats_.nonfinite += bad_;
    }

  private:
    void add_four(std::int64_t i, std::int64_t k, std::int64_t count) {
        const float* rows[4];
        for (int r = 0; r < 4; ++r)
            rows[r] = float_row(x_, i + r, k, count, reinterpret_cast<float*>(scratch_) + r * kSegment);
        add_four_rows(rows, origin_.data() + k, sums_.data() + k, squares_.data() + k, tops_.data(), far_.data(),
                      count);
    }

    template <class T>
    void add(const T* v, std::int64_t i, std::int64_t k, std::int64_t count) {
        add_row(v, origin_.data() + k, row_scale_ ? row_scale_[i] : 1.0, sums_.data() + k, squares_.data() + k,
                tops_.data(), far_.data(), count);
    }

    void search(std::int64_t i0, std::int64_t i1) {
        for (std::int64_t i = i0; i < i1; ++i)
            for (std::int64_t k = 0; k < x_.cols; k += kSegment) {
                const std::int64_t count = std::min(kSegment, x_.cols - k);
                load_row(x_, i, k, k + count, scratch_);
                for (std::int64_t c = 0; c < count; ++c) {
                    if (std::isfinite(scratch_[c])) continue;
                    if (!bad_++) {
                        bad_row_ = i;
                        bad_col_ = k + c;
                    }
                }
            }
    }

    const MatrixView& x_;
    const double* row_scale_;
    const std::vector<double>& origin_;
    std::int64_t rows_;
    ColumnStats& stats_;
    std::vector<double> sums_, squares_;        // [p]
    std::vector<double> tops_, far_;            // [kSegment]; they only grow
    alignas(64) double scratch_[2 * kSegment];  // or four rows of float
    std::int64_t bad_ = 0, bad_row_ = 0, bad_col_ = 0;
};

// Column by column the mean of a few rows from all over, around which one pass sums squares without cancelling: it lies
// among the values, so that (mean - origin)^2 is at most rows / kPilot^2 times their variance, or about 1 / kPilot.
std::vector<double> pilot_mean(const MatrixView& x, const double* row_scale) {
    const std::int64_t count = std::min(x.rows, kPilot), step = x.rows / count;
    const auto load = [&](std::int64_t i, std::vector<double>& row) {
        load_row(x, i, 0, x.cols, row.data());
        for (double& value : row) value *= row_scale ? row_scale[i] : 1.0;
        release_rows(x, i, i + 1);
    };
    std::vector<double> first(x.cols), row(x.cols), sum(x.cols, 0.0);
    load(0, first);
    for (std::int64_t i = 1; i < count; ++i) {
        load(i * step, row);
        for (std::int64_t k = 0; k < x.cols; ++k) sum[k] += row[k] - first[k];
    }
    for (std::int64_t k = 0; k < x.cols; ++k) {
        const double mean = first[k] + sum[k] / static_cast<double>(count);
        first[k] = std::isfinite(mean) ? mean : first[k];
    }
    return first;
}

}  // namespace

ColumnStats column_stats(const MatrixView& x, const double* row_scale, int threads, const Poll& poll) {
    ColumnStats stats;
    stats.mean.assign(x.cols, 0.0);
    stats.sum_sq_dev.assign(x.cols, 0.0);
    const std::int64_t rows = std::max<std::int64_t>(4, kElements / x.cols), pieces = (x.rows + rows - 1) / rows;
    const std::vector<double> origin = pilot_mean(x, row_scale);
    for_each_tile(pieces, threads, poll, [&] { return StatsWorker(x, row_scale, origin, rows, stats); });
    if (stats.nonfinite) return stats;
    double moved = 0.0;
    for (std::int64_t k = 0; k < x.cols; ++k) {
        const double step = stats.mean[k] / static_cast<double>(x.rows);
        stats.sum_sq_dev[k] = std::max(0.0, stats.sum_sq_dev[k] - step * stats.mean[k]);  // -1e-17 is rounding
        stats.mean[k] = origin[k] + step;
        moved = std::max(moved, std::fabs(step));
    }
    stats.max_dev += moved;
    return stats;
}

namespace {

constexpr std::int64_t kTile = 528;   // columns: whole slivers
constexpr std::int64_t kRows = 1024;  // summed in T
constexpr std::int64_t kDepth = 256;  // rows packed at a time

// Rows [row0, row1) x columns [col0, col1) as slivers of columns: out[s][row][c], zero beyond col1.
template <class T>
void pack_columns(const BlockView& block, std::int64_t row0, std::int64_t row1, std::int64_t col0, std::int64_t col1,
                  T* out) {
    const std::int64_t w = micro_kernel<T>().width, depth = row1 - row0, cols = col1 - col0;
    alignas(64) T row[kTile];
    std::fill(row + cols, row + round_up(cols, w), T(0));
    for (std::int64_t i = 0; i < depth; ++i) {
        pack(block, row0 + i, row0 + i + 1, col0, col1, row, cols);
        for (std::int64_t s = 0; s < cols; s += w) std::copy_n(row + s, w, out + s * depth + i * w);
    }
}

// Tiles of the upper triangle times groups of rows; groups of one tile commit in order.
template <class T>
class ProductsWorker {
  public:
    ProductsWorker(const BlockView& block, double* g)
        : block_(block),
          g_(g),
          tiles_((block.x.cols + kTile - 1) / kTile),
          side_(round_up(std::min(kTile, block.x.cols), micro_kernel<T>().width)),
          depth_(std::min(kDepth, block.x.rows)),
          a_(depth_ * side_),
          b_(tiles_ > 1 ? depth_ * side_ : 0),
          c_(side_ * side_) {}

    void work(std::int64_t t) {
        const std::int64_t n = block_.x.rows, p = block_.x.cols;
        const std::int64_t pairs = tiles_ * (tiles_ + 1) / 2;
        const std::int64_t r0 = t / pairs * kRows, r1 = std::min(n, r0 + kRows);
        std::int64_t row = 0, left = t % pairs;
        while (left >= tiles_ - row) left -= tiles_ - row++;
        i0_ = row * kTile;
        j0_ = (row + left) * kTile;
        wi_ = std::min(p, i0_ + kTile) - i0_;
        wj_ = std::min(p, j0_ + kTile) - j0_;
        const bool same = i0_ == j0_;
        for (std::int64_t r = r0; r < r1; r += kDepth) {
            const std::int64_t end = std::min(r1, r + kDepth);
            pack_columns(block_, r, end, i0_, i0_ + wi_, a_.data());
            if (!same) pack_columns(block_, r, end, j0_, j0_ + wj_, b_.data());
            packed_product(wi_, wj_, end - r, a_.data(), same ? a_.data() : b_.data(), same, r > r0, c_.data(), wj_);
        }
        release_rows(block_.x, r0, r1);
    }

    void commit(std::int64_t) {
        const std::int64_t p = block_.x.cols;
        for (std::int64_t i = 0; i < wi_; ++i) {
            const std::int64_t from = i0_ == j0_ ? i : 0;
            const T* c = c_.data() + i * wj_;
            double* to = g_ + (i0_ + i) * p + j0_;
            for (std::int64_t j = from; j < wj_; ++j) to[j] += c[j];
        }
    }

  private:
    const BlockView& block_;
    double* g_;
    std::int64_t tiles_, side_, depth_;
    std::vector<T> a_, b_, c_;
    std::int64_t i0_ = 0, j0_ = 0, wi_ = 0, wj_ = 0;
};

template <class T>
void add_products(const BlockView& block, int threads, const Poll& poll, double* g) {
    const std::int64_t tiles = (block.x.cols + kTile - 1) / kTile;
    const std::int64_t groups = (block.x.rows + kRows - 1) / kRows;
    for_each_tile(groups * tiles * (tiles + 1) / 2, threads, poll, [&] { return ProductsWorker<T>(block, g); });
}

}  // namespace

void column_products(const BlockView& block, const double* sum_sq_dev, bool exact, int threads, const Poll& poll,
                     double* g) {
    const std::int64_t p = block.x.cols;
    const double n = static_cast<double>(block.x.rows);
    std::fill_n(g, p * p, 0.0);
    std::vector<double> rest(p, 0.0);  // the mean that is left in the columns, in z's units
    if (exact) {
        add_products<double>(block, threads, poll, g);
    } else {
        std::vector<double> shift(block.shift, block.shift + p);
        for (std::int64_t k = 0; k < p; ++k)
            if (shift[k] * shift[k] <= 9.0 * sum_sq_dev[k] / n) {
                rest[k] = shift[k] * block.scale;
                shift[k] = 0.0;
            }
        BlockView partly = block;
        partly.shift = shift.data();
        add_products<float>(partly, threads, poll, g);
    }
    for (std::int64_t i = 0; i < p; ++i) {
        for (std::int64_t j = i + 1; j < p; ++j) g[i * p + j] -= n * rest[i] * rest[j];
        if (!exact) g[i * p + i] = sum_sq_dev[i] * block.scale * block.scale;
    }
    // Mirror by squares that fit the cache.
    constexpr std::int64_t square = 64;
    for (std::int64_t i0 = 0; i0 < p; i0 += square)
        for (std::int64_t j0 = i0; j0 < p; j0 += square)
            for (std::int64_t i = i0; i < std::min(p, i0 + square); ++i)
                for (std::int64_t j = std::max(i + 1, j0); j < std::min(p, j0 + square); ++j)
                    g[j * p + i] = g[i * p + j];
}

}  // namespace simkit
