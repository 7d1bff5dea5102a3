#include "core/panel.hpp"

#include <algorithm>

#include "core/accumulate.hpp"
#include "core/clones.hpp"
#include "core/micro_kernel.hpp"
#include "core/slivers.hpp"

namespace simkit {
namespace {

constexpr std::int64_t kStep = 2048;  // elements per row: all rows' parts stay in the level-2 cache while pairs meet

// Elements that one lane sums in T: few, for samples that are alike give equal elements, whose sum rounds the same way
// every time, and what is subtracted from the sum may make twenty times as much of it.
constexpr std::int64_t kLaneSum = 32;

// out[R][S] += x_r . y_s, sixteen lanes or fewer side by side.
template <class T, int Bytes, int R, int S>
[[gnu::always_inline]] inline void dots_body(std::int64_t count, const T* const* x, const T* const* y,
                                             double (*out)[S]) {
    constexpr std::int64_t lanes = Bytes / static_cast<std::int64_t>(sizeof(T));
    typedef T Vector __attribute__((vector_size(Bytes)));
    typedef T Loose __attribute__((vector_size(Bytes), aligned(sizeof(T)), may_alias));
    std::int64_t k = 0;
    double wide[R][S][lanes] = {};
    while (k + lanes <= count) {
        Vector sum[R][S] = {};
        const std::int64_t end = std::min(count - lanes, k + (kLaneSum - 1) * lanes);
        for (; k <= end; k += lanes) {
            Vector right[S];
#pragma GCC unroll 8
            for (int s = 0; s < S; ++s) right[s] = *reinterpret_cast<const Loose*>(y[s] + k);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const Vector left = *reinterpret_cast<const Loose*>(x[r] + k);
#pragma GCC unroll 8
                for (int s = 0; s < S; ++s) sum[r][s] += left * right[s];
            }
        }
        for (int r = 0; r < R; ++r)
            for (int s = 0; s < S; ++s)
                for (int l = 0; l < lanes; ++l) wide[r][s][l] += static_cast<double>(sum[r][s][l]);
    }
    for (int r = 0; r < R; ++r)
        for (int s = 0; s < S; ++s)
            for (double value : wide[r][s]) out[r][s] += value;
    for (; k < count; ++k)
        for (int r = 0; r < R; ++r)
            for (int s = 0; s < S; ++s) out[r][s] += static_cast<double>(x[r][k]) * static_cast<double>(y[s][k]);
}

// Five by five accumulators leave room in thirty-two registers, three by three in sixteen.
constexpr int kMost = 5;

template <class T>
struct Dots {
    int side;
    void (*run)(std::int64_t count, const T* const* x, const T* const* y, double* out);
};

template <class T>
void dots_baseline(std::int64_t count, const T* const* x, const T* const* y, double* out) {
    dots_body<T, 16, 3, 3>(count, x, y, reinterpret_cast<double (*)[3]>(out));
}
#ifdef SIMKIT_X86
template <class T>
__attribute__((target("avx2,fma"))) void dots_avx2(std::int64_t count, const T* const* x, const T* const* y,
                                                   double* out) {
    dots_body<T, 32, 3, 3>(count, x, y, reinterpret_cast<double (*)[3]>(out));
}
template <class T>
__attribute__((target("avx512f,fma"))) void dots_avx512(std::int64_t count, const T* const* x, const T* const* y,
                                                        double* out) {
    dots_body<T, 64, 5, 5>(count, x, y, reinterpret_cast<double (*)[5]>(out));
}
#endif

template <class T>
Dots<T> choose() {
#ifdef SIMKIT_X86
    if (__builtin_cpu_supports("avx512f")) return {5, dots_avx512<T>};
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {3, dots_avx2<T>};
#endif
    return {3, dots_baseline<T>};
}

enum class Pairs { all, upper, diagonal };

template <class T>
class Square {
  public:
    Square(const Dots<T>& dots, const T* panel, std::int64_t m, std::int64_t ld, double* gram)
        : dots_(dots), panel_(panel), m_(m), ld_(ld), gram_(gram) {}

    // Elements [k, k + count) of rows [a0, a1) with rows [b0, b1), at most `side` of each; the last row stands in for
    // those that are missing.
    void add(Pairs pairs, std::int64_t k, std::int64_t count, std::int64_t a0, std::int64_t a1, std::int64_t b0,
             std::int64_t b1) {
        const T *x[kMost], *y[kMost];
        double out[kMost * kMost] = {};
        for (std::int64_t i = 0; i < dots_.side; ++i) {
            x[i] = panel_ + std::min(a0 + i, a1 - 1) * ld_ + k;
            y[i] = panel_ + std::min(b0 + i, b1 - 1) * ld_ + k;
        }
        dots_.run(count, x, y, out);
        for (std::int64_t a = a0; a < std::min(a0 + dots_.side, a1); ++a)
            for (std::int64_t b = b0; b < std::min(b0 + dots_.side, b1); ++b)
                if (pairs == Pairs::all || a == b || (pairs == Pairs::upper && a < b))
                    gram_[a * m_ + b] += out[(a - a0) * dots_.side + b - b0];
    }

