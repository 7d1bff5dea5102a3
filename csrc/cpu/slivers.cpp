#include "core/slivers.hpp"

#include <algorithm>
#include <type_traits>

#include "core/clones.hpp"
#include "core/micro_kernel.hpp"
#include "core/pack.hpp"

#ifdef SIMKIT_X86
#include <immintrin.h>
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

// (row - shift) * scale, and then the same; rows [Group].
template <class T, int Group>
void shift_transpose_plain(const T* const* rows, const T* shift, T scale, std::int64_t depth, T* out,
                           std::int64_t width) {
    for (std::int64_t k = 0; k < depth; ++k)
        for (int r = 0; r < Group; ++r) out[k * width + r] = (rows[r][k] - shift[k]) * scale;
}

#ifdef SIMKIT_X86
__attribute__((target("avx2"))) inline void store_transposed(const __m256* in, float* out, std::int64_t width) {
    __m256 t[8], u[8];
    for (int i = 0; i < 4; ++i) {
        t[2 * i] = _mm256_unpacklo_ps(in[2 * i], in[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(in[2 * i], in[2 * i + 1]);
    }
    for (int half = 0; half < 2; ++half)
        for (int i = 0; i < 2; ++i) {
            u[4 * half + 2 * i] = _mm256_shuffle_ps(t[4 * half + i], t[4 * half + 2 + i], 0x44);
            u[4 * half + 2 * i + 1] = _mm256_shuffle_ps(t[4 * half + i], t[4 * half + 2 + i], 0xee);
        }
    for (int i = 0; i < 4; ++i) {
        _mm256_storeu_ps(out + i * width, _mm256_permute2f128_ps(u[i], u[4 + i], 0x20));
        _mm256_storeu_ps(out + (4 + i) * width, _mm256_permute2f128_ps(u[i], u[4 + i], 0x31));
    }
}

__attribute__((target("avx2"))) inline void store_transposed(const __m256d* in, double* out, std::int64_t width) {
    __m256d t[4];
    for (int i = 0; i < 2; ++i) {
        t[2 * i] = _mm256_unpacklo_pd(in[2 * i], in[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_pd(in[2 * i], in[2 * i + 1]);
    }
    for (int i = 0; i < 2; ++i) {
        _mm256_storeu_pd(out + i * width, _mm256_permute2f128_pd(t[i], t[2 + i], 0x20));
        _mm256_storeu_pd(out + (2 + i) * width, _mm256_permute2f128_pd(t[i], t[2 + i], 0x31));
    }
}

__attribute__((target("avx2"))) void transpose_avx2(const float* in, std::int64_t ld, std::int64_t depth, float* out,
                                                    std::int64_t width) {
    std::int64_t k = 0;
    for (; k + 8 <= depth; k += 8) {
        __m256 r[8];
        for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(in + i * ld + k);
        store_transposed(r, out + k * width, width);
    }
    transpose_plain<float, 8>(in + k, ld, depth - k, out + k * width, width);
}

__attribute__((target("avx2"))) void transpose_avx2(const double* in, std::int64_t ld, std::int64_t depth, double* out,
                                                    std::int64_t width) {
    std::int64_t k = 0;
    for (; k + 4 <= depth; k += 4) {
        __m256d r[4];
        for (int i = 0; i < 4; ++i) r[i] = _mm256_loadu_pd(in + i * ld + k);
        store_transposed(r, out + k * width, width);
    }
    transpose_plain<double, 4>(in + k, ld, depth - k, out + k * width, width);
}

__attribute__((target("avx2"))) void shift_transpose_avx2(const float* const* rows, const float* shift, float scale,
                                                          std::int64_t depth, float* out, std::int64_t width) {
    const __m256 factor = _mm256_set1_ps(scale);
    std::int64_t k = 0;
    for (; k + 8 <= depth; k += 8) {
        const __m256 middle = _mm256_loadu_ps(shift + k);
        __m256 r[8];
        for (int i = 0; i < 8; ++i) r[i] = _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(rows[i] + k), middle), factor);
        store_transposed(r, out + k * width, width);
    }
    const float* rest[8];
    for (int i = 0; i < 8; ++i) rest[i] = rows[i] + k;
    shift_transpose_plain<float, 8>(rest, shift + k, scale, depth - k, out + k * width, width);
}

__attribute__((target("avx2"))) void shift_transpose_avx2(const double* const* rows, const double* shift, double scale,
                                                          std::int64_t depth, double* out, std::int64_t width) {
    const __m256d factor = _mm256_set1_pd(scale);
    std::int64_t k = 0;
    for (; k + 4 <= depth; k += 4) {
        const __m256d middle = _mm256_loadu_pd(shift + k);
        __m256d r[4];
        for (int i = 0; i < 4; ++i) r[i] = _mm256_mul_pd(_mm256_sub_pd(_mm256_loadu_pd(rows[i] + k), middle), factor);
        store_transposed(r, out + k * width, width);
    }
    const double* rest[4];
    for (int i = 0; i < 4; ++i) rest[i] = rows[i] + k;
    shift_transpose_plain<double, 4>(rest, shift + k, scale, depth - k, out + k * width, width);
}

// Whole cache lines of the slivers.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // what the compiler's own header leaves undefined on purpose
__attribute__((target("avx512f"))) inline void store_transposed(const __m512* in, float* out, std::int64_t width) {
    __m512 t[16], u[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
        t[2 * i] = _mm512_unpacklo_ps(in[2 * i], in[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_ps(in[2 * i], in[2 * i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) {  // u[4 i + c]: columns c, c + 4, ... of rows 4 i ... 4 i + 3
            u[4 * i + 2 * h] = _mm512_shuffle_ps(t[4 * i + h], t[4 * i + 2 + h], 0x44);
            u[4 * i + 2 * h + 1] = _mm512_shuffle_ps(t[4 * i + h], t[4 * i + 2 + h], 0xee);
        }
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
        const __m512 even = _mm512_shuffle_f32x4(u[c], u[4 + c], 0x88),
                     odd = _mm512_shuffle_f32x4(u[c], u[4 + c], 0xdd);
        const __m512 even_ = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0x88),
                     odd_ = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0xdd);
        _mm512_storeu_ps(out + c * width, _mm512_shuffle_f32x4(even, even_, 0x88));
        _mm512_storeu_ps(out + (4 + c) * width, _mm512_shuffle_f32x4(odd, odd_, 0x88));
        _mm512_storeu_ps(out + (8 + c) * width, _mm512_shuffle_f32x4(even, even_, 0xdd));
        _mm512_storeu_ps(out + (12 + c) * width, _mm512_shuffle_f32x4(odd, odd_, 0xdd));
    }
}

#pragma GCC diagnostic pop

__attribute__((target("avx512f"))) void transpose_avx512(const float* in, std::int64_t ld, std::int64_t depth,
                                                         float* out, std::int64_t width) {
    std::int64_t k = 0;
    for (; k + 16 <= depth; k += 16) {
        __m512 r[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_ps(in + i * ld + k);
        store_transposed(r, out + k * width, width);
    }
    transpose_plain<float, 16>(in + k, ld, depth - k, out + k * width, width);
}

// Columns k, k + 16, ... from where rows that lie whole cache lines apart begin a line, so that each is fetched once:
// the processor has few places for lines that lie a power of two apart. The first and the last sixteen may overlap
// others.
__attribute__((target("avx512f"))) void shift_transpose_avx512(const float* const* rows, const float* shift,
                                                               float scale, std::int64_t depth, float* out,
                                                               std::int64_t width) {
    if (depth < 16) return shift_transpose_plain<float, 16>(rows, shift, scale, depth, out, width);
    const __m512 factor = _mm512_set1_ps(scale);
    const auto off = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(rows[0]) / sizeof(float) % 16);
    for (std::int64_t k = 0, next = 16 - off; k < depth; k = next, next += 16) {
        const std::int64_t at = std::min(k, depth - 16);
        const __m512 middle = _mm512_loadu_ps(shift + at);
        __m512 r[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) r[i] = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(rows[i] + at), middle), factor);
        store_transposed(r, out + at * width, width);
    }
}
#endif

template <class T>
struct Transpose {
    std::int64_t group;
    void (*run)(const T* in, std::int64_t ld, std::int64_t depth, T* out, std::int64_t width);
    void (*shift_run)(const T* const* rows, const T* shift, T scale, std::int64_t depth, T* out, std::int64_t width);
};

template <class T>
Transpose<T> choose_transpose() {
#ifdef SIMKIT_X86
    constexpr int wide = 32 / sizeof(T);
    if constexpr (std::is_same_v<T, float>)
        if (__builtin_cpu_supports("avx512f") && micro_kernel<T>().width % 16 == 0)
            return {16, transpose_avx512, shift_transpose_avx512};
    if (__builtin_cpu_supports("avx2") && micro_kernel<T>().width % wide == 0)
        return {wide, transpose_avx2, shift_transpose_avx2};
#endif
    constexpr int group = 16 / sizeof(T);
    return {group, transpose_plain<T, group>, shift_transpose_plain<T, group>};
}

template <class T>
const Transpose<T>& transpose() {
    static const Transpose<T> chosen = choose_transpose<T>();
    return chosen;
}

template <class T>
constexpr std::int64_t kTallestGroup = 64 / sizeof(T);

// Rows that need nothing but (x - shift) * scale in T: straight from where they lie into the slivers.
bool packs_straight(const BlockView& block, const float*) { return shifts_in_float(block); }
bool packs_straight(const BlockView& block, const double*) { return block.x.dtype == Dtype::f64 && !block.row_scale; }

const float* row_of(const BlockView& block, std::int64_t row, std::int64_t col, std::int64_t count, float* scratch) {
    return float_row(block.x, row, col, count, scratch);
}
const double* row_of(const BlockView& block, std::int64_t row, std::int64_t col, std::int64_t count, double* scratch) {
    return double_row(block.x, row, col, count, scratch);
}

}  // namespace

