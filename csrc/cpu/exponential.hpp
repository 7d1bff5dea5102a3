// 2^x - 1 for x <= 0, many at a time, right where it is near zero: vectors of the compiler, so that the caller's target
// decides the instructions.
#pragma once

#include <cstdint>

namespace simkit {

template <class T>
struct PowerOfTwo;

// 2^r on |r| <= 1/2 by Chebyshev interpolation, its constant term set to 1. Relative error of 2^x - 1: 3e-7 and 1e-15
// with the rounding of the sum; below `lowest` x is that.
template <>
struct PowerOfTwo<float> {
    using Integer = std::int32_t;
    static constexpr float lowest = -126.0f, round = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
    static constexpr int fraction = 23, terms = 6;
    static constexpr float coefficient[terms] = {0.00015461444698564738f, 0.0013400428177615747f, 0.009618056678524656f,
                                                 0.05550327226670303f,    0.24022650922288757f,   0.6931472067028326f};
};
template <>
struct PowerOfTwo<double> {
    using Integer = std::int64_t;
    static constexpr double lowest = -1022.0, round = 6755399441055744.0;  // 1.5 * 2^52
    static constexpr int fraction = 52, terms = 11;
    static constexpr double coefficient[terms] = {
        4.4556433403988256e-10, 7.074192209639015e-09,  1.0178058390428893e-07, 1.3215432551928214e-06,
        1.5252733837988064e-05, 0.00015403530463679096, 0.0013333558146410788,  0.009618129107587314,
        0.055504108664821604,   0.24022650695910158,    0.6931471805599453};
};

// Vector: a vector_size type of T; Integers: of the same size, of PowerOfTwo<T>::Integer.
template <class T, class Vector, class Integers>
[[gnu::always_inline]] inline Vector power_of_two_less_one(Vector x) {
    using E = PowerOfTwo<T>;
    const Vector lowest = E::lowest - Vector{}, one = T(1) - Vector{};
    x = lowest > x ? lowest : x;
    const Vector shifted = x + E::round;
    const Vector r = x - (shifted - E::round);
    Vector sum = E::coefficient[0] - Vector{};
#pragma GCC unroll 16
    for (int t = 1; t < E::terms; ++t) sum = sum * r + E::coefficient[t];
    // The whole number stands in the lowest bits of `shifted`: 2^x - 1 = whole * (2^r - 1) + (whole - 1).
    const Vector whole = __builtin_bit_cast(
        Vector, __builtin_bit_cast(Integers, one) + (__builtin_bit_cast(Integers, shifted) << E::fraction));
    return (sum * r) * whole + (whole - T(1));
}

}  // namespace simkit
