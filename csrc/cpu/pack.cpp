#include "core/pack.hpp"

#include <algorithm>
#include <cstring>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "core/clones.hpp"

namespace simkit {
namespace {

// (x r - shift) s for a contiguous row of c columns; one function per type pair so that each can be cloned.
SIMKIT_CLONES void shift_scale(const float* x, const double* shift, double r, double s, float* out, std::int64_t c) {
    for (std::int64_t k = 0; k < c; ++k) out[k] = static_cast<float>((x[k] * r - shift[k]) * s);
}
SIMKIT_CLONES void shift_scale(const float* x, const double* shift, double r, double s, double* out, std::int64_t c) {
    for (std::int64_t k = 0; k < c; ++k) out[k] = (x[k] * r - shift[k]) * s;
}
SIMKIT_CLONES void shift_scale(const double* x, const double* shift, double r, double s, float* out, std::int64_t c) {
    for (std::int64_t k = 0; k < c; ++k) out[k] = static_cast<float>((x[k] * r - shift[k]) * s);
}
SIMKIT_CLONES void shift_scale(const double* x, const double* shift, double r, double s, double* out, std::int64_t c) {
    for (std::int64_t k = 0; k < c; ++k) out[k] = (x[k] * r - shift[k]) * s;
}

SIMKIT_CLONES void shift_scale(const float* x, const float* shift, float s, float* out, std::int64_t c) {
    for (std::int64_t k = 0; k < c; ++k) out[k] = (x[k] - shift[k]) * s;
}

// The same, rounded once, and the sum of squares of what is written.
template <class T>
[[gnu::always_inline]] inline double shift_norm_body(const T* x, const double* shift, double s, float* out,
                                                     std::int64_t c) {
    constexpr int lanes = 16;
    double sums[lanes] = {};
    std::int64_t k = 0;
    for (; k + lanes <= c; k += lanes)
        for (int l = 0; l < lanes; ++l) {
            const float z = static_cast<float>((x[k + l] - shift[k + l]) * s);
            out[k + l] = z;
            sums[l] += static_cast<double>(z) * z;
        }
    for (; k < c; ++k) {
        out[k] = static_cast<float>((x[k] - shift[k]) * s);
        sums[0] += static_cast<double>(out[k]) * out[k];
    }
    for (int width = lanes / 2; width; width /= 2)
        for (int l = 0; l < width; ++l) sums[l] += sums[l + width];
    return sums[0];
}
SIMKIT_CLONES double shift_norm(const float* __restrict x, const double* __restrict shift, double s,
                                float* __restrict out, std::int64_t c) {
    return shift_norm_body(x, shift, s, out, c);
}
SIMKIT_CLONES double shift_norm(const double* __restrict x, const double* __restrict shift, double s,
                                float* __restrict out, std::int64_t c) {
    return shift_norm_body(x, shift, s, out, c);
}

float from_bits(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// IEEE binary16 -> binary32, exact.
float widen_half(std::uint16_t h) {
    const std::uint32_t sign = (h & 0x8000u) << 16;
    const std::uint32_t exponent = (h >> 10) & 0x1f;
    const std::uint32_t fraction = h & 0x3ffu;
    if (exponent == 0) {
        const float tiny = static_cast<float>(fraction) * 0x1p-24f;
        return sign ? -tiny : tiny;
    }
    if (exponent == 31) return from_bits(sign | 0x7f800000u | (fraction << 13));
    return from_bits(sign | ((exponent + 112) << 23) | (fraction << 13));
}

template <class T>
T read(const std::byte* p) {
    T value;
    std::memcpy(&value, p, sizeof value);
    return value;
}

// Any layout -> a contiguous row of float or double.
template <class T, class Read>
void gather(const std::byte* p, std::int64_t stride, std::int64_t count, T* out, Read&& get) {
    for (std::int64_t k = 0; k < count; ++k) out[k] = get(p + k * stride);
}

}  // namespace

const float* float_row(const MatrixView& x, std::int64_t row, std::int64_t col0, std::int64_t count, float* scratch) {
    const std::byte* p = x.data + row * x.row_stride + col0 * x.col_stride;
    switch (x.dtype) {
        case Dtype::f16:
            gather(p, x.col_stride, count, scratch, [](auto* q) { return widen_half(read<std::uint16_t>(q)); });
            return scratch;
        case Dtype::bf16:
            gather(p, x.col_stride, count, scratch,
                   [](auto* q) { return from_bits(static_cast<std::uint32_t>(read<std::uint16_t>(q)) << 16); });
            return scratch;
        default:
            if (x.col_stride == 4) return reinterpret_cast<const float*>(p);
            gather(p, x.col_stride, count, scratch, [](auto* q) { return read<float>(q); });
            return scratch;
    }
}

const double* double_row(const MatrixView& x, std::int64_t row, std::int64_t col0, std::int64_t count,
                         double* scratch) {
    const std::byte* p = x.data + row * x.row_stride + col0 * x.col_stride;
    if (x.col_stride == 8) return reinterpret_cast<const double*>(p);
    gather(p, x.col_stride, count, scratch, [](auto* q) { return read<double>(q); });
    return scratch;
}

namespace {

void pack_floats(const BlockView& block, std::int64_t row0, std::int64_t row1, std::int64_t col0, std::int64_t col1,
                 float* out, std::int64_t ld) {
    constexpr std::int64_t step = 512;
    alignas(64) float scratch[step], shift[step];
    for (std::int64_t c0 = col0; c0 < col1; c0 += step) {
        const std::int64_t count = std::min(step, col1 - c0);
        for (std::int64_t k = 0; k < count; ++k) shift[k] = static_cast<float>(block.shift[c0 + k]);
        for (std::int64_t i = row0; i < row1; ++i)
            shift_scale(float_row(block.x, i, c0, count, scratch), shift, static_cast<float>(block.scale),
                        out + (i - row0) * ld + (c0 - col0), count);
    }
}

template <class Out>
void pack_any(const BlockView& block, std::int64_t row0, std::int64_t row1, std::int64_t col0, std::int64_t col1,
              Out* out, std::int64_t ld) {
    constexpr std::int64_t step = 512;
    alignas(64) double scratch[step];
    const MatrixView& x = block.x;
    for (std::int64_t c0 = col0; c0 < col1; c0 += step) {
        const std::int64_t count = col1 - c0 < step ? col1 - c0 : step;
        for (std::int64_t i = row0; i < row1; ++i) {
            const double r = block.row_scale ? block.row_scale[i] : 1.0;
            Out* to = out + (i - row0) * ld + (c0 - col0);
            if (x.dtype == Dtype::f64)
                shift_scale(double_row(x, i, c0, count, scratch), block.shift + c0, r, block.scale, to, count);
            else
                shift_scale(float_row(x, i, c0, count, reinterpret_cast<float*>(scratch)), block.shift + c0, r,
                            block.scale, to, count);
        }
    }
}

}  // namespace

void pack(const BlockView& block, std::int64_t row0, std::int64_t row1, std::int64_t col0, std::int64_t col1,
          float* out, std::int64_t ld) {
    if (shifts_in_float(block))
        pack_floats(block, row0, row1, col0, col1, out, ld);
    else
        pack_any(block, row0, row1, col0, col1, out, ld);
}

void pack(const BlockView& block, std::int64_t row0, std::int64_t row1, std::int64_t col0, std::int64_t col1,
          double* out, std::int64_t ld) {
    pack_any(block, row0, row1, col0, col1, out, ld);
}

double pack_row(const MatrixView& x, std::int64_t row, const double* shift, double scale, float* out) {
    constexpr std::int64_t step = 512;
    alignas(64) double scratch[step];
    double sum = 0;
    for (std::int64_t c = 0; c < x.cols; c += step) {
        const std::int64_t count = std::min(step, x.cols - c);
        sum += x.dtype == Dtype::f64
                   ? shift_norm(double_row(x, row, c, count, scratch), shift + c, scale, out + c, count)
                   : shift_norm(float_row(x, row, c, count, reinterpret_cast<float*>(scratch)), shift + c, scale,
                                out + c, count);
    }
    return sum;
}

void load_row(const MatrixView& x, std::int64_t row, std::int64_t col0, std::int64_t col1, double* out) {
    constexpr std::int64_t step = 512;
    alignas(64) double scratch[step];
    for (std::int64_t c0 = col0; c0 < col1; c0 += step) {
        const std::int64_t count = col1 - c0 < step ? col1 - c0 : step;
        double* to = out + (c0 - col0);
        if (x.dtype == Dtype::f64) {
            const double* from = double_row(x, row, c0, count, scratch);
            for (std::int64_t k = 0; k < count; ++k) to[k] = from[k];
        } else {
            const float* from = float_row(x, row, c0, count, reinterpret_cast<float*>(scratch));
            for (std::int64_t k = 0; k < count; ++k) to[k] = from[k];
        }
    }
}

void release_rows(const MatrixView& x, std::int64_t row0, std::int64_t row1) {
#ifdef __linux__
    if (!x.mapped || row1 <= row0) return;
    // A fault maps the whole folio of the page cache, so a neighbour's fault brings back what was let go of here: let
    // go of all that a folio of these rows may reach, wherever in the file it begins. A row still in use elsewhere is
    // faulted in again.
    const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
    const std::int64_t across = (x.cols - 1) * x.col_stride;
    const auto begin_of = [&](std::int64_t row) { return row * x.row_stride + std::min<std::int64_t>(0, across); };
    const auto end_of = [&](std::int64_t row) {
        return row * x.row_stride + std::max<std::int64_t>(0, across) + item_size(x.dtype);
    };
    const bool up = x.row_stride < 0;  // rows from the last to the first
    const std::int64_t low = up ? row1 - 1 : row0, high = up ? row0 : row1 - 1;
    const std::int64_t lowest = up ? x.rows - 1 : 0, highest = up ? 0 : x.rows - 1;
    const std::int64_t first = std::max(begin_of(lowest), begin_of(low) - kFolio);
    const std::int64_t last = std::min(end_of(highest), end_of(high) + kFolio);
    const auto from = reinterpret_cast<std::uintptr_t>(x.data + first) & ~(page - 1);
    const auto to = reinterpret_cast<std::uintptr_t>(x.data + last);
    // Only shared maps arrive here: the pages stay in the page cache, and a later read brings them back.
    madvise(reinterpret_cast<void*>(from), to - from, MADV_DONTNEED);
#else
    (void)x, (void)row0, (void)row1;
#endif
}

}  // namespace simkit
