#include "core/micro_kernel.hpp"

#include <algorithm>

#include "core/clones.hpp"
namespace simkit {
namespace {

// Rows x (Last - First) accumulators: they must all stay in registers, so every loop over them is unrolled.
template <class T, int Bytes, int Rows, int First, int Last>
[[gnu::always_inline]] inline void run_body(std::int64_t depth, const T* a, const T* b, bool add, T* c,
                                            std::int64_t ldc, Ahead& ahead, std::int64_t lines) {
    constexpr int lanes = Bytes / static_cast<int>(sizeof(T)), width = lanes * kVectors, vectors = Last - First;
    typedef T Vector __attribute__((vector_size(Bytes)));
    typedef T Loose __attribute__((vector_size(Bytes), aligned(sizeof(T)), may_alias));
    b += First * lanes;
    c += First * lanes;
    Vector sum[Rows][vectors] = {};
    Ahead next = ahead;
    for (std::int64_t k = 0; k < depth; ++k) {
        if (k < lines) next.step();
        Vector right[vectors];
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) right[v] = *reinterpret_cast<const Loose*>(b + k * width + v * lanes);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
            const Vector left = a[k * width + r] - Vector{};
#pragma GCC unroll 8
            for (int v = 0; v < vectors; ++v) sum[r][v] += left * right[v];
        }
    }
    ahead = next;
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) {
            Loose* to = reinterpret_cast<Loose*>(c + r * ldc + v * lanes);
            *to = add ? *to + sum[r][v] : sum[r][v];
        }
}

// Accumulators, right operands and one left operand fit sixteen registers of 16 or 32 bytes, or thirty-two of 64.
template <class T, int First, int Last>
void run_baseline(std::int64_t depth, const T* a, const T* b, bool add, T* c, std::int64_t ldc, Ahead& ahead,
                  std::int64_t lines) {
    run_body<T, 16, 16 / sizeof(T), First, Last>(depth, a, b, add, c, ldc, ahead, lines);
}

#ifdef SIMKIT_X86
template <class T, int First, int Last>
__attribute__((target("avx2,fma"))) void run_avx2(std::int64_t depth, const T* a, const T* b, bool add, T* c,
                                                  std::int64_t ldc, Ahead& ahead, std::int64_t lines) {
    run_body<T, 32, 4, First, Last>(depth, a, b, add, c, ldc, ahead, lines);
}

template <class T, int First, int Last>
__attribute__((target("avx512f,fma"))) void run_avx512(std::int64_t depth, const T* a, const T* b, bool add, T* c,
                                                       std::int64_t ldc, Ahead& ahead, std::int64_t lines) {
    run_body<T, 64, 8, First, Last>(depth, a, b, add, c, ldc, ahead, lines);
}
#endif

#define SIMKIT_RUNS(kernel)                                                                                 \
    {                                                                                                       \
        {kernel<T, 0, 1>, kernel<T, 0, 2>, kernel<T, 0, 3>}, {nullptr, kernel<T, 1, 2>, kernel<T, 1, 3>}, { \
            nullptr, nullptr, kernel<T, 2, 3>                                                               \
        }                                                                                                   \
    }

template <class T>
MicroKernel<T> choose() {
    constexpr int item = sizeof(T);
#ifdef SIMKIT_X86
    if (__builtin_cpu_supports("avx512f"))
        return {"avx512", 8, kVectors * 64 / item, 64 / item, SIMKIT_RUNS(run_avx512)};
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return {"avx2", 4, kVectors * 32 / item, 32 / item, SIMKIT_RUNS(run_avx2)};
#endif
    return {"baseline", 16 / item, kVectors * 16 / item, 16 / item, SIMKIT_RUNS(run_baseline)};
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
        const std::int64_t rows = std::min<std::int64_t>(kernel.rows, m - i);
        for (std::int64_t j = triangle ? i / w * w : 0; j < n; j += w) {
            const std::int64_t cols = std::min(w, n - j);
            const std::int64_t first = triangle && i > j ? (i - j) / kernel.lanes : 0;
            const auto run = kernel.run[first][(cols - 1) / kernel.lanes];
            const T* right = b + j * depth;
            T* to = c + i * ldc + j;
            Ahead& ahead = left_ahead.lines() ? left_ahead : right_ahead;
            if (rows == kernel.rows && cols % kernel.lanes == 0) {
                run(depth, left, right, add, to, ldc, ahead, each);
                continue;
            }
            run(depth, left, right, false, edge, w, ahead, each);
            for (std::int64_t r = 0; r < rows; ++r)
                for (std::int64_t s = first * kernel.lanes; s < cols; ++s)
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
