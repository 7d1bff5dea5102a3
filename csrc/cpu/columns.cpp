#include "ops/columns.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "core/accumulate.hpp"
#include "core/buffer.hpp"
#include "core/clones.hpp"
#include "core/micro_kernel.hpp"
#include "core/pack.hpp"

namespace simkit {
namespace {

constexpr std::int64_t kElements = std::int64_t{1} << 18;  // of x in one piece of work
constexpr std::int64_t kSegment = 512;
constexpr std::int64_t kPilot = 64;  // rows
constexpr std::int64_t kAhead = 8;   // rows that are on their way from memory

// Per column: sums of d = value - origin and of d^2, the least and the largest value.
template <class T>
[[gnu::always_inline]] inline void add_body(const T* v, const double* origin, double r, double* __restrict sum,
                                            double* __restrict square, double* __restrict low, double* __restrict high,
                                            std::int64_t count) {
    for (std::int64_t k = 0; k < count; ++k) {
        const double value = v[k] * r, d = value - origin[k];
        sum[k] += d;
        square[k] += d * d;
        low[k] = value < low[k] ? value : low[k];
        high[k] = value > high[k] ? value : high[k];
    }
}
SIMKIT_CLONES void add_row(const float* v, const double* origin, double r, double* sum, double* square, double* low,
                           double* high, std::int64_t count) {
    add_body(v, origin, r, sum, square, low, high, count);
}
SIMKIT_CLONES void add_row(const double* v, const double* origin, double r, double* sum, double* square, double* low,
                           double* high, std::int64_t count) {
    add_body(v, origin, r, sum, square, low, high, count);
}

// Four rows at once, so that the sums are fetched and stored a quarter as often.
template <class T>
[[gnu::always_inline]] inline void add_four_body(const T* const* v, const double* origin, double* __restrict sum,
                                                 double* __restrict square, T* __restrict low, T* __restrict high,
                                                 std::int64_t count) {
    const T *a = v[0], *b = v[1], *c = v[2], *d = v[3];
    const auto smaller = [](T x, T y) { return x < y ? x : y; };
    const auto larger = [](T x, T y) { return x > y ? x : y; };
    for (std::int64_t k = 0; k < count; ++k) {
        const double o = origin[k], da = a[k] - o, db = b[k] - o, dc = c[k] - o, dd = d[k] - o;
        sum[k] += (da + db) + (dc + dd);
        square[k] += (da * da + db * db) + (dc * dc + dd * dd);
    }
    for (std::int64_t k = 0; k < count; ++k) {
        low[k] = smaller(smaller(smaller(a[k], b[k]), smaller(c[k], d[k])), low[k]);
        high[k] = larger(larger(larger(a[k], b[k]), larger(c[k], d[k])), high[k]);
    }
}
SIMKIT_CLONES void add_four_rows(const float* const* v, const double* origin, double* sum, double* square, float* low,
                                 float* high, std::int64_t count) {
    add_four_body(v, origin, sum, square, low, high, count);
}
SIMKIT_CLONES void add_four_rows(const double* const* v, const double* origin, double* sum, double* square, double* low,
                                 double* high, std::int64_t count) {
    add_four_body(v, origin, sum, square, low, high, count);
}

template <class T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

// The least and the largest value of every column.
struct Ranges {
    std::vector<double> low, high;  // [p]
    explicit Ranges(std::int64_t p) : low(p, kInfinity<double>), high(p, -kInfinity<double>) {}
    template <class T>
    void take(const std::vector<T>& l, const std::vector<T>& h) {
        for (std::size_t k = 0; k < low.size(); ++k) {
            low[k] = std::min(low[k], static_cast<double>(l[k]));
            high[k] = std::max(high[k], static_cast<double>(h[k]));
        }
    }
};

class StatsWorker {
  public:
    StatsWorker(const MatrixView& x, const double* row_scale, const std::vector<double>& origin, std::int64_t rows,
                ColumnStats& stats, Ranges& ranges)
        : x_(x),
          row_scale_(row_scale),
          origin_(origin),
          rows_(rows),
          stats_(stats),
          ranges_(ranges),
          sums_(x.cols),
          squares_(x.cols),
          own_(x.cols),
          low_(x.cols, kInfinity<float>),
          high_(x.cols, -kInfinity<float>) {}

