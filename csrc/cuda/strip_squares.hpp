// Cross-products of columns whose rows come in strips (cuda/strips.hpp): the bits of cross_squares (cuda/columns.hpp).
#pragma once

#include <vector>

#include "cuda/columns.hpp"
#include "cuda/strips.hpp"

namespace simkit::cuda {

// to [count] += parts [groups, count], in the order of the groups. Program blocks: pieces(count, kThreads).
struct AddGroups {
    static constexpr int kThreads = 256, kResident = 4;
    struct Shared {};
    struct Registers {};

    const double* parts;
    Index count, groups;
    double* to;

    SIMKIT_BOTH bool step(Index number, int thread, int, Shared&, Registers&) const {
        const Index at = number * kThreads + thread;
        if (at >= count) return false;
        double sum = to[at];
        for (Index group = 0; group < groups; ++group) sum += parts[group * count + at];
        to[at] = sum;
        return false;
    }
};

// How many squares are formed at once, and of how many rows. Squares is a CrossSquares.
template <class Squares>
struct StripSquares {
    static constexpr Index kCells = Squares::kWidth * Squares::kWidth, kChunk = Squares::kChunkSlices * kSlice;

    Index n, count, group, rows, groups, batch;

    StripSquares(Index samples, Index squares, const Strips& strips)
        : n(samples),
          count(squares),
          group(group_rows(n, count, kCells * 8)),
          // Whole groups, or whole chunks of one.
          rows(whole_chunks(strips.passing, strips.passing < group ? kChunk : group, n)),
          groups(larger(1, rows / group)),
          batch(larger(1, smaller(count, strips.bytes / ((groups + 1) * kCells * 8)))) {}

    // For every batch of squares all rows pass: pass(add) calls add(columns, begin, end) for every strip of them, then
    // done(first, many, squares [many, width, width]) has their products. places lie on the machine.
    template <class M, class Pass, class Done>
    void walk(M& machine, const SquarePlace* places, const Pass& pass, const Done& done) const {
        auto parts = machine.template array<double>(groups * batch * kCells);
        auto joined = machine.template array<double>(batch * kCells);
        for (Index first = 0; first < count; first += batch) {
            const Index many = smaller(batch, count - first);
            machine.zero(joined, many * kCells);
            pass(first == 0, [&](const auto& columns, Index begin, Index end) {
                const Index own = pieces(end - begin, group);
                machine.run(Squares{columns, places + first, many, group, parts.data(), begin % group != 0},
                            many * own);
                if (end % group != 0 && end != n) return;
                machine.run(AddGroups{parts.data(), many * kCells, own, joined.data()},
                            pieces(many * kCells, AddGroups::kThreads));
            });
            done(first, many, joined.data());
        }
    }
};

}  // namespace simkit::cuda
