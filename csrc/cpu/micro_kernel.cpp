#include "core/micro_kernel.hpp"

#include <algorithm>

#if defined(__x86_64__) && defined(__GNUC__)
#define SIMKIT_X86 1
#endif

namespace simkit {
namespace {

// Rows x (Vectors * Bytes) accumulators: they must all stay in registers, so every loop over them is unrolled.
template <class T, int Bytes, int Rows, int Vectors>
[[gnu::always_inline]] inline void run_body(std::int64_t depth, const T* a, const T* b, bool add, T* c,
                                            std::int64_t ldc) {
    constexpr int lanes = Bytes / static_cast<int>(sizeof(T));
    constexpr int width = lanes * Vectors;
    typedef T Vector __attribute__((vector_size(Bytes)));
    typedef T Loose __attribute__((vector_size(Bytes), aligned(sizeof(T)), may_alias));
    Vector sum[Rows][Vectors] = {};
    for (std::int64_t k = 0; k < depth; ++k) {
        Vector right[Vectors];
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) right[v] = *reinterpret_cast<const Loose*>(b + k * width + v * lanes);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
            const Vector left = a[k * width + r] - Vector{};
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v) sum[r][v] += left * right[v];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) {
            Loose* to = reinterpret_cast<Loose*>(c + r * ldc + v * lanes);
            *to = add ? *to + sum[r][v] : sum[r][v];
        }
}

// Eight accumulators of sixteen bytes, two right operands and one left: fewer than sixteen registers.
template <class T>
void run_baseline(std::int64_t depth, const T* a, const T* b, bool add, T* c, std::int64_t ldc) {
    run_body<T, 16, 4, 2>(depth, a, b, add, c, ldc);
}

#ifdef SIMKIT_X86
template <class T>
__attribute__((target("avx2,fma"))) void run_avx2(std::int64_t depth, const T* a, const T* b, bool add, T* c,
                                                  std::int64_t ldc) {
    run_body<T, 32, 4, 3>(depth, a, b, add, c, ldc);
}

template <class T>
__attribute__((target("avx512f,fma"))) void run_avx512(std::int64_t depth, const T* a, const T* b, bool add, T* c,
                                                       std::int64_t ldc) {
    run_body<T, 64, 8, 3>(depth, a, b, add, c, ldc);
}
#endif

template <class T>
MicroKernel<T> choose() {
    constexpr int item = sizeof(T);
#ifdef SIMKIT_X86
    if (__builtin_cpu_supports("avx512f")) return {"avx512", 8, 3 * 64 / item, run_avx512<T>};
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {"avx2", 4, 3 * 32 / item, run_avx2<T>};
#endif
    return {"baseline", 4, 2 * 16 / item, run_baseline<T>};
}

}  // namespace

template <class T>
const MicroKernel<T>& micro_kernel() {
    static const MicroKernel<T> kernel = choose<T>();
    return kernel;
}

template <class T>
void packed_product(std::int64_t m, std::int64_t n, std::int64_t depth, const T* a, const T* b, bool triangle, bool add,
                    T* c, std::int64_t ldc, Ahead left_ahead, Ahead right_ahead) {
    const MicroKernel<T>& kernel = micro_kernel<T>();
    const std::int64_t w = kernel.width;
    const std::int64_t calls = round_up(m, kernel.rows) / kernel.rows * (round_up(n, w) / w);
    const std::int64_t each = (left_ahead.lines() + right_ahead.lines()) * (triangle ? 2 : 1) / calls + 1;
    alignas(64) T edge[kTallest * kWidest];
    for (std::int64_t i = 0; i < m; i += kernel.rows) {
        const T* left = a + i / w * w * depth + i % w;
        for (std::int64_t j = triangle ? i / w * w : 0; j < n; j += w) {
            const T* right = b + j * depth;
            T* to = c + i * ldc + j;
            const std::int64_t rows = std::min<std::int64_t>(kernel.rows, m - i), cols = std::min(w, n - j);
            (left_ahead.lines() ? left_ahead : right_ahead).fetch(each);
            if (rows == kernel.rows && cols == w) {
                kernel.run(depth, left, right, add, to, ldc);
                continue;
            }
            kernel.run(depth, left, right, false, edge, w);
            for (std::int64_t r = 0; r < rows; ++r)
                for (std::int64_t s = 0; s < cols; ++s)
                    to[r * ldc + s] = edge[r * w + s] + (add ? to[r * ldc + s] : T(0));
        }
    }
}

template const MicroKernel<float>& micro_kernel<float>();
template const MicroKernel<double>& micro_kernel<double>();
template void packed_product<float>(std::int64_t, std::int64_t, std::int64_t, const float*, const float*, bool, bool,
                                    float*, std::int64_t, Ahead, Ahead);
template void packed_product<double>(std::int64_t, std::int64_t, std::int64_t, const double*, const double*, bool, bool,
                                     double*, std::int64_t, Ahead, Ahead);

}  // namespace simkit
