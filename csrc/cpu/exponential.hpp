// 2^x and 2^x - 1, many at a time, the latter right where it is near zero: vectors of the compiler, so that the
// caller's target decides the instructions.
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

// 2^x = whole (1 + part). Vector: a vector_size type of T; Integers: of the same size, of PowerOfTwo<T>::Integer.
template <class Vector>
struct Power {
    Vector whole, part;
};
template <class T, class Vector, class Integers>
[[gnu::always_inline]] inline Power<Vector> power_in_two(Vector x) {
    using E = PowerOfTwo<T>;
    const Vector lowest = E::lowest - Vector{}, one = T(1) - Vector{};
    x = lowest > x ? lowest : x;
    const Vector shifted = x + E::round;
    const Vector r = x - (shifted - E::round);
    Vector sum = E::coefficient[0] - Vector{};
#pragma GCC unroll 16
    for (int t = 1; t < E::terms; ++t) sum = sum * r + E::coefficient[t];
    // The whole number stands in the lowest bits of `shifted`.
    const Vector whole = __builtin_bit_cast(
        Vector, __builtin_bit_cast(Integers, one) + (__builtin_bit_cast(Integers, shifted) << E::fraction));
    return {whole, sum * r};
}

// 2^x - 1 for x <= 0.
template <class T, class Vector, class Integers>
[[gnu::always_inline]] inline Vector power_of_two_less_one(Vector x) {
    const Power<Vector> found = power_in_two<T, Vector, Integers>(x);
    return found.part * found.whole + (found.whole - T(1));
}

// 2^x for x <= 0, at most 1.3 units in the last place off; 0 where that is no normal number.
template <class T, class Vector, class Integers>
[[gnu::always_inline]] inline Vector power_of_two(Vector x) {
    const Power<Vector> found = power_in_two<T, Vector, Integers>(x);
    const Vector value = found.part * found.whole + found.whole;
    return x < PowerOfTwo<T>::lowest ? Vector{} : value;
}

// (2^x - 1) / x on [0, 1/4], on [0, 1/2] and on [0, 1], by Chebyshev interpolation: relative error 6e-8, 2e-8 and 1e-8,
// or 7e-17, 4e-17 and 2e-17.
enum class Reach { quarter, half, one };
template <class T, Reach reach>
struct LittlePower;
template <>
struct LittlePower<float, Reach::quarter> {
    static constexpr float coefficient[]{0.010312075112313856f, 0.055394344985241677f, 0.24023202179809267f,
                                         0.69314713743666713f};
};
template <>
struct LittlePower<float, Reach::half> {
    static constexpr float coefficient[]{0.001542338376106773f, 0.00952434320195618f, 0.05552104749555824f,
                                         0.2402254428361641f, 0.6931471912115587f};
};
template <>
struct LittlePower<float, Reach::one> {
    static constexpr float coefficient[]{0.00020817915043540743f, 0.0012692166069140853f, 0.0096521950560147358f,
                                         0.055496023564022933f,   0.24022720418109815f,   0.69314717086497653f};
};
template <>
struct LittlePower<double, Reach::quarter> {
    static constexpr double coefficient[]{1.4276427799729973e-6, 1.5209050228606449e-5, 0.00015404460492616808,
                                          0.0013333547206557784, 0.0096181291774013272, 0.05550410866263827,
                                          0.24022650695912672,   0.69314718055994526};
};
template <>
struct LittlePower<double, Reach::half> {
    static constexpr double coefficient[]{8.264177727823566e-09,  1.0046070866878364e-07, 1.3223356030840467e-06,
                                          1.5252451909839652e-05, 0.00015403536625569408, 0.0013333558062689614,
                                          0.009618129108274016,   0.05550410866479633,    0.24022650695910108,
                                          0.6931471805599453};
};
template <>
struct LittlePower<double, Reach::one> {
    static constexpr double coefficient[]{6.1230929168263871e-10, 6.634445866251414e-9,  1.0236023803275179e-7,
                                          1.3210583477765188e-6,  1.5252998899728418e-5, 0.00015403521219107733,
                                          0.0013333558343937279,  0.0096181291051517565, 0.055504108664980669,
                                          0.24022650695909673,    0.69314718055994533};
};

// 2^x - 1 for 0 <= x <= 1/4, 1/2 or 1.
template <class T, class Vector, Reach reach>
[[gnu::always_inline]] inline Vector power_of_little(Vector x) {
    constexpr const auto& coefficient = LittlePower<T, reach>::coefficient;
    constexpr int terms = sizeof(coefficient) / sizeof(T);
    Vector sum = coefficient[0] - Vector{};
#pragma GCC unroll 16
    for (int t = 1; t < terms; ++t) sum = sum * x + coefficient[t];
    return sum * x;
}

}  // namespace simkit
