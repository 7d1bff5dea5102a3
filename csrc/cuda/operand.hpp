// One side of a product: rows of any layout and type, centred and scaled while they are read.
#pragma once

#include <cstring>

#include "core/matrix_view.hpp"
#include "cuda/program.hpp"

namespace simkit::cuda {

SIMKIT_BOTH inline float from_bits(std::uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// IEEE binary16 -> binary32, exact.
SIMKIT_BOTH inline float widen_half(std::uint16_t half) {
    const std::uint32_t sign = (half & 0x8000u) << 16, exponent = (half >> 10) & 0x1f, fraction = half & 0x3ffu;
    if (exponent == 0) {
        const float tiny = static_cast<float>(fraction) * 5.9604644775390625e-8f;  // 2^-24
        return sign ? -tiny : tiny;
    }
    if (exponent == 31) return from_bits(sign | 0x7f800000u | (fraction << 13));
    return from_bits(sign | ((exponent + 112) << 23) | (fraction << 13));
}

template <class T>
SIMKIT_BOTH T read(const std::byte* at) {
    return *reinterpret_cast<const T*>(at);
}

// The value at `at`, exactly.
SIMKIT_BOTH inline float narrow_value(const std::byte* at, Dtype dtype) {
    if (dtype == Dtype::f32) return read<float>(at);
    if (dtype == Dtype::f16) return widen_half(read<std::uint16_t>(at));
    return from_bits(static_cast<std::uint32_t>(read<std::uint16_t>(at)) << 16);
}
SIMKIT_BOTH inline double wide_value(const std::byte* at, Dtype dtype) {
    return dtype == Dtype::f64 ? read<double>(at) : static_cast<double>(narrow_value(at, dtype));
}

// z(r, k) = (x(r, k) weight - shift) scale for r < rows, k < depth. Shifts and weights belong to k in sample space (the
// rows are samples) and to r in feature space (the rows are features); null where there are none. Where `narrow`, z is
// formed in float32 from shifts rounded to it: see shifts_in_float in core/pack.hpp.
struct Operand {
    const std::byte* data;
    Index rows, depth, row_stride, depth_stride;  // strides in bytes
    Dtype dtype;
    bool narrow, by_row;
    const double *shift, *weight;
    const float* narrow_shift;
    double scale;

    // Whether neighbours in memory are neighbours along the depth.
    SIMKIT_BOTH bool deep() const { return size(depth_stride) <= size(row_stride); }
    SIMKIT_BOTH static Index size(Index stride) { return stride < 0 ? -stride : stride; }

    SIMKIT_BOTH const std::byte* at(Index r, Index k) const { return data + r * row_stride + k * depth_stride; }

    SIMKIT_BOTH float narrow_element(float x, Index r, Index k) const {
        if (!narrow_shift) return x;
        return (x - narrow_shift[by_row ? r : k]) * static_cast<float>(scale);
    }

    SIMKIT_BOTH double wide_element(Index r, Index k) const {
        double x = wide_value(at(r, k), dtype);
        if (weight) x = rounded_product(x, weight[by_row ? k : r]);
        return shift ? (x - shift[by_row ? r : k]) * scale : x;
    }

    template <class T>
    SIMKIT_BOTH T element(Index r, Index k) const {
        return narrow ? static_cast<T>(narrow_element(narrow_value(at(r, k), dtype), r, k))
                      : static_cast<T>(wide_element(r, k));
    }
};
static_assert(kSentAs<Operand, 80> && offsetof(Operand, dtype) == 40 && offsetof(Operand, scale) == 72);

// Rows that lie ready, [rows, depth].
template <class T>
SIMKIT_BOTH Operand ready_rows(const T* data, Index rows, Index depth, Index leading) {
    constexpr bool single = sizeof(T) == 4;
    return {reinterpret_cast<const std::byte*>(data),
            rows,
            depth,
            leading * static_cast<Index>(sizeof(T)),
            static_cast<Index>(sizeof(T)),
            single ? Dtype::f32 : Dtype::f64,
            single,
            false,
            nullptr,
            nullptr,
            nullptr,
            1.0};
}

}  // namespace simkit::cuda
