// The largest magnitude of each of several matrices, on any machine (cuda/machine.hpp).
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "cuda/machine.hpp"
#include "cuda/operand.hpp"
#include "ops/columns.hpp"

namespace simkit::cuda {

// Some lines of a matrix, a line being what lies together in memory: a row, or a column.
struct Lines {
    const std::byte* data;
    Index line_stride, stride;  // bytes, from line to line and within one
    std::uint32_t length, count;
    Dtype dtype;
};
static_assert(kSentAs<Lines, 40> && offsetof(Lines, dtype) == 32);

// found [pieces] = the largest |x| of each piece, infinite where an entry is not finite. Program blocks: one a piece.
struct LargestEntries {
    static constexpr int kThreads = 256, kResident = 4;
    static constexpr double kInfinite = std::numeric_limits<double>::infinity();
    struct Shared {
        double of[kThreads];
    };
    struct Registers {};

    const Lines* pieces;
    double* found;

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers&) const {
        if (k == 0) {
            const Lines& piece = pieces[number];
            double top = 0.0;
            for (std::uint32_t at = thread; at < piece.length * piece.count; at += kThreads) {
                const std::uint32_t line = at / piece.length, place = at - line * piece.length;
                const double x = wide_value(piece.data + line * piece.line_stride + place * piece.stride, piece.dtype);
                const double size = x < 0.0 ? -x : x;
                top = size - size == 0.0 ? larger(top, size) : kInfinite;
            }
            shared.of[thread] = top;
            return true;
        }
        if (thread == 0) {
            double top = 0.0;
            for (int other = 0; other < kThreads; ++other) top = larger(top, shared.of[other]);
            found[number] = top;
        }
        return false;
    }
};

// Pieces of about kPiece elements, whole lines or parts of one.
inline void cut_lines(const MatrixView& x, std::vector<Lines>& out) {
    constexpr Index kPiece = Index{1} << 16;
    const bool deep = Operand::size(x.col_stride) <= Operand::size(x.row_stride);
    const Index lines = deep ? x.rows : x.cols, length = deep ? x.cols : x.rows;
    const Index line_stride = deep ? x.row_stride : x.col_stride, stride = deep ? x.col_stride : x.row_stride;
    const Index many = larger(1, kPiece / length);
    for (Index line = 0; line < lines; line += many)
        for (Index at = 0; at < length; at += kPiece)
            out.push_back({x.data + line * line_stride + at * stride, line_stride, stride,
                           static_cast<std::uint32_t>(smaller(kPiece, length - at)),
                           static_cast<std::uint32_t>(smaller(many, lines - line)), x.dtype});
}

// The matrices lie on the machine.
template <class M>
std::vector<double> largest_entries(M& machine, const std::vector<MatrixView>& matrices) {
    std::vector<Lines> pieces;
    std::vector<std::size_t> ends;
    for (const MatrixView& x : matrices) {
        cut_lines(x, pieces);
        ends.push_back(pieces.size());
    }
    const auto count = static_cast<Index>(pieces.size());
    const auto held = sent(machine, std::move(pieces));
    auto found = machine.template array<double>(count);
    machine.run(LargestEntries{held.data(), found.data()}, count);
    const auto all = fetched<M, double>(machine, found, count);
    std::vector<double> out;
    std::size_t at = 0;
    for (const std::size_t end : ends) {
        double top = 0.0;
        for (; at < end; ++at) top = larger(top, all[at]);
        out.push_back(top);
    }
    return out;
}

}  // namespace simkit::cuda
