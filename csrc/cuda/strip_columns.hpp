// Products of the columns of a matrix on the host, whose rows come in strips (cuda/strips.hpp): the arithmetic of
// columns.hpp.
#pragma once

#include <utility>
#include <vector>

#include "cuda/strips.hpp"

namespace simkit::cuda {

// As cross_squares, the same bits; the rows of `of.block` pass once for every batch of squares that strips.bytes hold.
template <class Squares, class M>
void squares_in_strips(M& machine, const ColumnProblem& of, const Operand& columns, const Products& to,
                       const Strips& strips) {
    constexpr Index cells = Squares::kWidth * Squares::kWidth, chunk = Squares::kChunkSlices * kSlice;
    const Index n = of.block.x.rows;
    std::vector<SquarePlace> places = upper_squares(to.p, Squares::kWidth);
    const Index count = static_cast<Index>(places.size()), group = group_rows(n, count, cells * 8);
    // Whole groups, or whole chunks of one.
    const Index rows = whole_chunks(strips.passing, strips.passing < group ? chunk : group, n);
    const Index groups = larger(1, rows / group);
    const Index batch = larger(1, smaller(count, strips.bytes / ((groups + 1) * cells * 8)));
    const auto held = sent(machine, std::move(places));
    auto parts = machine.template array<double>(groups * batch * cells);
    auto joined = machine.template array<double>(batch * cells);
    auto pair = two_strips(machine, {of.block}, rows);
    StripFeed<M> feed(machine, {of.block}, rows, strips.threads);
    for (Index first = 0; first < count; first += batch) {
        const Index many = smaller(batch, count - first);
        const SquarePlace* here = held.data() + first;
        machine.zero(joined, many * cells);
        pass_strips(machine, feed, pair, rows, group, [&](const Strip<M>& strip, Index begin, Index end) {
            const MatrixView x = strip.view(feed.blocks(), 0, end - begin);
            Operand there = columns;
            there.data = x.data;
            there.depth = x.rows;
            there.row_stride = x.col_stride;
            there.depth_stride = x.row_stride;
            there.weight = strip.weights(feed.blocks(), 0);
            const Index own = pieces(x.rows, group);
            machine.run(Squares{there, here, many, group, parts.data(), begin % group != 0}, many * own);
            if (end % group != 0 && end != n) return;
            machine.run(AddGroups{parts.data(), many * cells, own, joined.data()},
                        pieces(many * cells, AddGroups::kThreads));
        });
        machine.run(JoinSquares{here, joined.data(), many, 1, Squares::kWidth, to}, many);
    }
}

// As column_products of a block on the machine; it lies on the host.
template <class M>
DeviceMemory column_products(M& machine, const ColumnProblem& of, const Strips& strips) {
    auto g = machine.memory(8 * of.block.x.cols * of.block.x.cols);
    products_on(machine, of, reinterpret_cast<double*>(g.get()),
                [&](auto squares, const Operand& columns, const Products& to) {
                    squares_in_strips<typename decltype(squares)::Is>(machine, of, columns, to, strips);
                });
    return g;
}

}  // namespace simkit::cuda
