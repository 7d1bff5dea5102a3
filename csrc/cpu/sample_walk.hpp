// The walk over tiles of the n x n plane: what the tiles of all blocks' Gram matrices add up to.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "cpu/gram_tile.hpp"
#include "ops/hsic.hpp"

namespace simkit {

struct Sums {
    explicit Sums(std::int64_t m, std::int64_t n) : p(m * m), r(m * n), traces(m), squares(m) {}
    std::vector<double> p;        // [m, m], the pairs that were asked for and the diagonal
    std::vector<double> r;        // [m, n]
    std::vector<double> traces;   // [m], of |K_ii|
    std::vector<double> squares;  // [m], of K_ii^2
};

// What is subtracted from K before it is multiplied, c_i + c_j - mean, the row norms that distances need, and the zeros
// that stand for the shift in a custom kernel's products (empty where there is none). For a
// non-linear kernel c estimates the row means; a linear one's features are centred, so c is empty at first. The
// debiased form drops the diagonal, so it stays out of c too: one outlier's own square would drown the rest.
struct Centre {
    std::vector<double> norms, means, zeros;
    double mean = 0.0;

    const double* no_shift() const { return zeros.empty() ? nullptr : zeros.data(); }
    double of_diagonal(std::int64_t i) const { return means.empty() ? 0.0 : 2.0 * means[i] - mean; }
};

inline std::optional<KernelOutOfRange> out_of_range(std::int64_t block, const Arguments& arguments, const double* c,
                                                    std::int64_t k) {
    if (k < 0) return std::nullopt;
    return KernelOutOfRange{block, arguments.products[k], arguments.distances[k], c[k]};
}

template <class T>
Sums walk(const PairProblem& problem, const std::vector<Centre>& centres, const Poll& poll);

}  // namespace simkit
