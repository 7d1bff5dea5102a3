// What is known of the rounding of a kernel's values once they are centred.
#pragma once

#include <cstddef>
#include <cstdint>

namespace simkit {

// <K, K> of K_ij = c_ij + means_i + means_j - mean, from p = <c, c> and the row sums r [n] of c; both without the
// diagonal where that is dropped.
inline double uncentred_square(double p, const double* r, const double* means, double mean, std::int64_t n,
                               bool dropped) {
    double mixed = 0.0, total = 0.0, squares = 0.0;
    for (std::int64_t i = 0; i < n; ++i) {
        const double own = means[i] - 0.5 * mean;
        mixed += own * r[i];
        total += own;
        squares += own * own;
    }
    const auto others = static_cast<double>(dropped ? n - 2 : n);
    return p + 4.0 * mixed + 2.0 * (others * squares + total * total);
}

}  // namespace simkit
