// Whole powers by squaring: 31 steps at most, whatever the degree.
#pragma once

#include <algorithm>
#include <cstdint>

namespace simkit {

// q = (length q + coef0)^degree, degree >= 1.
template <class T>
[[gnu::always_inline]] inline void power_body(T length, T coef0, int degree, T* q, std::int64_t count) {
    constexpr std::int64_t step = 64;
    T square[step];
    for (std::int64_t k = 0; k < count; k += step) {
        const std::int64_t some = std::min(step, count - k);
        T* value = q + k;
        for (std::int64_t i = 0; i < some; ++i) {
            square[i] = length * value[i] + coef0;
            value[i] = degree & 1 ? square[i] : T(1);
        }
        for (int left = degree >> 1; left > 0; left >>= 1) {
            for (std::int64_t i = 0; i < some; ++i) square[i] *= square[i];
            if (left & 1)
                for (std::int64_t i = 0; i < some; ++i) value[i] *= square[i];
        }
    }
}

}  // namespace simkit
