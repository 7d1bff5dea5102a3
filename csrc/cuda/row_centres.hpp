// What products of 16-bit rows as they lie (cuda/half_product.hpp) are centred by afterwards.
#pragma once

#include "cuda/operand.hpp"

namespace simkit::cuda {

// centres [rows] = square x_i . shift, of rows as they lie, without row weights: with the columns' means as shift and
// the square of z's scale, z_i . z_j = square x_i . x_j - centre_i - centre_j + square shift . shift. Float64, sums in
// an order that depends on the depth alone. Program blocks: pieces(rows, kRows).
struct RowCentres {
    static constexpr int kRows = 8, kLanes = 32, kThreads = kRows * kLanes, kResident = 4;
    struct Shared {
        double lanes[kRows][kLanes + 1];
    };
    struct Registers {};

    Operand x;
    double square;
    double* centres;

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers&) const {
        const int row = thread / kLanes, lane = thread % kLanes;
        const Index i = number * kRows + row;
        if (k == 0) {
            double sum = 0.0;
            for (Index c = lane; i < x.rows && c < x.depth; c += kLanes)
                sum += wide_value(x.at(i, c), x.dtype) * x.shift[c];
            shared.lanes[row][lane] = sum;
            return true;
        }
        if (lane > 0 || i >= x.rows) return false;
        double sum = 0.0;
        for (int other = 0; other < kLanes; ++other) sum += shared.lanes[row][other];
        centres[i] = square * sum;
        return false;
    }
};

}  // namespace simkit::cuda