template <class T>
void pack_slivers(const BlockView& block, std::int64_t row0, std::int64_t row1, std::int64_t col0, std::int64_t col1,
                  T* out) {
    constexpr std::int64_t ld = kDepth + 64 / sizeof(T);
    const std::int64_t width = micro_kernel<T>().width, depth = col1 - col0, rows = row1 - row0;
    const std::int64_t group = transpose<T>().group;
    const bool straight = packs_straight(block, out);
    alignas(64) T scratch[kTallestGroup<T> * ld];
    alignas(64) T shift[kDepth];
    for (std::int64_t k = 0; k < depth; k += kDepth) {
        const std::int64_t count = std::min(kDepth, depth - k);
        for (std::int64_t c = 0; c < count; ++c) shift[c] = static_cast<T>(block.shift[col0 + k + c]);
        for (std::int64_t g = 0; g < round_up(rows, width); g += group) {
            const std::int64_t held = std::clamp<std::int64_t>(rows - g, 0, group);
            T* sliver = out + g / width * width * depth + g % width + k * width;
            if (straight) {
                const T* from[kTallestGroup<T>];
                for (std::int64_t r = 0; r < group; ++r)  // the shift itself, where there is no row, gives zeros
                    from[r] = r < held ? row_of(block, row0 + g + r, col0 + k, count, scratch + r * ld) : shift;
                transpose<T>().shift_run(from, shift, static_cast<T>(block.scale), count, sliver, width);
                continue;
            }
            if (held) pack(block, row0 + g, row0 + g + held, col0 + k, col0 + k + count, scratch, ld);
            for (std::int64_t r = held; r < group; ++r) std::fill_n(scratch + r * ld, count, T(0));
            transpose<T>().run(scratch, ld, count, sliver, width);
        }
    }
}

