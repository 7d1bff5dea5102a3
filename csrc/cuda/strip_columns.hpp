// Products of the columns of a matrix on the host, whose rows come in strips (cuda/strips.hpp): the arithmetic of
// columns.hpp.
#pragma once

#include <utility>
#include <vector>

#include "cuda/strip_squares.hpp"

namespace simkit::cuda {

// As cross_squares; the rows of `of.block` pass once for every batch of squares that strips.bytes hold.
template <class Squares, class M>
void squares_in_strips(M& machine, const ColumnProblem& of, const Operand& columns, const Products& to,
                       const Strips& strips) {
    std::vector<SquarePlace> places = upper_squares(to.p, Squares::kWidth);
    const StripSquares<Squares> squares(of.block.x.rows, static_cast<Index>(places.size()), strips);
    const auto held = sent(machine, std::move(places));
    auto pair = two_strips(machine, {of.block}, squares.rows);
    StripFeed<M> feed(machine, {of.block}, squares.rows, strips.threads);
    const auto pass = [&](bool, const auto& add) {
        pass_strips(machine, feed, pair, squares.rows, squares.group,
                    [&](const Strip<M>& strip, Index begin, Index end) {
                        const MatrixView x = strip.view(feed.blocks(), 0, end - begin);
                        Operand there = columns;
                        there.data = x.data;
                        there.depth = x.rows;
                        there.row_stride = x.col_stride;
                        there.depth_stride = x.row_stride;
                        there.weight = strip.weights(feed.blocks(), 0);
                        add(there, begin, end);
                    });
    };
    squares.walk(machine, held.data(), pass, [&](Index first, Index many, const double* joined) {
        machine.run(JoinSquares{held.data() + first, joined, many, 1, Squares::kWidth, to}, many);
    });
}

// As column_products of a block on the machine; it lies on the host.
template <class M>
DeviceMemory column_products(M& machine, const ColumnProblem& of, const Strips& strips) {
    auto g = machine.memory(8 * of.block.x.cols * of.block.x.cols);
    products_on(machine, of, reinterpret_cast<double*>(g.get()),
                [&](auto squares, const Operand& columns, const Products& to) {
                    squares_in_strips<typename decltype(squares)::type>(machine, of, columns, to, strips);
                });
    return g;
}

}  // namespace simkit::cuda
