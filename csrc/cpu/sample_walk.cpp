#include "cpu/sample_walk.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <type_traits>

#include "core/buffer.hpp"
#include "core/clones.hpp"
#include "core/panel.hpp"

namespace simkit {
namespace {

// The sum of a row, which is also added to the columns' sums.
template <class T>
[[gnu::always_inline]] inline double sum_row_body(const T* c, std::int64_t count, double* columns) {
    constexpr std::int64_t lanes = 16;
    double part[lanes] = {};
    std::int64_t j = 0;
    for (; j + lanes <= count; j += lanes)
        for (std::int64_t l = 0; l < lanes; ++l) {
            part[l] += c[j + l];
            columns[j + l] += c[j + l];
        }
    for (; j < count; ++j) {
        part[0] += c[j];
        columns[j] += c[j];
    }
    double sum = 0.0;
    for (double value : part) sum += value;
    return sum;
}
SIMKIT_CLONES double sum_row(const float* c, std::int64_t count, double* columns) {
    return sum_row_body(c, count, columns);
}
SIMKIT_CLONES double sum_row(const double* c, std::int64_t count, double* columns) {
    return sum_row_body(c, count, columns);
}

std::int64_t widest(const PairProblem& problem) {
    std::int64_t cols = 0;
    for (const BlockView& block : problem.blocks) cols = std::max(cols, block.x.cols);
    return cols;
}

struct Tile {
    std::int64_t i0, ti, j0, tj;
    bool diagonal() const { return i0 == j0; }
    std::int64_t size() const { return ti * tj; }
    // Elements that stand for two, and those of the diagonal behind them, which stand for themselves.
    std::int64_t twice() const { return diagonal() ? ti * (ti - 1) / 2 : size(); }
    std::int64_t once() const { return diagonal() ? ti : 0; }
};

// A symmetric tile [n, n] -> what lies above its diagonal, row by row, and then the diagonal.
template <class T>
void keep_half(T* c, std::int64_t n, std::vector<T>& diagonal) {
    diagonal.resize(n);
    T* to = c;
    for (std::int64_t i = 0; i < n; ++i) {
        diagonal[i] = c[i * n + i];
        std::copy(c + i * n + i + 1, c + (i + 1) * n, to);
        to += n - i - 1;
    }
    std::copy(diagonal.begin(), diagonal.end(), to);
}

// Tile number -> (I, J) with I < J, row by row, and then the diagonal: tiles that cost alike stand together, so that
// workers do not wait for one another when they commit in order.
Tile tile_at(std::int64_t t, std::int64_t n, std::int64_t side) {
    const std::int64_t tiles = (n + side - 1) / side, above = tiles * (tiles - 1) / 2;
    std::int64_t row = 0, column = t - above;
    if (t < above) {
        while (t >= tiles - 1 - row) t -= tiles - 1 - row++;
        column = row + 1 + t;
    } else {
        row = column;
    }
    const std::int64_t i0 = row * side, j0 = column * side;
    return {i0, std::min(n, i0 + side) - i0, j0, std::min(n, j0 + side) - j0};
}

std::int64_t tile_count(const PairProblem& problem) {
    const std::int64_t tiles = (problem.n() + problem.tile - 1) / problem.tile;
    return tiles * (tiles + 1) / 2;
}

// What one tile of one block adds to its sums.
struct BlockSums {
    double trace = 0.0, squares = 0.0;
    std::optional<KernelOutOfRange> bad{};
};

// One worker's way from a block to its tile of K.
template <class T>
class Blocks {
  public:
    Blocks(const PairProblem& problem, const std::vector<Centre>& centres)
        : problem_(problem), centres_(centres), strips_(problem.tile, widest(problem)) {}

    // c [twice + once] = K less its centre; rows [ti] and columns [tj] its sums. next: the block that comes afterwards.
    BlockSums fill(const Tile& tile, std::int64_t b, std::int64_t next, T* c, double* rows, double* columns,
                   const std::function<void()>& pause) {
        const BlockView& block = problem_.blocks[b];
        BlockSums sums;
        product_tile(block, tile.i0, tile.ti, block, tile.j0, tile.tj, tile.diagonal(), strips_, c,
                     next < problem_.m() ? &problem_.blocks[next] : nullptr, pause);
        if constexpr (std::is_same_v<T, double>) finish_kernel(tile, b, c, sums);
        for (std::int64_t i = 0; tile.diagonal() && i < tile.ti; ++i) {
            const double own = c[i * tile.tj + i] + centres_[b].of_diagonal(tile.i0 + i);
            sums.trace += std::fabs(own);
            sums.squares += own * own;
            if (problem_.debiased) c[i * tile.tj + i] = T(0);
        }
        std::fill_n(columns, tile.tj, 0.0);
        for (std::int64_t i = 0; i < tile.ti; ++i) rows[i] = sum_row(c + i * tile.tj, tile.tj, columns);
        if (tile.diagonal()) keep_half(c, tile.ti, diagonal_);
        return sums;
    }

