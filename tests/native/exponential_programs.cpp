// The vector exponentials of the CPU engine as C functions for ctypes, compiled as its clones are: `level` 0 is the
// processor's baseline, 3 and 4 are x86-64-v3 and -v4.
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors wider than the target's pass between inlined functions only

#include <cstdint>
#include <cstring>

#include "cpu/exponential.hpp"

using namespace simkit;

namespace {

// 2^x and 2^x - 1 for x <= 0, 2^x - 1 for x in [0, 1/4], in [0, 1/2] and in [0, 1].
enum class Form { whole, less_one, quarter, half, one };

template <class T, Form form>
[[gnu::always_inline]] inline void each(T* values, std::int64_t count) {
    using Integer = typename PowerOfTwo<T>::Integer;
    using Vector [[gnu::vector_size(64)]] = T;
    using Integers [[gnu::vector_size(64)]] = Integer;
    constexpr std::int64_t lanes = sizeof(Vector) / sizeof(T);
    for (std::int64_t k = 0; k + lanes <= count; k += lanes) {  // whole vectors, as many as there are
        Vector x;
        std::memcpy(&x, values + k, sizeof x);
        if constexpr (form == Form::whole) x = power_of_two<T, Vector, Integers>(x);
        if constexpr (form == Form::less_one) x = power_of_two_less_one<T, Vector, Integers>(x);
        if constexpr (form == Form::quarter) x = power_of_little<T, Vector, Reach::quarter>(x);
        if constexpr (form == Form::half) x = power_of_little<T, Vector, Reach::half>(x);
        if constexpr (form == Form::one) x = power_of_little<T, Vector, Reach::one>(x);
        std::memcpy(values + k, &x, sizeof x);
    }
}

template <class T>
[[gnu::always_inline]] inline void dispatch(int form, T* values, std::int64_t count) {
    switch (static_cast<Form>(form)) {
        case Form::whole:
            return each<T, Form::whole>(values, count);
        case Form::less_one:
            return each<T, Form::less_one>(values, count);
        case Form::quarter:
            return each<T, Form::quarter>(values, count);
        case Form::half:
            return each<T, Form::half>(values, count);
        case Form::one:
            return each<T, Form::one>(values, count);
    }
}

}  // namespace

#define LEVEL(name, target)                                                                            \
    extern "C" target void floats_##name(int form, float* x, std::int64_t n) { dispatch(form, x, n); } \
    extern "C" target void doubles_##name(int form, double* x, std::int64_t n) { dispatch(form, x, n); }

LEVEL(0, )
#if defined(__x86_64__)
LEVEL(3, __attribute__((target("arch=x86-64-v3"))))
LEVEL(4, __attribute__((target("arch=x86-64-v4"))))
#endif

extern "C" int has(int level) {
#if defined(__x86_64__)
    return level == 0 || (level == 3 && __builtin_cpu_supports("x86-64-v3")) ||
           (level == 4 && __builtin_cpu_supports("x86-64-v4"));
#else
    return level == 0;
#endif
}
