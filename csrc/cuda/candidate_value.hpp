// Kernels of what candidates leave: x is -q of distances, q of products. See ops/candidates.hpp.
#pragma once

#include <cmath>

#include "cuda/kernel_value.hpp"

namespace simkit::cuda {

SIMKIT_BOTH inline float root(float x) { return sqrtf(x); }
SIMKIT_BOTH inline double root(double x) { return sqrt(x); }

// 2^x - 1, right where it is near zero.
SIMKIT_BOTH inline float power_of_two_less_one(float x) { return expm1f(x * 0.693147180559945309f); }
SIMKIT_BOTH inline double power_of_two_less_one(double x) { return expm1(x * 0.693147180559945309); }

// 2^x within two units in its last place; on a device what is below 2^-126 is 0, and one instruction is all it takes.
SIMKIT_BOTH inline float power_of_two(float x) {
#ifdef __CUDA_ARCH__
    float value;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
    return value;
#else
    return exp2f(x);
#endif
}

SIMKIT_BOTH inline double power_of_two(double x) { return exp2(x); }

// Of a value: kDistance, and whether there is a quick form, for x >= -most() whatever they were before a candidate was
// left out: what is left of a distance of most() that cancels is off by about 1e-6, by 2e-5 where hundreds of rows
// differ alike, whose squares round alike.

// f, where it is small.
template <class T>
struct SmallRbf {
    static constexpr bool kDistance = true, kQuick = sizeof(T) == 4;

    SIMKIT_BOTH T operator()(T x) const { return power_of_two(x); }
    SIMKIT_BOTH static T most() { return T(16); }
};

template <class T>
struct SmallLaplacian {
    static constexpr bool kDistance = true, kQuick = false;

    SIMKIT_BOTH T operator()(T x) const { return power_of_two(-root(-x)); }
};

// f - 1.
template <class T>
struct RbfNearOne {
    static constexpr bool kDistance = true, kQuick = false;

    SIMKIT_BOTH T operator()(T x) const { return power_of_two_less_one(x); }
};

template <class T>
struct LaplacianNearOne {
    static constexpr bool kDistance = true, kQuick = false;

    SIMKIT_BOTH T operator()(T x) const { return power_of_two_less_one(-root(-x)); }
};

// f.
struct PolynomialValue {
    static constexpr bool kDistance = false, kQuick = true;
    double length, coef0;
    int degree;

    SIMKIT_BOTH double operator()(double x) const { return whole_power(length * x + coef0, degree); }
};

}  // namespace simkit::cuda