template <class T>
void pack_slivers(const T* in, std::int64_t rows, std::int64_t ld, std::int64_t depth, T* out) {
    const std::int64_t width = micro_kernel<T>().width, group = transpose<T>().group;
    for (std::int64_t g = 0; g < round_up(rows, width); g += group) {
        T* sliver = out + g / width * width * depth + g % width;
        if (g + group <= rows) {
            transpose<T>().run(in + g * ld, ld, depth, sliver, width);
            continue;
        }
        for (std::int64_t k = 0; k < depth; ++k)
            for (std::int64_t r = 0; r < group; ++r) sliver[k * width + r] = g + r < rows ? in[(g + r) * ld + k] : T(0);
    }
}

void column_slivers(const double* in, std::int64_t rows, std::int64_t cols, std::int64_t depth, double* out,
                    std::int64_t row) {
    const std::int64_t w = micro_kernel<double>().width;
    for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t k = 0; k < cols; k += w) {
            double* sliver = out + k * depth + (row + r) * w;
            sliver = std::copy_n(in + r * cols + k, std::min(w, cols - k), sliver);
            std::fill_n(sliver, std::max<std::int64_t>(0, k + w - cols), 0.0);
        }
}

template void pack_slivers<float>(const BlockView&, std::int64_t, std::int64_t, std::int64_t, std::int64_t, float*);
template void pack_slivers<double>(const BlockView&, std::int64_t, std::int64_t, std::int64_t, std::int64_t, double*);
template void pack_slivers<float>(const float*, std::int64_t, std::int64_t, std::int64_t, float*);
template void pack_slivers<double>(const double*, std::int64_t, std::int64_t, std::int64_t, double*);

}  // namespace simkit