    void work(std::int64_t t) {
        std::fill(sums_.begin(), sums_.end(), 0.0);
        std::fill(squares_.begin(), squares_.end(), 0.0);
        bad_ = 0;
        const std::int64_t i0 = t * rows_, i1 = std::min(x_.rows, i0 + rows_);
        for (std::int64_t k = 0; k < x_.cols; k += kSegment) {
            const std::int64_t count = std::min(kSegment, x_.cols - k);
            std::int64_t i = i0, kept = i0;
            const auto release = [&] {
                if (!x_.mapped || (i - kept) * row_span(x_) < kPassing) return;
                release_rows(x_, kept, i);
                kept = i;
            };
            for (; !row_scale_ && i + 4 <= i1; i += 4, release()) {
                if (x_.dtype == Dtype::f64)
                    add_four(double_row, own_.low.data(), own_.high.data(), i, k, count);
                else
                    add_four(float_row, low_.data(), high_.data(), i, k, count);
            }
            for (; i < i1; ++i, release()) {
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
        ranges_.take(own_.low, own_.high);
        ranges_.take(low_, high_);
        if (bad_ && !stats_.nonfinite) {
            stats_.first_row = bad_row_;
            stats_.first_col = bad_col_;
        }
        stats_.nonfinite += bad_;
    }

  private:
    template <class T>
    void add_four(const T* (*load)(const MatrixView&, std::int64_t, std::int64_t, std::int64_t, T*), T* low, T* high,
                  std::int64_t i, std::int64_t k, std::int64_t count) {
        const T* rows[4];
        for (int r = 0; r < 4; ++r) rows[r] = load(x_, i + r, k, count, reinterpret_cast<T*>(scratch_) + r * kSegment);
        const std::int64_t next = i + kAhead;
        if (next + 4 <= x_.rows && x_.col_stride == item_size(x_.dtype)) {
            Ahead lines(x_.data + next * x_.row_stride + k * x_.col_stride, x_.row_stride, 4, count * x_.col_stride);
            for (std::int64_t l = lines.lines(); l > 0; --l) lines.step();
        }
        add_four_rows(rows, origin_.data() + k, sums_.data() + k, squares_.data() + k, low + k, high + k, count);
    }

    template <class T>
    void add(const T* v, std::int64_t i, std::int64_t k, std::int64_t count) {
        add_row(v, origin_.data() + k, row_scale_ ? row_scale_[i] : 1.0, sums_.data() + k, squares_.data() + k,
                own_.low.data() + k, own_.high.data() + k, count);
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
    Ranges& ranges_;
    std::vector<double> sums_, squares_;        // [p]
    Ranges own_;                                // of rows taken alone, or of doubles; they only widen
    std::vector<float> low_, high_;             // [p], of rows of floats taken by four
    alignas(64) double scratch_[4 * kSegment];  // four rows
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
    Ranges ranges(x.cols);
    for_each_tile(pieces, threads, poll, [&] { return StatsWorker(x, row_scale, origin, rows, stats, ranges); });
    if (stats.nonfinite) return stats;
    for (std::int64_t k = 0; k < x.cols; ++k) {
        const double step = stats.mean[k] / static_cast<double>(x.rows);
        const double left = stats.sum_sq_dev[k] - step * stats.mean[k];
        stats.sum_sq_dev[k] = std::isnan(left) ? kInfinity<double> : std::max(0.0, left);  // -1e-17 is rounding
        stats.mean[k] = origin[k] + step;
        stats.max_abs = std::max({stats.max_abs, -ranges.low[k], ranges.high[k]});
        stats.max_dev = std::max({stats.max_dev, stats.mean[k] - ranges.low[k], ranges.high[k] - stats.mean[k]});
    }
    return stats;
}

namespace {

constexpr std::int64_t kTile = 528;   // columns: whole slivers
constexpr std::int64_t kRows = 1024;  // summed in T, at most
constexpr std::int64_t kDepth = 256;  // rows packed at a time

// (x - shift) * scale of a row, cut into slivers that lie `apart`.
SIMKIT_CLONES void shift_scale_slivers(const float* x, const float* shift, float scale, std::int64_t width,
                                       std::int64_t apart, std::int64_t count, float* out) {
    for (std::int64_t s = 0; s + width <= count; s += width, out += apart)
        for (std::int64_t c = 0; c < width; ++c) out[c] = (x[s + c] - shift[s + c]) * scale;
}

// Rows [row0, row1) x columns [col0, col1) as slivers of columns: out[s][row][c], zero beyond col1.
template <class T>
void pack_columns(const BlockView& block, std::int64_t row0, std::int64_t row1, std::int64_t col0, std::int64_t col1,
                  T* out) {
    const std::int64_t w = micro_kernel<T>().width, depth = row1 - row0, cols = col1 - col0;
    alignas(64) T row[kTile];
    std::fill(row + cols, row + round_up(cols, w), T(0));
    std::int64_t whole = 0;  // columns that need no row in between
    if constexpr (std::is_same_v<T, float>)
        if (shifts_in_float(block)) {
            alignas(64) float shift[kTile];
            whole = cols / w * w;
            for (std::int64_t c = 0; c < whole; ++c) shift[c] = static_cast<float>(block.shift[col0 + c]);
            for (std::int64_t i = 0; i < depth && whole; ++i)
                shift_scale_slivers(float_row(block.x, row0 + i, col0, whole, row), shift,
                                    static_cast<float>(block.scale), w, depth * w, whole, out + i * w);
            if (whole == cols) return;
            std::fill(row + cols - whole, row + w, 0.0f);
        }
    for (std::int64_t i = 0; i < depth; ++i) {
        pack(block, row0 + i, row0 + i + 1, col0 + whole, col1, row, cols - whole);
        for (std::int64_t s = 0; s < cols - whole; s += w) std::copy_n(row + s, w, out + (whole + s) * depth + i * w);
    }
}

SIMKIT_CLONES void subtract_scaled(double factor, const double* row, double* to, std::int64_t count) {
    for (std::int64_t j = 0; j < count; ++j) to[j] -= factor * row[j];
}

// The upper triangle onto the lower one, by squares that are copied first: rows may lie in the same cache lines' sets.
void mirror(double* g, std::int64_t p) {
    constexpr std::int64_t side = 8;
    double square[side][side];
    for (std::int64_t i0 = 0; i0 < p; i0 += side)
        for (std::int64_t j0 = i0; j0 < p; j0 += side) {
            const std::int64_t rows = std::min(side, p - i0), cols = std::min(side, p - j0);
            for (std::int64_t i = 0; i < rows; ++i)
                for (std::int64_t j = 0; j < cols; ++j) square[i][j] = g[(i0 + i) * p + j0 + j];
            for (std::int64_t j = 0; j < cols; ++j)
                for (std::int64_t i = 0; i < rows && i0 + i < j0 + j; ++i) g[(j0 + j) * p + i0 + i] = square[i][j];
        }
}

// Groups of rows are equally long but for the last, and there is an even number of them, where that leaves none empty,
// so that two workers end together.
std::int64_t rows_of_group(std::int64_t n) {
    const std::int64_t wanted = n <= 2 * kDepth ? 1 : 2 * ((n + 2 * kRows - 1) / (2 * kRows));
    return (n + wanted - 1) / wanted;
}

// Tiles of the upper triangle times groups of rows; groups of one tile commit in order.
template <class T>
class ProductsWorker {
  public:
    ProductsWorker(const BlockView& block, double* g)
        : block_(block),
          g_(g),
          tiles_((block.x.cols + kTile - 1) / kTile),
          rows_(rows_of_group(block.x.rows)),
          side_(round_up(std::min(kTile, block.x.cols), micro_kernel<T>().width)),
          depth_(std::min(kDepth, block.x.rows)),
          a_(depth_ * side_),
          b_(tiles_ > 1 ? depth_ * side_ : 0),
          c_(side_ * side_) {}

    void work(std::int64_t t) {
        const std::int64_t n = block_.x.rows, p = block_.x.cols;
        const std::int64_t pairs = tiles_ * (tiles_ + 1) / 2;
        const std::int64_t r0 = t / pairs * rows_, r1 = std::min(n, r0 + rows_);
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
            packed_product(wi_, wj_, end - r, a_.data(), same ? a_.data() : b_.data(), same, r > r0, c_.data(), wj_,
                           ahead(end, i0_, wi_), same ? Ahead() : ahead(end, j0_, wj_));
        }
        release_rows(block_.x, r0, r1);
    }

    // The rows that are packed next, if they are this worker's.
    Ahead ahead(std::int64_t row, std::int64_t col, std::int64_t cols) const {
        const MatrixView& x = block_.x;
        if (x.col_stride != item_size(x.dtype) || row % rows_ == 0) return {};
        return {x.data + row * x.row_stride + col * x.col_stride, x.row_stride, std::min(kDepth, x.rows - row),
                cols * x.col_stride};
    }

    void commit(std::int64_t) {
        const std::int64_t p = block_.x.cols;
        for (std::int64_t i = 0; i < wi_; ++i) {
            const std::int64_t from = i0_ == j0_ ? i : 0;
            const T* c = c_.data() + i * wj_;
            double* to = g_ + (i0_ + i) * p + j0_;
            add_to(c + from, to + from, wj_ - from);
        }
    }

  private:
    const BlockView& block_;
    double* g_;
    std::int64_t tiles_, rows_, side_, depth_;
    Buffer<T> a_, b_, c_;
    std::int64_t i0_ = 0, j0_ = 0, wi_ = 0, wj_ = 0;
};

template <class T>
void add_products(const BlockView& block, int threads, const Poll& poll, double* g) {
    const std::int64_t tiles = (block.x.cols + kTile - 1) / kTile;
    const std::int64_t each = rows_of_group(block.x.rows), groups = (block.x.rows + each - 1) / each;
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
            if (shift[k] * shift[k] <= kCentred * sum_sq_dev[k] / n) {
                rest[k] = shift[k] * block.scale;
                shift[k] = 0.0;
            }
        BlockView partly = block;
        partly.shift = shift.data();
        add_products<float>(partly, threads, poll, g);
    }
    for (std::int64_t i = 0; i < p; ++i) {
        if (rest[i] != 0.0) subtract_scaled(n * rest[i], rest.data() + i + 1, g + i * p + i + 1, p - i - 1);
        if (!exact) g[i * p + i] = sum_sq_dev[i] * block.scale * block.scale;
    }
    mirror(g, p);
}

}  // namespace simkit
