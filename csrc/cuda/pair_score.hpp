// What a pair of rows scores, and the passes over rows that come before all pairs. See ops/partners.hpp.
#pragma once

#include <limits>

#include "cuda/operand.hpp"
#include "ops/partners.hpp"

namespace simkit::cuda {

constexpr double kInfinite = std::numeric_limits<double>::infinity();
constexpr double kUndefined = std::numeric_limits<double>::quiet_NaN();

// i and j are row numbers, a place is one among those of `rows` or `others`. All pointers lie on the machine.
struct PairScore {
    static constexpr int kLanes = 32;  // of the sums of exact products

    MatrixView x;
    const double* last;            // [n] or null
    const double *first, *second;  // [n]: their product is 1 / norm, `first` a power of two
    const double* sign;            // [n] or null: there are no residues
    const double *a, *b, *c, *d;   // [n]
    bool same_sign;
    double balance;
    const Index *rows, *others;  // [count_rows], [count_others]
    Index count_rows, count_others;
    double *low, *high;  // [count_rows] the extreme residues, halved; where there are residues

    SIMKIT_BOTH Index depth() const { return x.cols + (last != nullptr); }
    SIMKIT_BOTH bool deep() const { return Operand::size(x.col_stride) <= Operand::size(x.row_stride); }

    // An entry of a row at unit length.
    SIMKIT_BOTH double entry(Index i, Index k) const {
        const double value = k < x.cols ? wide_value(x.data + i * x.row_stride + k * x.col_stride, x.dtype) : last[i];
        return rounded_product(rounded_product(value, first[i]), second[i]);
    }

    // What one of kLanes adds to the cosine of a pair, float64: every path adds the same numbers in the same order.
    SIMKIT_BOTH double share(Index i, Index j, int lane) const {
        double sum = 0.0;
        for (Index k = lane; k < depth(); k += kLanes) sum += rounded_product(entry(i, k), entry(j, k));
        return sum;
    }

    // Half the residue, as sums of two of them must not overflow; NaN where the pair is not admissible.
    SIMKIT_BOTH double residue(Index i, Index j) const {
        if (i == j) return kUndefined;
        if (!sign) return 0.0;
        const double signs = sign[i] * sign[j];
        if (same_sign ? !(signs > 0.0) : signs == 0.0) return kUndefined;
        const double sum = (a[i] + b[j]) + rounded_product(c[i], d[j]), r = signs * (sum < 0.0 ? -sum : sum);
        return r - r == 0.0 ? 0.5 * r : kUndefined;
    }

    // Half of what the terms of a residue sum up to, each by its size.
    SIMKIT_BOTH double terms(Index i, Index j) const {
        return (size(0.5 * a[i]) + size(0.5 * b[j])) + 0.5 * size(rounded_product(c[i], d[j]));
    }

    // Of the row at a place; r: half its residue with the other.
    SIMKIT_BOTH double score(double cosine, double r, Index place) const {
        const double distance = 1.0 - cosine;
        if (!sign) return rounded_product(balance, distance);
        const double least = low[place], most = high[place];
        const double rest = most > least ? (r - least) / (most - least) : 0.0;
        return rounded_product(balance, distance) + rounded_product(1.0 - balance, rest);
    }

  private:
    SIMKIT_BOTH static double size(double x) { return x < 0.0 ? -x : x; }
};

// low, high [count_rows]: the extremes of each row's admissible residues, one number where they differ by no more than
// rounding (kFlat); infinity and its opposite where there are none. Program blocks: a row each.
struct ResidueRanges {
    static constexpr int kThreads = 128, kResident = 8;
    struct Shared {
        double low[kThreads], high[kThreads], terms[kThreads];
    };
    struct Registers {};

    PairScore of;

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers&) const {
        if (k == 0) {
            double low = kInfinite, high = -kInfinite, terms = 0.0;
            for (Index j = thread; j < of.count_others; j += kThreads) {
                const double r = of.residue(of.rows[number], of.others[j]);
                if (!(r == r)) continue;
                if (r < low) low = r;
                if (r > high) high = r;
                const double its = of.terms(of.rows[number], of.others[j]);
                if (its > terms) terms = its;
            }
            shared.low[thread] = low;
            shared.high[thread] = high;
            shared.terms[thread] = terms;
            return true;
        }
        if (thread > 0) return false;
        double low = shared.low[0], high = shared.high[0], terms = shared.terms[0];
        for (int other = 1; other < kThreads; ++other) {
            if (shared.low[other] < low) low = shared.low[other];
            if (shared.high[other] > high) high = shared.high[other];
            if (shared.terms[other] > terms) terms = shared.terms[other];
        }
        if (high > low && !(high - low > kFlat * terms)) high = low;
        of.low[number] = low;
        of.high[number] = high;
        return false;
    }
};

// out [count, depth] = the rows `numbers` at unit length. Program blocks [pieces(count, kRows), pieces(depth,
// kColumns)]: read along the rows or across, as they lie, and written along.
template <class T>
struct NearUnitRows {
    static constexpr int kRows = 32, kColumns = 32, kThreads = 256, kResident = 3;
    static constexpr int kEach = kRows * kColumns / kThreads;
    struct Shared {
        T tile[kRows][kColumns + 1];
    };
    struct Registers {};

    PairScore of;
    const Index* numbers;
    Index count;
    T* out;

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers&) const {
        const Index depth = of.depth(), across = pieces(depth, kColumns);
        const Index row0 = number / across * kRows, column0 = number % across * kColumns;
        const bool along = k == 1 || of.deep();
        for (int e = 0; e < kEach; ++e) {
            const int at = thread + e * kThreads, r = along ? at / kColumns : at % kRows;
            const int c = along ? at % kColumns : at / kRows;
            if (row0 + r >= count || column0 + c >= depth) continue;
            if (k == 0)
                shared.tile[r][c] = static_cast<T>(of.entry(numbers[row0 + r], column0 + c));
            else
                out[(row0 + r) * depth + column0 + c] = shared.tile[r][c];
        }
        return k == 0;
    }
};

}  // namespace simkit::cuda
