// Tiles of pairs of samples, and what a worker's tile adds to the sums of every candidate.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/accumulate.hpp"
#include "cpu/candidate_pass.hpp"
#include "ops/candidates.hpp"

namespace simkit {

struct CandidateTile {
    std::int64_t i0, i1, j0, j1;
    std::int64_t at;  // of its first element in the packed L
    bool diagonal() const { return i0 == j0; }
    // Columns below the diagonal in row i.
    std::int64_t count(std::int64_t i) const { return diagonal() ? i - j0 : j1 - j0; }
};

// Tiles (I, J), J < I, row by row, then those on the diagonal, which cost half: committed in their order, they would
// wait for whole ones.
inline CandidateTile tile_at(std::int64_t t, std::int64_t n) {
    const std::int64_t strips = (n + kCandidateTile - 1) / kCandidateTile, below = strips * (strips - 1) / 2;
    std::int64_t row = t - below, column = row;
    if (t < below)
        for (row = 1, column = t; column >= row; ++row) column -= row;
    CandidateTile tile{row * kCandidateTile, std::min(n, (row + 1) * kCandidateTile), column * kCandidateTile,
                       std::min(n, (column + 1) * kCandidateTile), 0};
    tile.at = row * (row + 1) / 2 * kCandidateTile * kCandidateTile + (tile.i1 - tile.i0) * tile.j0;
    return tile;
}

inline std::int64_t tile_count(std::int64_t n) {
    const std::int64_t tiles = (n + kCandidateTile - 1) / kCandidateTile;
    return tiles * (tiles + 1) / 2;
}

// Rows of z.
inline std::vector<std::int64_t> rows_of(const std::vector<std::int64_t>& offsets,
                                         const std::vector<std::int64_t>& units) {
    std::vector<std::int64_t> rows;
    for (std::int64_t unit : units)
        for (std::int64_t r = offsets[unit]; r < offsets[unit + 1]; ++r) rows.push_back(r);
    return rows;
}

inline std::vector<std::int64_t> all_rows(const std::vector<std::int64_t>& offsets) {
    std::vector<std::int64_t> rows(offsets.back());
    for (std::size_t r = 0; r < rows.size(); ++r) rows[r] = static_cast<std::int64_t>(r);
    return rows;
}

// What is taken off f in rows i0 <= i < i1 and `count` columns from j0 on; leading dimension kCandidateTile.
template <class T>
void level_rows(const T* levels, std::int64_t i0, std::int64_t i1, std::int64_t j0, std::int64_t count, T* out) {
    for (std::int64_t i = i0; i < i1; ++i, out += kCandidateTile)
        for (std::int64_t j = 0; j < count; ++j) out[j] = levels[i] + levels[j0 + j];
}

// Whether what is left of `most` has lost its digits and must be formed again: nothing is left of what is beyond T.
template <class T>
[[gnu::always_inline]] inline bool cancelled(T left, T most, T share) {
    return !(left >= share * most) | !(most <= std::numeric_limits<T>::max());
}

template <class T>
class TileSums {
  public:
    explicit TileSums(std::size_t candidates)
        : columns_(candidates * kCandidateTile),
          row_sums_(candidates * kCandidateTile),
          cross_(candidates),
          squares_(candidates) {}

    void clear() {
        for (auto* sums : {&cross_, &squares_, &row_sums_}) std::fill(sums->begin(), sums->end(), 0.0);
        std::fill(columns_.begin(), columns_.end(), T(0));
    }

    // The strip of candidate k whose first row is number `row` of the tile.
    void begin(std::size_t k, std::int64_t row, Strip<T>& s) {
        s.columns = columns_.data() + k * kCandidateTile;
        s.row_sums = row_sums_.data() + k * kCandidateTile + row;
    }

    void end(std::size_t k, const Strip<T>& s) {
        cross_[k] += s.cross;
        squares_[k] += s.squares;
    }

    void commit(const CandidateTile& tile, std::int64_t n, CandidateSums& out) const {
        for (std::size_t k = 0; k < cross_.size(); ++k) {
            out.cross[k] += 2.0 * cross_[k];
            out.squares[k] += 2.0 * squares_[k];
            double* rows = out.rows.data() + static_cast<std::int64_t>(k) * n;
            add_to(row_sums_.data() + k * kCandidateTile, rows + tile.i0, tile.i1 - tile.i0);
            add_to(columns_.data() + k * kCandidateTile, rows + tile.j0, tile.j1 - tile.j0);
        }
    }

  private:
    std::vector<T> columns_;
    std::vector<double> row_sums_, cross_, squares_;
};

}  // namespace simkit
