#include "core/slivers.hpp"

#include <algorithm>

#include "core/micro_kernel.hpp"
#include "core/pack.hpp"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define SIMKIT_X86 1
#endif

namespace simkit {
namespace {

constexpr std::int64_t kDepth = 256;  // columns on their way through the level-1 cache

// `Group` rows at a time, of which every sliver is a multiple: in [Group, depth] (leading dimension ld) ->
// out[k * width + r].
template <class T, int Group>
void transpose_plain(const T* in, std::int64_t ld, std::int64_t depth, T* out, std::int64_t width) {
    for (std::int64_t k = 0; k < depth; ++k)
        for (int r = 0; r < Group; ++r) out[k * width + r] = in[r * ld + k];
}

#ifdef SIMKIT_X86
__attribute__((target("avx2"))) void transpose_avx2(const float* in, std::int64_t ld, std::int64_t depth, float* out,
                                                    std::int64_t width) {
    std::int64_t k = 0;
    for (; k + 8 <= depth; k += 8) {
        __m256 r[8], t[8];
        for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(in + i * ld + k);
        for (int i = 0; i < 4; ++i) {
            t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
        }
        for (int half = 0; half < 2; ++half)
            for (int i = 0; i < 2; ++i) {
                r[4 * half + 2 * i] = _mm256_shuffle_ps(t[4 * half + i], t[4 * half + 2 + i], 0x44);
                r[4 * half + 2 * i + 1] = _mm256_shuffle_ps(t[4 * half + i], t[4 * half + 2 + i], 0xee);
            }
        for (int i = 0; i < 4; ++i) {
            _mm256_storeu_ps(out + (k + i) * width, _mm256_permute2f128_ps(r[i], r[4 + i], 0x20));
            _mm256_storeu_ps(out + (k + 4 + i) * width, _mm256_permute2f128_ps(r[i], r[4 + i], 0x31));
        }
    }
    transpose_plain<float, 8>(in + k, ld, depth - k, out + k * width, width);
}

__attribute__((target("avx2"))) void transpose_avx2(const double* in, std::int64_t ld, std::int64_t depth, double* out,
                                                    std::int64_t width) {
    std::int64_t k = 0;
    for (; k + 4 <= depth; k += 4) {
        __m256d r[4], t[4];
        for (int i = 0; i < 4; ++i) r[i] = _mm256_loadu_pd(in + i * ld + k);
        for (int i = 0; i < 2; ++i) {
            t[2 * i] = _mm256_unpacklo_pd(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm256_unpackhi_pd(r[2 * i], r[2 * i + 1]);
        }
        for (int i = 0; i < 2; ++i) {
            _mm256_storeu_pd(out + (k + i) * width, _mm256_permute2f128_pd(t[i], t[2 + i], 0x20));
            _mm256_storeu_pd(out + (k + 2 + i) * width, _mm256_permute2f128_pd(t[i], t[2 + i], 0x31));
        }
    }
    transpose_plain<double, 4>(in + k, ld, depth - k, out + k * width, width);
}
#endif

template <class T>
struct Transpose {
    std::int64_t group;
    void (*run)(const T*, std::int64_t, std::int64_t, T*, std::int64_t);
};

template <class T>
Transpose<T> choose_transpose() {
#ifdef SIMKIT_X86
    if (__builtin_cpu_supports("avx2")) return {32 / sizeof(T), transpose_avx2};
#endif
    return {16 / sizeof(T), transpose_plain<T, 16 / sizeof(T)>};
}

}  // namespace

template <class T>
void pack_slivers(const BlockView& block, std::int64_t row0, std::int64_t row1, std::int64_t col0, std::int64_t col1,
                  T* out) {
    static const Transpose<T> transpose = choose_transpose<T>();
    constexpr std::int64_t ld = kDepth + 64 / sizeof(T);
    const std::int64_t group = transpose.group;
    const std::int64_t width = micro_kernel<T>().width, depth = col1 - col0, rows = row1 - row0;
    alignas(64) T scratch[32 / sizeof(T) * ld];
    for (std::int64_t g = 0; g < round_up(rows, width); g += group) {
        const std::int64_t held = std::clamp<std::int64_t>(rows - g, 0, group);
        T* sliver = out + g / width * width * depth + g % width;
        for (std::int64_t k = 0; k < depth; k += kDepth) {
            const std::int64_t count = std::min(kDepth, depth - k);
            if (held) pack(block, row0 + g, row0 + g + held, col0 + k, col0 + k + count, scratch, ld);
            for (std::int64_t r = held; r < group; ++r) std::fill_n(scratch + r * ld, count, T(0));
            transpose.run(scratch, ld, count, sliver + k * width, width);
        }
    }
}

template void pack_slivers<float>(const BlockView&, std::int64_t, std::int64_t, std::int64_t, std::int64_t, float*);
template void pack_slivers<double>(const BlockView&, std::int64_t, std::int64_t, std::int64_t, std::int64_t, double*);

}  // namespace simkit
