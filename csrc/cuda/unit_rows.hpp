// Rows of any layout and type brought to unit length, on a machine.
#pragma once

#include <cmath>
#include <limits>

#include "cuda/operand.hpp"

namespace simkit::cuda {

constexpr double kLargestDouble = std::numeric_limits<double>::max();
template <class T>
constexpr T kNotANumber = std::numeric_limits<T>::quiet_NaN();

inline Operand raw_rows(const MatrixView& x) {
    return {x.data, x.rows, x.cols, x.row_stride, x.col_stride, x.dtype, false, false, nullptr, nullptr, nullptr, 1.0};
}

// scale [n] = 1 / |x_i| without overflow of squares, 0 for a zero row, NaN for one that is not finite; unit [n, p] =
// x scale, rounded to T, NaN where the row has no direction. Lane l of a row sums columns l, l + 32, ..., in float64.
// Program blocks: pieces(n, kRows).
template <class T>
struct UnitRows {
    static constexpr int kRows = 8, kLanes = 32, kThreads = kRows * kLanes, kResident = 4;
    struct Shared {
        double lanes[kRows][kLanes + 1], largest[kRows][kLanes + 1];
        bool finite[kRows][kLanes];
        double scale[kRows];
        int exponent[kRows];
        bool again[kRows];  // squares overflow or vanish where the entries do not
    };
    struct Registers {};

    Operand x;
    double* scale;
    T* unit;

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers&) const {
        // Neighbours in memory go to neighbouring threads.
        const int row = x.deep() ? thread / kLanes : thread % kRows, lane = x.deep() ? thread % kLanes : thread / kRows;
        const Index i = number * kRows + row;
        if (k == 0) {
            look(i, row, lane, shared);
        } else if (k == 1) {
            if (lane == 0 && i < x.rows) judge(row, shared);
        } else if (k == 2) {
            if (i < x.rows && shared.again[row]) shared.lanes[row][lane] = squares(i, lane, -shared.exponent[row]);
        } else if (k == 3) {
            if (lane == 0 && i < x.rows) {
                if (shared.again[row]) shared.scale[row] = scaled(row, shared);
                scale[i] = shared.scale[row];
            }
        } else {
            if (i < x.rows) write(i, lane, shared.scale[row]);
            return false;
        }
        return true;
    }

  private:
    SIMKIT_BOTH double squares(Index i, int lane, int shift) const {
        double sum = 0.0;
        for (Index c = lane; c < x.depth; c += kLanes) {
            const double value = ldexp(x.wide_element(i, c), shift);
            sum += rounded_product(value, value);
        }
        return sum;
    }

    SIMKIT_BOTH void look(Index i, int row, int lane, Shared& shared) const {
        double sum = 0.0, most = 0.0;
        bool all = true;
        for (Index c = lane; i < x.rows && c < x.depth; c += kLanes) {
            const double value = x.wide_element(i, c), size = fabs(value);
            sum += rounded_product(value, value);
            most = larger(most, size);
            all = all && size <= kLargestDouble;
        }
        shared.lanes[row][lane] = sum;
        shared.largest[row][lane] = most;
        shared.finite[row][lane] = all;
    }

    SIMKIT_BOTH static double total(int row, const Shared& shared) {
        double sum = 0.0;
        for (int lane = 0; lane < kLanes; ++lane) sum += shared.lanes[row][lane];
        return sum;
    }

    SIMKIT_BOTH static void judge(int row, Shared& shared) {
        const double sum = total(row, shared);
        double most = 0.0;
        bool all = true;
        for (int lane = 0; lane < kLanes; ++lane) {
            most = larger(most, shared.largest[row][lane]);
            all = all && shared.finite[row][lane];
        }
        shared.again[row] = false;
        if (!all) {
            shared.scale[row] = kNotANumber<double>;
        } else if (most == 0.0) {
            shared.scale[row] = 0.0;
        } else if (sum > 0x1p-900 && sum <= kLargestDouble) {
            shared.scale[row] = 1.0 / sqrt(sum);
        } else {
            shared.again[row] = true;
            frexp(most, &shared.exponent[row]);
        }
    }

    SIMKIT_BOTH static double scaled(int row, const Shared& shared) {
        const double found = ldexp(1.0 / sqrt(total(row, shared)), -shared.exponent[row]);
        return found <= kLargestDouble ? found : 0.0;  // a norm below the smallest normal number
    }

    SIMKIT_BOTH void write(Index i, int lane, double by) const {
        const bool direction = by > 0.0;
        for (Index c = lane; c < x.depth; c += kLanes)
            unit[i * x.depth + c] =
                direction ? static_cast<T>(rounded_product(x.wide_element(i, c), by)) : kNotANumber<T>;
    }
};

// This lane's share of |a x_i - b x_j|^2, from differences.
SIMKIT_BOTH inline double lane_distance(const Operand& x, Index i, double a, Index j, double b, int lane, int lanes) {
    double sum = 0.0;
    for (Index c = lane; c < x.depth; c += lanes) {
        const double d = rounded_product(x.wide_element(i, c), a) - rounded_product(x.wide_element(j, c), b);
        sum += rounded_product(d, d);
    }
    return sum;
}

}  // namespace simkit::cuda
