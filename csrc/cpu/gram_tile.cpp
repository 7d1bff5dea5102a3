#include "cpu/gram_tile.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>
#include <vector>

#include "core/clones.hpp"
#include "core/pack.hpp"
#include "core/slivers.hpp"
#include "cpu/exponential.hpp"
#include "cpu/power.hpp"

namespace simkit {

namespace {

Ahead ahead(const MatrixView& x, std::int64_t row, std::int64_t rows, std::int64_t col, std::int64_t end) {
    if (x.col_stride != item_size(x.dtype)) return {};
    return {x.data + row * x.row_stride + col * x.col_stride, x.row_stride, end > col ? rows : 0,
            (end - col) * x.col_stride};
}

}  // namespace

template <class T>
void product_tile(const BlockView& rows, std::int64_t i0, std::int64_t ti, const BlockView& cols, std::int64_t j0,
                  std::int64_t tj, bool same, PackedStrips<T>& strips, T* c, const BlockView* next_block,
                  const std::function<void()>& pause) {
    const std::int64_t p = rows.x.cols;
    for (std::int64_t k = 0; k < p; k += kChunk) {
        const std::int64_t end = std::min(p, k + kChunk);
        pack_slivers(rows, i0, i0 + ti, k, end, strips.a.data());
        if (!same) pack_slivers(cols, j0, j0 + tj, k, end, strips.b.data());
        const bool last = end == p && next_block;
        const std::int64_t from = last ? 0 : end, to = std::min(last ? next_block->x.cols : p, from + kChunk);
        const MatrixView &left = last ? next_block->x : rows.x, &right = last ? next_block->x : cols.x;
        packed_product(ti, tj, end - k, strips.a.data(), same ? strips.a.data() : strips.b.data(), same, k > 0, c, tj,
                       ahead(left, i0, ti, from, to), same ? Ahead() : ahead(right, j0, tj, from, to));
        if (pause) pause();
    }
    for (std::int64_t i = 1; same && i < ti; ++i)
        for (std::int64_t j = 0; j < i; ++j) c[i * tj + j] = c[j * tj + i];
    release_rows(rows.x, i0, i0 + ti);
    if (!same) release_rows(cols.x, j0, j0 + tj);
}

template void product_tile<float>(const BlockView&, std::int64_t, std::int64_t, const BlockView&, std::int64_t,
                                  std::int64_t, bool, PackedStrips<float>&, float*, const BlockView*,
                                  const std::function<void()>&);
template void product_tile<double>(const BlockView&, std::int64_t, std::int64_t, const BlockView&, std::int64_t,
                                   std::int64_t, bool, PackedStrips<double>&, double*, const BlockView*,
                                   const std::function<void()>&);

namespace {

// Below this share of |z_i|^2 + |z_j|^2 the products have cancelled to fewer than eleven digits.
constexpr double kCancelled = 1e-5;

// The squared distance of two rows: many are needed where samples are equal or nearly so.
template <class T>
[[gnu::always_inline]] inline double squared_distance_body(const T* a, const T* b, std::int64_t count, double scale) {
    constexpr std::int64_t lanes = 16;
    double part[lanes] = {};
    std::int64_t k = 0;
    for (; k + lanes <= count; k += lanes)
        for (std::int64_t l = 0; l < lanes; ++l) {
            const double d = (static_cast<double>(a[k + l]) - static_cast<double>(b[k + l])) * scale;
            part[l] += d * d;
        }
    double sum = 0.0;
    for (; k < count; ++k) {
        const double d = (static_cast<double>(a[k]) - static_cast<double>(b[k])) * scale;
        sum += d * d;
    }
    for (double value : part) sum += value;
    return sum;
}
SIMKIT_CLONES double squared_distance(const float* a, const float* b, std::int64_t count, double scale) {
    return squared_distance_body(a, b, count, scale);
}
SIMKIT_CLONES double squared_distance(const double* a, const double* b, std::int64_t count, double scale) {
    return squared_distance_body(a, b, count, scale);
}

// Row i of one view and row j of another of the same block.
double distance_from_rows(const BlockView& block, std::int64_t i, const BlockView& other, std::int64_t j) {
    const MatrixView &x = block.x, &y = other.x;
    double a[kChunk], b[kChunk];
    double sum = 0.0;
    for (std::int64_t k = 0; k < x.cols; k += kChunk) {
        const std::int64_t count = std::min(x.cols - k, kChunk);
        if (x.dtype == Dtype::f64)
            sum += squared_distance(double_row(x, i, k, count, a), double_row(y, j, k, count, b), count, block.scale);
        else
            sum += squared_distance(float_row(x, i, k, count, reinterpret_cast<float*>(a)),
                                    float_row(y, j, k, count, reinterpret_cast<float*>(b)), count, block.scale);
    }
    return sum;
}

// c = norm + norms - 2 c; whether any of them has cancelled.
SIMKIT_CLONES bool distances_of_row(double norm, const double* norms, double* c, std::int64_t count) {
    std::int64_t cancelled = 0;
    for (std::int64_t j = 0; j < count; ++j) {
        const double both = norm + norms[j];
        c[j] = both - 2.0 * c[j];
        cancelled |= c[j] < kCancelled * both;
    }
    return cancelled != 0;
}

// c = exp(factor c), or exp(factor sqrt(c)), or either less 1, by vectors; factor <= 0 <= c.
SIMKIT_CLONES void exponentials(double* c, std::int64_t count, double factor, bool of_roots, bool less_one) {
    using Doubles [[gnu::vector_size(64)]] = double;
    using Integers [[gnu::vector_size(64)]] = std::int64_t;
    constexpr std::int64_t lanes = sizeof(Doubles) / sizeof(double);
    const double scale = factor * std::numbers::log2e;
    for (std::int64_t k = 0; k < count; k += lanes) {
        const std::size_t bytes = std::min(lanes, count - k) * sizeof(double);
        Doubles x{};
        std::memcpy(&x, c + k, bytes);
        if (of_roots)
            for (int l = 0; l < lanes; ++l) x[l] = std::sqrt(x[l]);
        x = less_one ? power_of_two_less_one<double, Doubles, Integers>(scale * x)
                     : power_of_two<double, Doubles, Integers>(scale * x);
        std::memcpy(c + k, &x, bytes);
    }
}

}  // namespace

void distances_from_products(const BlockView& rows, const BlockView& cols, const double* norms, std::int64_t i0,
                             std::int64_t ti, std::int64_t j0, std::int64_t tj, std::int64_t step, double* c) {
    std::vector<double> apart;  // the norms of every step-th row
    for (std::int64_t j = 0; step != 1 && j < tj; ++j) apart.push_back(norms[(j0 + j) * step]);
    const double* others = step == 1 ? norms + j0 : apart.data();
    bool read = false;
    for (std::int64_t i = 0; i < ti; ++i) {
        const std::int64_t a = i0 + i;
        double* row = c + i * tj;
        if (!distances_of_row(norms[a], others, row, tj)) continue;
        for (std::int64_t j = 0; j < tj; ++j) {
            const std::int64_t b = (j0 + j) * step;
            if (a == b) {
                row[j] = 0.0;
            } else if (row[j] < kCancelled * (norms[a] + others[j])) {
                row[j] = distance_from_rows(rows, a, cols, j0 + j);
                read = true;
            }
        }
    }
    if (!read) return;
    release_rows(rows.x, i0, i0 + ti);
    release_rows(cols.x, j0, j0 + tj);
}

void apply_kernel(const BlockView& block, double* c, std::int64_t count) {
    switch (block.kernel) {
        case Kernel::linear:
        case Kernel::custom:  // apply_custom
            return;
        case Kernel::rbf:
            exponentials(c, count, -1.0 / block.length, false, block.coef0 != 0.0);
            return;
        case Kernel::laplacian:
            exponentials(c, count, -1.0 / block.length, true, block.coef0 != 0.0);
            return;
        case Kernel::polynomial:
            power_body(block.length, block.coef0, block.degree, c, count);
            return;
    }
}

std::int64_t apply_custom(const BlockView& rows, const double* norms, const double* zeros, std::int64_t i0,
                          std::int64_t ti, const BlockView& cols, std::int64_t j0, std::int64_t tj, std::int64_t step,
                          bool same, PackedStrips<double>& strips, Arguments& arguments, double* c) {
    const std::int64_t count = ti * tj;
    arguments.distances.assign(c, c + count);
    distances_from_products(rows, cols, norms, i0, ti, j0, tj, step, arguments.distances.data());
    arguments.products.assign(c, c + count);
    if (zeros) {
        BlockView raw_rows = rows, raw_cols = cols;
        raw_rows.shift = raw_cols.shift = zeros;
        product_tile(raw_rows, i0, ti, raw_cols, j0, tj, same, strips, arguments.products.data());
    }
    std::fill_n(c, count, std::numeric_limits<double>::quiet_NaN());  // what stays so where the function gives up
    rows.function(arguments.products.data(), arguments.distances.data(), c, count);
    const double* bad = std::find_if(c, c + count, [](double value) { return !(std::fabs(value) < kLargest); });
    return bad == c + count ? -1 : bad - c;
}

}  // namespace simkit
