#include "core/sliver_sums.hpp"

#include "core/clones.hpp"

namespace simkit {
namespace {

// Every sliver is a multiple of four columns wide.
constexpr int kLanes = 4;
typedef double Doubles __attribute__((vector_size(kLanes * sizeof(double))));

// One by one: of a whole vector the compiler converts halves and joins them.
template <class T>
[[gnu::always_inline]] inline Doubles widened(const T* z) {
    return Doubles{z[0], z[1], z[2], z[3]};
}

// `Vectors` vectors of columns under `Count` weights, all sums in registers.
template <int Count, int Vectors>
[[gnu::always_inline]] inline void weigh(std::int64_t rows, const float* z, std::int64_t width, const double* weights,
                                         double* sums) {
    Doubles sum[Count][Vectors] = {};
    for (std::int64_t r = 0; r < rows; ++r) {
        Doubles wide[Vectors];
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) wide[v] = widened(z + r * width + v * kLanes);
#pragma GCC unroll 8
        for (int k = 0; k < Count; ++k)
#pragma GCC unroll 4
            for (int v = 0; v < Vectors; ++v) sum[k][v] += weights[r * Count + k] * wide[v];
    }
    for (int k = 0; k < Count; ++k)
        for (int v = 0; v < Vectors; ++v)
            for (int c = 0; c < kLanes; ++c) sums[k * width + v * kLanes + c] += sum[k][v][c];
}

template <int Count>
[[gnu::always_inline]] inline void weigh_all(std::int64_t rows, const float* sliver, std::int64_t width,
                                             const double* weights, double* sums) {
    std::int64_t c = 0;
    for (; c + 2 * kLanes <= width; c += 2 * kLanes) weigh<Count, 2>(rows, sliver + c, width, weights, sums + c);
    for (; c < width; c += kLanes) weigh<Count, 1>(rows, sliver + c, width, weights, sums + c);
}

template <class T>
[[gnu::always_inline]] inline void signed_row(std::int64_t cols, const T* z, const double* signs, std::int64_t ld,
                                              double* sums) {
    Doubles sum[kSigned] = {};
    std::int64_t c = 0;
    for (; c + kLanes <= cols; c += kLanes) {
        const Doubles wide = widened(z + c);
#pragma GCC unroll 4
        for (int k = 0; k < kSigned; ++k) sum[k] += wide * widened(signs + k * ld + c);
    }
    for (int k = 0; k < kSigned; ++k) {
        sums[k] = sum[k][0] + sum[k][1] + (sum[k][2] + sum[k][3]);
        for (std::int64_t rest = c; rest < cols; ++rest) sums[k] += z[rest] * signs[k * ld + rest];
    }
}

}  // namespace

SIMKIT_CLONES void signed_sums(std::int64_t cols, const float* z, const double* signs, std::int64_t ld, double* sums) {
    signed_row(cols, z, signs, ld, sums);
}

SIMKIT_CLONES void signed_sums(std::int64_t cols, const double* z, const double* signs, std::int64_t ld, double* sums) {
    signed_row(cols, z, signs, ld, sums);
}

SIMKIT_CLONES void add_weighted(std::int64_t rows, const float* sliver, std::int64_t width, const double* weights,
                                int count, double* sums) {
    switch (count) {
        case 1:
            return weigh_all<1>(rows, sliver, width, weights, sums);
        case 2:
            return weigh_all<2>(rows, sliver, width, weights, sums);
        case 3:
            return weigh_all<3>(rows, sliver, width, weights, sums);
        case 4:
            return weigh_all<4>(rows, sliver, width, weights, sums);
        case 5:
            return weigh_all<5>(rows, sliver, width, weights, sums);
        default:
            return weigh_all<6>(rows, sliver, width, weights, sums);
    }
}

SIMKIT_CLONES void add_squares(std::int64_t rows, const float* sliver, std::int64_t width, double* sums) {
    for (std::int64_t c = 0; c < width; c += kLanes) {
        Doubles even{}, odd{};
        std::int64_t r = 0;
        for (; r + 2 <= rows; r += 2) {
            const Doubles first = widened(sliver + r * width + c), second = widened(sliver + (r + 1) * width + c);
            even += first * first;
            odd += second * second;
        }
        if (r < rows) even += widened(sliver + r * width + c) * widened(sliver + r * width + c);
        even += odd;
        for (int k = 0; k < kLanes; ++k) sums[c + k] += even[k];
    }
}

}  // namespace simkit