  private:
    const Dots<T>& dots_;
    const T* panel_;
    std::int64_t m_, ld_;
    double* gram_;
};

// Where rows are many, packing them pays.
constexpr std::int64_t kMany = 64;
constexpr std::int64_t kDepth = 256;
constexpr std::int64_t kRun = 64;

template <class T>
const Dots<T>& dots() {
    static const Dots<T> chosen = choose<T>();
    return chosen;
}

}  // namespace

template <class T>
PanelGram<T>::PanelGram(std::int64_t m, std::int64_t left)
    : m_(m), left_(left), many_(std::min(left ? left : m, m - left) >= kMany) {
    if (!many_) return;
    const std::int64_t w = micro_kernel<T>().width, rows = left ? left : m, cols = m - left;
    a_.resize(round_up(rows, w) * kRun);
    b_.resize(left ? round_up(cols, w) * kRun : 0);
    c_.resize(rows * cols);
}

template <class T>
void PanelGram<T>::add(const T* panel, std::int64_t ld, std::int64_t size, double* gram) {
    if (many_)
        add_many(panel, ld, size, gram);
    else
        add_few(panel, ld, size, gram);
}

template <class T>
void PanelGram<T>::add_few(const T* panel, std::int64_t ld, std::int64_t size, double* gram) const {
    const std::int64_t side = dots<T>().side;
    Square<T> square(dots<T>(), panel, m_, ld, gram);
    for (std::int64_t k = 0; k < size; k += kStep) {
        const std::int64_t count = std::min(kStep, size - k);
        if (left_) {
            for (std::int64_t a = 0; a < left_; a += side)
                for (std::int64_t b = left_; b < m_; b += side) square.add(Pairs::all, k, count, a, left_, b, m_);
            add_diagonal(panel, ld, k, count, gram);
            continue;
        }
        for (std::int64_t a = 0; a < m_; a += side) {
            square.add(Pairs::upper, k, count, a, m_, a, m_);
            for (std::int64_t b = a + side; b < m_; b += side) square.add(Pairs::all, k, count, a, m_, b, m_);
        }
    }
}

template <class T>
void PanelGram<T>::add_diagonal(const T* panel, std::int64_t ld, std::int64_t k, std::int64_t count,
                                double* gram) const {
    Square<T> square(dots<T>(), panel, m_, ld, gram);
    for (std::int64_t a = 0; a < m_; a += dots<T>().side) square.add(Pairs::diagonal, k, count, a, m_, a, m_);
}

// Elements [k, end) of all rows, which are packed next.
template <class T>
Ahead PanelGram<T>::ahead(const T* panel, std::int64_t ld, std::int64_t k, std::int64_t end) const {
    constexpr std::int64_t item = sizeof(T);
    return {reinterpret_cast<const std::byte*>(panel + k), ld * item, end > k ? m_ : 0, (end - k) * item};
}

template <class T>
void PanelGram<T>::add_many(const T* panel, std::int64_t ld, std::int64_t size, double* gram) {
    const std::int64_t rows = left_ ? left_ : m_, cols = m_ - left_;
    for (std::int64_t k = 0; k < size; k += kDepth) {
        const std::int64_t end = std::min(size, k + kDepth);
        for (std::int64_t r = k; r < end; r += kRun) {
            const std::int64_t depth = std::min(kRun, end - r);
            pack_slivers(panel + r, rows, ld, depth, a_.data());
            if (left_) pack_slivers(panel + left_ * ld + r, cols, ld, depth, b_.data());
            packed_product(rows, cols, depth, a_.data(), left_ ? b_.data() : a_.data(), !left_, r > k, c_.data(), cols,
                           ahead(panel, ld, r + kRun, std::min(size, r + 2 * kRun)));
        }
        for (std::int64_t a = 0; a < rows; ++a) {
            const std::int64_t from = left_ ? 0 : a;
            add_to(c_.data() + a * cols + from, gram + a * m_ + left_ + from, cols - from);
        }
        if (left_) add_diagonal(panel, ld, k, end - k, gram);
    }
}

template class PanelGram<float>;
template class PanelGram<double>;

}  // namespace simkit
