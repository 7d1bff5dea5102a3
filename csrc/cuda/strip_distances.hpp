// The median of all squared distances of a matrix on the host, in strips (cuda/strips.hpp): the bits of distances.hpp.
#pragma once

#include <vector>

#include "cuda/distances.hpp"
#include "cuda/strip_problem.hpp"
#include "cuda/strip_triangle.hpp"

namespace simkit::cuda {

// As RowsThere, of a block without row weights. All rows pass once for their norms, and by pairs in every pass.
template <class M>
class RowsInStrips {
  public:
    RowsInStrips(M& machine, const BlockView& block, const Strips& strips)
        : machine_(machine),
          problem_(machine, {{block}, 1, false, true, 0, 1, false}, 0, true),
          norms_(machine.template array<double>(block.x.rows)),
          triangle_(machine, problem_.on_host(), DistanceTile::kWidth, {strips, DistanceTile::kWidth, block.x.rows},
                    strips.threads) {
        triangle_.pass_rows([&](const Strip<M>& strip, Index first, Index end) {
            machine_.run(RowNorms{rows_in(strip, end - first), norms_.data() + first},
                         pieces(end - first, RowNorms::kRows));
        });
    }

    Index count() const { return problem_.on_host().front().x.rows; }
    Index most() const { return triangle_.most(); }

    template <class Use>
    void pass(const Use& use) {
        Operand rows = samples_of(problem_.placed().blocks.front(), false);
        triangle_.pass([&](const typename StripTriangle<M>::Pair& pair, const std::vector<TilePlace>& places) {
            const Index across = triangle_.lay(rows, pair, 0);
            const auto tiles = sent(machine_, places);
            use(DistanceTile{rows, norms_.data(), tiles.data(), across}, static_cast<Index>(places.size()));
        });
    }

    std::vector<double> sample(Index room) {
        BlockView few = problem_.on_host().front();
        few.x = sampled_rows(few.x, triangle_.rows());
        std::vector<double> found;
        triangle_.hold(
            {few}, [&](const Strip<M>& strip) { found = distances_of(machine_, rows_in(strip, few.x.rows), room); });
        return found;
    }

  private:
    Operand rows_in(const Strip<M>& strip, Index rows) const {
        return samples_of(problem_.in(strip, rows).blocks.front(), false);
    }

    M& machine_;
    StripProblem<M> problem_;
    typename M::template Array<double> norms_;
    StripTriangle<M> triangle_;
};

// As distance_median of a matrix on the machine; half of the workspace is for tiles, half for what is collected.
constexpr Index kLeastCollected = Index{1} << 15;
template <class M>
double distance_median(M& machine, const BlockView& block, const Strips& strips) {
    const Index half = strips.bytes / 2, most = smaller(kMostCollected, larger(kLeastCollected, half / 8));
    return median_of(machine, block.x.rows, [&] { return RowsInStrips<M>(machine, block, strips); }, most, half);
}

}  // namespace simkit::cuda
