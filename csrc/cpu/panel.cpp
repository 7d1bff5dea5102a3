#include "core/panel.hpp"

#include <algorithm>

#if defined(__x86_64__) && defined(__GNUC__)
#define SIMKIT_X86 1
#endif

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
    Square(const Dots<T>& dots, const T* panel, std::int64_t m, std::int64_t size, double* gram)
        : dots_(dots), panel_(panel), m_(m), size_(size), gram_(gram) {}

    // Elements [k, k + count) of rows [a0, a1) with rows [b0, b1), at most `side` of each; the last row stands in for
    // those that are missing.
    void add(Pairs pairs, std::int64_t k, std::int64_t count, std::int64_t a0, std::int64_t a1, std::int64_t b0,
             std::int64_t b1) {
        const T *x[kMost], *y[kMost];
        double out[kMost * kMost] = {};
        for (std::int64_t i = 0; i < dots_.side; ++i) {
            x[i] = panel_ + std::min(a0 + i, a1 - 1) * size_ + k;
            y[i] = panel_ + std::min(b0 + i, b1 - 1) * size_ + k;
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
    std::int64_t m_, size_;
    double* gram_;
};

}  // namespace

template <class T>
void add_panel_gram(const T* panel, std::int64_t m, std::int64_t left, std::int64_t size, double* gram) {
    static const Dots<T> dots = choose<T>();
    Square<T> square(dots, panel, m, size, gram);
    for (std::int64_t k = 0; k < size; k += kStep) {
        const std::int64_t count = std::min(kStep, size - k);
        for (std::int64_t a = 0; a < left; a += dots.side)
            for (std::int64_t b = left; b < m; b += dots.side) square.add(Pairs::all, k, count, a, left, b, m);
        for (std::int64_t a = 0; a < m; a += dots.side) {
            square.add(left ? Pairs::diagonal : Pairs::upper, k, count, a, m, a, m);
            for (std::int64_t b = a + dots.side; !left && b < m; b += dots.side)
                square.add(Pairs::all, k, count, a, m, b, m);
        }
    }
}

template void add_panel_gram<float>(const float*, std::int64_t, std::int64_t, std::int64_t, double*);
template void add_panel_gram<double>(const double*, std::int64_t, std::int64_t, std::int64_t, double*);

}  // namespace simkit
