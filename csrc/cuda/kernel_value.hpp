// Kernels of two rows, from their product: the non-linear ones. Float64; see ops/hsic.hpp and core/matrix_view.hpp.
#pragma once

#include <cmath>

#include "cuda/operand.hpp"

namespace simkit::cuda {

// q^degree, degree >= 1, by squaring: 31 steps at most.
SIMKIT_BOTH inline double whole_power(double q, int degree) {
    double value = degree & 1 ? q : 1.0;
    for (int left = degree >> 1; left > 0; left >>= 1) {
        q *= q;
        if (left & 1) value *= q;
    }
    return value;
}

// What is subtracted from K before it is multiplied, mean(i) + mean(j) - mean: an estimate of the row means.
struct Centre {
    const double* means;  // [n] or null: nothing is
    double mean;

    SIMKIT_BOTH double of(Index i, Index j) const { return means ? means[i] - mean + means[j] : 0.0; }
};

inline bool needs_norms(Kernel kernel) { return kernel == Kernel::rbf || kernel == Kernel::laplacian; }

// The kernel of rows i and j of z, from their product. Equal rows are at distance 0 exactly. across: bytes from where
// row j would lie to where it does.
struct KernelOfRows {
    Kernel kernel;  // not custom
    double length, coef0;
    int degree;
    const double* norms;  // [n] |z_i|^2, where the kernel is one of distances

    // Below this share of |z_i|^2 + |z_j|^2 a distance has cancelled to fewer than eleven digits.
    static constexpr double kCancelled = 1e-5;

    SIMKIT_BOTH double operator()(double product, const Operand& z, Index i, Index j, Index across = 0) const {
        switch (kernel) {
            case Kernel::rbf:
                return power(-squared_distance(product, z, i, j, across) / length);
            case Kernel::laplacian:
                return power(-sqrt(squared_distance(product, z, i, j, across)) / length);
            case Kernel::polynomial:
                return whole_power(length * product + coef0, degree);
            default:
                return product;
        }
    }

    SIMKIT_BOTH double power(double x) const { return coef0 != 0.0 ? expm1(x) : exp(x); }

    SIMKIT_BOTH double squared_distance(double product, const Operand& z, Index i, Index j, Index across = 0) const {
        if (i == j) return 0.0;
        const double both = norms[i] + norms[j], squared = both - 2.0 * product;
        return squared < kCancelled * both ? from_differences(z, i, j, across) : squared;
    }

    // Of the rows as they lie: the shift, which rounds, is the same for both. Such kernels have no row weights.
    SIMKIT_BOTH static double from_differences(const Operand& z, Index i, Index j, Index across) {
        constexpr int lanes = 4;
        double part[lanes] = {};
        for (Index k = 0; k < z.depth; k += lanes) {
            SIMKIT_UNROLL
            for (int lane = 0; lane < lanes; ++lane) {
                if (k + lane >= z.depth) continue;
                const std::byte *a = z.at(i, k + lane), *b = z.at(j, k + lane) + across;
                const double d = wide_value(a, z.dtype) - wide_value(b, z.dtype);
                part[lane] += (d * z.scale) * (d * z.scale);
            }
        }
        return (part[0] + part[1]) + (part[2] + part[3]);
    }
};

}  // namespace simkit::cuda
