// Pairs of rows of matrices on the host, in strips (cuda/strips.hpp), for the tiles on and above a plane's diagonal.
#pragma once

#include <array>
#include <vector>

#include "cuda/gram.hpp"
#include "cuda/strips.hpp"

namespace simkit::cuda {

// Rows that stay and that pass, whole tiles.
struct TriangleRows {
    Index resident, passing;

    TriangleRows(const Strips& strips, Index width, Index n)
        : resident(whole_chunks(strips.resident, width, n)),
          passing(whole_chunks(smaller(strips.passing, resident), width, n)) {}
};

// A strip of `resident` rows stays while the rows behind it pass, in strips of `passing`: with k resident strips every
// row crosses (k + 1) / 2 times on average.
template <class M>
class StripTriangle {
  public:
    // Row i0 lies at the beginning of one strip, row j0 at that of the other.
    struct Pair {
        const Strip<M>& rows;
        Index i0;
        const Strip<M>& columns;
        Index j0;
    };

    // width: of a tile.
    StripTriangle(M& machine, const std::vector<BlockView>& blocks, Index width, const TriangleRows& sizes, int threads)
        : machine_(machine),
          n_(blocks.front().x.rows),
          width_(width),
          sizes_(sizes),
          home_(strip_of(machine, blocks, sizes.resident)),
          others_(two_strips(machine, blocks, sizes.passing)),
          feed_(machine, blocks, sizes.passing, threads) {}

    // Tiles that a call of `use` has, at most.
    Index most() const {
        const Index tall = sizes_.resident / width_;
        return larger(tall * (sizes_.passing / width_), tall * (tall + 1) / 2);
    }

    // Calls use(pair, tiles) until every tile on and above the diagonal has come, those of a pair of strips row by row.
    template <class Use>
    void pass(const Use& use) {
        for (Index i0 = 0; i0 < n_; i0 += sizes_.resident) {
            const Index i1 = smaller(n_, i0 + sizes_.resident);
            feed_.send(home_, i0, i1);
            feed_.arrive(home_);
            use(Pair{home_, i0, home_, i0}, tiles(i0, i1, i0, i1));
            for (Index j0 = i1; j0 < n_; j0 += sizes_.passing) {
                const Index j1 = smaller(n_, j0 + sizes_.passing);
                Strip<M>& other = others_[turn_++ % others_.size()];
                feed_.send(other, j0, j1);
                feed_.arrive(other);
                use(Pair{home_, i0, other, j0}, tiles(i0, i1, j0, j1));
                feed_.leave(other);
            }
            feed_.leave(home_);
        }
    }

    // Calls use(strip, first, end) with all rows, one strip after another.
    template <class Use>
    void pass_rows(const Use& use) {
        pass_strips(machine_, feed_, others_, sizes_.passing, 1, use);
    }

    // use(strip) with all rows of other blocks of the same widths, for which the strip that stays has room: rows() of
    // it.
    template <class Use>
    void hold(const std::vector<BlockView>& few, const Use& use) {
        feed_.send(home_, few, 0, few.front().x.rows);
        feed_.arrive(home_);
        use(home_);
        feed_.leave(home_);
    }
    Index rows() const { return sizes_.resident; }

    // Makes row i of `rows` sample i, and says by how many bytes a sample of the tiles' columns lies elsewhere.
    Index lay(Operand& rows, const Pair& pair, Index block) const {
        const MatrixView x = pair.rows.view(feed_.blocks(), block, n_);
        const MatrixView y = pair.columns.view(feed_.blocks(), block, n_);
        rows.data = x.data - pair.i0 * x.row_stride;
        rows.row_stride = x.row_stride;
        rows.depth_stride = x.col_stride;
        return y.data - pair.j0 * y.row_stride - rows.data;
    }

  private:
    std::vector<TilePlace> tiles(Index i0, Index i1, Index j0, Index j1) const {
        std::vector<TilePlace> places;
        for (Index i = i0 / width_; i < pieces(i1, width_); ++i)
            for (Index j = larger(i, j0 / width_); j < pieces(j1, width_); ++j) places.push_back({i, j});
        return places;
    }

    M& machine_;
    Index n_, width_;
    TriangleRows sizes_;
    Strip<M> home_;
    std::array<Strip<M>, 2> others_;
    StripFeed<M> feed_;
    std::size_t turn_ = 0;
};

}  // namespace simkit::cuda