  private:
    void finish_kernel(const Tile& tile, std::int64_t b, double* c, BlockSums& sums) {
        const BlockView& block = problem_.blocks[b];
        const Centre& centre = centres_[b];
        if (block.kernel == Kernel::custom)
            finish_custom(tile, b, c, sums);
        else if (needs_distances(block.kernel))
            distances_from_products(block, block, centre.norms.data(), tile.i0, tile.ti, tile.j0, tile.tj, 1, c);
        apply_kernel(block, c, tile.size());
        if (centre.means.empty()) return;
        for (std::int64_t i = 0; i < tile.ti; ++i) {
            const double own = centre.means[tile.i0 + i] - centre.mean;
            for (std::int64_t j = 0; j < tile.tj; ++j) c[i * tile.tj + j] -= own + centre.means[tile.j0 + j];
        }
    }

    void finish_custom(const Tile& tile, std::int64_t b, double* c, BlockSums& sums) {
        const BlockView& block = problem_.blocks[b];
        const Centre& centre = centres_[b];
        const std::int64_t k = apply_custom(block, centre.norms.data(), centre.no_shift(), tile.i0, tile.ti, block,
                                            tile.j0, tile.tj, 1, tile.diagonal(), strips_, arguments_, c);
        sums.bad = out_of_range(b, arguments_, c, k);
    }

    const PairProblem& problem_;
    const std::vector<Centre>& centres_;
    PackedStrips<T> strips_;
    Arguments arguments_;
    std::vector<T> diagonal_;
};

void add_sums(const PairProblem& problem, const Tile& tile, std::int64_t b, const BlockSums& own, const double* rows,
              const double* columns, Sums& sums) {
    sums.traces[b] += own.trace;
    sums.squares[b] += own.squares;
    double* r = sums.r.data() + b * problem.n();
    for (std::int64_t i = 0; i < tile.ti; ++i) r[tile.i0 + i] += rows[i];
    if (!tile.diagonal())
        for (std::int64_t j = 0; j < tile.tj; ++j) r[tile.j0 + j] += columns[j];
}

// A worker takes a tile of all blocks, on a panel of its own.
template <class T>
class TileWorker {
  public:
    TileWorker(const PairProblem& problem, const std::vector<Centre>& centres, Sums& sums)
        : problem_(problem),
          sums_(sums),
          m_(problem.m()),
          blocks_(problem, centres),
          panel_(m_ * problem.tile * problem.tile),
          panel_gram_(m_, problem.symmetric() ? 0 : problem.left),
          gram_(m_ * m_),
          rows_(m_ * problem.tile),
          columns_(m_ * problem.tile),
          own_(m_) {}

    template <class Pause>
    void work(std::int64_t t, const Pause& pause) {
        tile_ = tile_at(t, problem_.n(), problem_.tile);
        for (std::int64_t b = 0; b < m_; ++b)
            own_[b] = blocks_.fill(tile_, b, b + 1, panel_.data() + b * tile_.size(), rows_.data() + b * problem_.tile,
                                   columns_.data() + b * problem_.tile, std::ref(pause));
        std::fill(gram_.begin(), gram_.end(), 0.0);
        panel_gram_.add(panel_.data(), tile_.size(), tile_.twice(), gram_.data());
        for (double& sum : gram_) sum *= 2.0;
        panel_gram_.add(panel_.data() + tile_.twice(), tile_.size(), tile_.once(), gram_.data());
    }

    void commit(std::int64_t) {
        for (const BlockSums& own : own_)
            if (own.bad) throw *own.bad;
        for (std::size_t k = 0; k < gram_.size(); ++k) sums_.p[k] += gram_[k];
        for (std::int64_t b = 0; b < m_; ++b)
            add_sums(problem_, tile_, b, own_[b], rows_.data() + b * problem_.tile, columns_.data() + b * problem_.tile,
                     sums_);
    }

