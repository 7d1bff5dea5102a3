#include "cpu/unit_rows.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/clones.hpp"
#include "core/pack.hpp"

namespace simkit {
namespace {

constexpr std::int64_t kPiece = 512;  // columns read at a time where rows are not contiguous
constexpr std::int64_t kRows = 64;    // rows of one piece of work
constexpr int kLanes = 16;

template <class T>
[[gnu::always_inline]] inline double squares(const T* x, std::int64_t count) {
    double lane[kLanes] = {};
    std::int64_t k = 0;
    for (; k + kLanes <= count; k += kLanes)
        for (int l = 0; l < kLanes; ++l) lane[l] += static_cast<double>(x[k + l]) * static_cast<double>(x[k + l]);
    for (; k < count; ++k) lane[0] += static_cast<double>(x[k]) * static_cast<double>(x[k]);
    return std::accumulate(lane, lane + kLanes, 0.0);
}
SIMKIT_CLONES double sum_of_squares(const float* x, std::int64_t count) { return squares(x, count); }
SIMKIT_CLONES double sum_of_squares(const double* x, std::int64_t count) { return squares(x, count); }

template <class T>
[[gnu::always_inline]] inline double differences(const T* x, double a, const T* y, double b, std::int64_t count) {
    double lane[kLanes] = {};
    std::int64_t k = 0;
    for (; k + kLanes <= count; k += kLanes)
        for (int l = 0; l < kLanes; ++l) {
            const double d = x[k + l] * a - y[k + l] * b;
            lane[l] += d * d;
        }
    for (; k < count; ++k) lane[0] += (x[k] * a - y[k] * b) * (x[k] * a - y[k] * b);
    return std::accumulate(lane, lane + kLanes, 0.0);
}
// sum (a x - b y)^2
SIMKIT_CLONES double squared_distance(const float* x, double a, const float* y, double b, std::int64_t count) {
    return differences(x, a, y, b, count);
}
SIMKIT_CLONES double squared_distance(const double* x, double a, const double* y, double b, std::int64_t count) {
    return differences(x, a, y, b, count);
}

// What 1 / |x_i| is multiplied with: 0 for a zero row, NaN for one that is not finite.
double row_scale(const MatrixView& x, std::int64_t i) {
    alignas(64) double scratch[kPiece];
    const auto each = [&](auto&& see) {
        for (std::int64_t k = 0; k < x.cols; k += kPiece) {
            const std::int64_t count = std::min(kPiece, x.cols - k);
            if (x.dtype == Dtype::f64)
                see(double_row(x, i, k, count, scratch), count);
            else
                see(float_row(x, i, k, count, reinterpret_cast<float*>(scratch)), count);
        }
    };
    double sum = 0.0;
    each([&](const auto* v, std::int64_t count) { sum += sum_of_squares(v, count); });
    if (std::isfinite(sum) && sum > 0x1p-900) return 1.0 / std::sqrt(sum);
    // Squares of float64 entries overflow or vanish where the entries do not.
    double largest = 0.0;
    bool finite = true;
    each([&](const auto* v, std::int64_t count) {
        for (std::int64_t k = 0; k < count; ++k) {
            finite = finite && std::isfinite(v[k]);
            largest = std::max(largest, std::fabs(static_cast<double>(v[k])));
        }
    });
    if (!finite) return std::numeric_limits<double>::quiet_NaN();
    if (largest == 0.0) return 0.0;
    const int exponent = std::ilogb(largest);
    sum = 0.0;
    each([&](const auto* v, std::int64_t count) {
        for (std::int64_t k = 0; k < count; ++k) {
            const double z = std::scalbn(static_cast<double>(v[k]), -exponent);
            sum += z * z;
        }
    });
    const double scale = std::scalbn(1.0 / std::sqrt(sum), -exponent);
    return std::isfinite(scale) ? scale : 0.0;  // a norm below the smallest normal number counts as zero
}

class ScalesWorker {
  public:
    ScalesWorker(const MatrixView& x, std::vector<double>& scale) : x_(x), scale_(scale) {}
    void work(std::int64_t t) {
        const std::int64_t end = std::min(x_.rows, (t + 1) * kRows);
        for (std::int64_t i = t * kRows; i < end; ++i) scale_[i] = row_scale(x_, i);
        release_rows(x_, t * kRows, end);
    }

  private:
    const MatrixView& x_;
    std::vector<double>& scale_;
};

}  // namespace

std::vector<double> unit_scales(const MatrixView& x, int threads, const Poll& poll) {
    std::vector<double> scale(x.rows);
    for_each_tile((x.rows + kRows - 1) / kRows, threads, poll, [&] { return ScalesWorker(x, scale); });
    return scale;
}

double unit_distance(const MatrixView& x, std::int64_t i, double a, std::int64_t j, double b) {
    alignas(64) double left[kPiece], right[kPiece];
    double sum = 0.0;
    for (std::int64_t k = 0; k < x.cols; k += kPiece) {
        const std::int64_t count = std::min(kPiece, x.cols - k);
        if (x.dtype == Dtype::f64)
            sum += squared_distance(double_row(x, i, k, count, left), a, double_row(x, j, k, count, right), b, count);
        else
            sum += squared_distance(float_row(x, i, k, count, reinterpret_cast<float*>(left)), a,
                                    float_row(x, j, k, count, reinterpret_cast<float*>(right)), b, count);
    }
    return sum;
}

}  // namespace simkit
