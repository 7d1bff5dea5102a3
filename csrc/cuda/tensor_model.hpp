// What tensor cores compute, in plain C++: the halves that a float is split into, and the sum of one mma.sync, bit for
// bit as it was measured on devices of capability 8.0 to 8.9. The host runs this; a device runs mma.sync.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "cuda/operand.hpp"

namespace simkit::cuda {

SIMKIT_BOTH inline std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

// z = high + low + rest: two numbers of TF32, which has the exponents of float32 and 11 significant bits of its 24.
// `high` is z rounded to nearest, ties away from zero, as cvt.rna.tf32.f32 does. z - high is exact, at most 2^12 units
// of z's last place; cut to 11 bits, it loses the last of them where it has 12 bits and is odd: the rest is at most one
// unit, and none for three values in four. A NaN stays one, in `low`.
struct SplitFloat {
    float high, low;
};
SIMKIT_BOTH inline SplitFloat split(float z) {
    const float high = from_bits((bits_of(z) + 0x1000u) & 0xffffe000u);
    return {high, from_bits(bits_of(z - high) & 0xffffe000u)};
}

// An operand of a tensor core, with the exponent of its leading bit.
struct TensorOperand {
    double value;
    int exponent;
};
SIMKIT_BOTH inline TensorOperand operand_of(float value) {
    const int exponent = static_cast<int>(bits_of(value) >> 23 & 0xff);
    return {static_cast<double>(value), (exponent ? exponent : 1) - 127};
}

SIMKIT_BOTH inline double power_of_two(int exponent) {  // -1022 to 1023
    const auto bits = static_cast<std::uint64_t>(exponent + 1023) << 52;
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// The nearest float32 on the way to zero.
SIMKIT_BOTH inline float cut_to_float(double value) {
    std::uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits &= ~std::uint64_t{0x1fffffff};
    memcpy(&value, &bits, sizeof value);
    return static_cast<float>(value);
}

// c + x y, `depth` products, as mma.sync forms one element: products are exact; `at_once` of them and the sum so far
// are cut at 2^-24 of the largest (a product counting as the product of its factors' leading bits), added, and the sum
// is cut to float32. Every cut is towards zero, so that many sums in a row would drift. Sources: Fasi et al. 2021
// (PeerJ CS 7:e330); Khattak and Mikaitis 2025 (arXiv 2512.07004); Xie et al. 2025 (arXiv 2511.10909).
template <int at_once, int depth>
SIMKIT_BOTH float cut_sum(float c, const TensorOperand* x, const TensorOperand* y) {
    constexpr int kept = 24;
    for (int k = 0; k < depth; k += at_once) {
        const TensorOperand so_far = operand_of(c);
        double plain = so_far.value;
        int most = so_far.exponent;
        for (int q = k; q < k + at_once; ++q) {
            plain += x[q].value * y[q].value;
            const int exponent = x[q].exponent + y[q].exponent;
            if (exponent > most) most = exponent;
        }
        if (plain - plain != 0.0) return static_cast<float>(plain);
        const double unit = power_of_two(kept - most);
        auto sum = static_cast<std::int64_t>(so_far.value * unit);
        for (int q = k; q < k + at_once; ++q) sum += static_cast<std::int64_t>(x[q].value * y[q].value * unit);
        c = cut_to_float(static_cast<double>(sum) / unit);
    }
    return c;
}

// m16n8k8 of TF32, four products at once; m16n8k16 of bfloat16 and float16, eight. Later devices add all at once and
// keep one bit more.
SIMKIT_BOTH inline float tensor_sum(float c, const TensorOperand* x, const TensorOperand* y) {
    return cut_sum<4, 8>(c, x, y);
}
SIMKIT_BOTH inline float tensor_sum_of_halves(float c, const TensorOperand* x, const TensorOperand* y) {
    return cut_sum<8, 16>(c, x, y);
}

}  // namespace simkit::cuda