  private:
    const PairProblem& problem_;
    Sums& sums_;
    std::int64_t m_;
    Blocks<T> blocks_;
    Buffer<T> panel_;
    PanelGram<T> panel_gram_;
    std::vector<double> gram_, rows_, columns_;
    std::vector<BlockSums> own_;
    Tile tile_{};
};

// All workers on one tile: first its blocks, which touch nothing of one another, then pieces of its panel.
template <class T>
class SharedTile {
  public:
    SharedTile(const PairProblem& problem, const std::vector<Centre>& centres, Sums& sums)
        : problem_(problem),
          centres_(centres),
          sums_(sums),
          m_(problem.m()),
          panel_(m_ * problem.tile * problem.tile),
          bad_(m_) {}

    void add(std::int64_t t, const Poll& poll) {
        tile_ = tile_at(t, problem_.n(), problem_.tile);
        for_each_tile(m_, problem_.threads, poll, [&] { return BlockWorker(*this); });
        for (const auto& bad : bad_)
            if (bad) throw *bad;
        for_each_tile(pieces() + tile_.diagonal(), problem_.threads, poll, [&] { return PieceWorker(*this); });
    }

  private:
    static constexpr std::int64_t kPieces = 8, kLeast = 512;  // elements of a piece

    // So long that the panel of a whole tile makes eight, whatever the workers.
    std::int64_t piece() const { return std::max(kLeast, round_up(problem_.tile * problem_.tile / kPieces, kLeast)); }
    std::int64_t pieces() const { return (tile_.twice() + piece() - 1) / piece(); }

    struct BlockWorker {
        explicit BlockWorker(SharedTile& shared)
            : s(shared), blocks(s.problem_, s.centres_), rows(s.problem_.tile), columns(s.problem_.tile) {}
        template <class Pause>
        void work(std::int64_t b, const Pause& pause) {
            const BlockSums own = blocks.fill(s.tile_, b, b + s.problem_.threads, s.panel_.data() + b * s.tile_.size(),
                                              rows.data(), columns.data(), std::ref(pause));
            s.bad_[b] = own.bad;
            add_sums(s.problem_, s.tile_, b, own, rows.data(), columns.data(), s.sums_);
        }
        SharedTile& s;
        Blocks<T> blocks;
        std::vector<double> rows, columns;
    };

    struct PieceWorker {
        explicit PieceWorker(SharedTile& shared)
            : s(shared), panel_gram(s.m_, s.problem_.symmetric() ? 0 : s.problem_.left), gram(s.m_ * s.m_) {}
        void work(std::int64_t number) {
            const bool twice = number < s.pieces();
            const std::int64_t from = twice ? number * s.piece() : s.tile_.twice();
            const std::int64_t count = twice ? std::min(s.piece(), s.tile_.twice() - from) : s.tile_.once();
            weight = twice ? 2.0 : 1.0;
            std::fill(gram.begin(), gram.end(), 0.0);
            panel_gram.add(s.panel_.data() + from, s.tile_.size(), count, gram.data());
        }
        void commit(std::int64_t) {
            for (std::size_t k = 0; k < gram.size(); ++k) s.sums_.p[k] += weight * gram[k];
        }
        SharedTile& s;
        double weight = 0.0;
        PanelGram<T> panel_gram;
        std::vector<double> gram;
    };

    const PairProblem& problem_;
    const std::vector<Centre>& centres_;
    Sums& sums_;
    std::int64_t m_;
    Buffer<T> panel_;
    std::vector<std::optional<KernelOutOfRange>> bad_;
    Tile tile_{};
};

}  // namespace

template <class T>
Sums walk(const PairProblem& problem, const std::vector<Centre>& centres, const Poll& poll) {
    Sums sums(problem.m(), problem.n());
    if (!problem.shared) {
        for_each_tile(tile_count(problem), problem.threads, poll,
                      [&] { return TileWorker<T>(problem, centres, sums); });
        return sums;
    }
    SharedTile<T> tile(problem, centres, sums);
    for (std::int64_t t = 0; t < tile_count(problem); ++t) {
        tile.add(t, poll);
        if (poll) poll();
    }
    return sums;
}

template Sums walk<float>(const PairProblem&, const std::vector<Centre>&, const Poll&);
template Sums walk<double>(const PairProblem&, const std::vector<Centre>&, const Poll&);

}  // namespace simkit
