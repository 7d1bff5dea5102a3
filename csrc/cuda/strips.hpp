// Matrices on the host -> strips of rows on any machine (cuda/machine.hpp), while programs run on those before.
//
// Rows are brought into one of two pieces of pinned memory, row-major whatever their layout, and copied from there on
// the second queue. Four waits keep the two queues and the host apart:
//   the host fills a piece when the copies from it are done,
//   copies into a strip wait until it is allocated and the programs that read it are done,
//   programs wait for the copies into their strip.
#pragma once

#include <array>
#include <cstring>
#include <vector>

#include "core/pack.hpp"
#include "core/tiles.hpp"
#include "cuda/columns.hpp"
#include "cuda/machine.hpp"
#include "cuda/placed.hpp"

namespace simkit::cuda {

// Where the rows of blocks lie in a strip of so many: block by block, row-major, then its row weights.
class StripLayout {
  public:
    StripLayout(const std::vector<BlockView>& blocks, Index rows) : rows_(rows) {
        for (const BlockView& block : blocks) {
            values_.push_back(bytes_);
            bytes_ += padded(rows * row_bytes(block.x));
            weights_.push_back(bytes_);
            if (block.row_scale) bytes_ += padded(rows * static_cast<Index>(sizeof(double)));
        }
    }
    Index rows() const { return rows_; }
    Index bytes() const { return bytes_; }
    Index values(Index block) const { return values_[block]; }
    Index weights(Index block) const { return weights_[block]; }

    static Index row_bytes(const MatrixView& x) { return x.cols * item_size(x.dtype); }

  private:
    static Index padded(Index bytes) { return pieces(bytes, 256) * 256; }

    Index rows_, bytes_ = 0;
    std::vector<Index> values_, weights_;
};

// Columns that are not neighbours: squares of both, so that a line of either side is touched once.
template <class Item>
void gather_rows(const MatrixView& x, Index first, Index end, std::byte* to) {
    constexpr Index side = 64;
    for (Index k0 = 0; k0 < x.cols; k0 += side)
        for (Index i = first; i < end; ++i) {
            const std::byte* from = x.data + i * x.row_stride;
            std::byte* row = to + (i - first) * x.cols * static_cast<Index>(sizeof(Item));
            for (Index k = k0; k < smaller(x.cols, k0 + side); ++k)
                std::memcpy(row + k * sizeof(Item), from + k * x.col_stride, sizeof(Item));
        }
}

// Rows [first, end) of x, row-major.
inline void bring_rows(const MatrixView& x, Index first, Index end, std::byte* to) {
    const Index item = item_size(x.dtype), row = StripLayout::row_bytes(x);
    if (x.col_stride == item && x.row_stride == row) {
        std::memcpy(to, x.data + first * row, (end - first) * row);
    } else if (x.col_stride == item) {
        for (Index i = first; i < end; ++i) std::memcpy(to + (i - first) * row, x.data + i * x.row_stride, row);
    } else if (item == 8) {
        gather_rows<std::uint64_t>(x, first, end, to);
    } else if (item == 4) {
        gather_rows<std::uint32_t>(x, first, end, to);
    } else {
        gather_rows<std::uint16_t>(x, first, end, to);
    }
}

// Rows of all blocks on a machine.
template <class M>
struct Strip {
    StripLayout layout;
    typename M::template Array<std::byte> memory;
    typename M::Event arrived, left;

    MatrixView view(const std::vector<BlockView>& blocks, Index block, Index rows) const {
        MatrixView x = blocks[block].x;
        x.data = memory.data() + layout.values(block);
        x.rows = rows;
        x.row_stride = StripLayout::row_bytes(x);
        x.col_stride = item_size(x.dtype);
        x.mapped = false;
        return x;
    }
    // The block's row weights in the strip; null where it has none.
    const double* weights(const std::vector<BlockView>& blocks, Index block) const {
        if (!blocks[block].row_scale) return nullptr;
        return reinterpret_cast<const double*>(memory.data() + layout.weights(block));
    }
};

// One for so many rows. Strips are made before their feed: at its end no copy is on its way.
template <class M>
Strip<M> strip_of(M& machine, const std::vector<BlockView>& blocks, Index rows) {
    StripLayout layout(blocks, rows);
    auto memory = machine.template array<std::byte>(layout.bytes());
    Strip<M> made{std::move(layout), std::move(memory), machine.event(), machine.event()};
    machine.record(made.left, Queue::work);  // before this it is not allocated
    return made;
}
template <class M>
std::array<Strip<M>, 2> two_strips(M& machine, const std::vector<BlockView>& blocks, Index rows) {
    return {strip_of(machine, blocks, rows), strip_of(machine, blocks, rows)};
}

template <class M>
class StripFeed {
  public:
    // So many rows of the blocks, which lie on the host, go into one piece of pinned memory.
    StripFeed(M& machine, std::vector<BlockView> blocks, Index rows, int threads)
        : machine_(machine),
          blocks_(std::move(blocks)),
          layout_(blocks_, rows),
          threads_(threads),
          pieces_{Piece{machine.pinned(layout_.bytes()), machine.event()},
                  Piece{machine.pinned(layout_.bytes()), machine.event()}} {}

    const std::vector<BlockView>& blocks() const { return blocks_; }

    // Puts rows [first, end) of the blocks on their way to the beginning of the strip.
    void send(Strip<M>& to, Index first, Index end) { send(to, blocks_, first, end); }

    // The same of other blocks of the same widths.
    void send(Strip<M>& to, const std::vector<BlockView>& blocks, Index first, Index end) {
        machine_.wait(Queue::copies, to.left);
        for (Index i = first; i < end; i += layout_.rows()) {
            Piece& piece = pieces_[turn_++ % pieces_.size()];
            const Index rows = smaller(layout_.rows(), end - i);
            machine_.wait(piece.copied);
            bring(blocks, i, rows, piece.memory.data());
            copy(to, i - first, rows, piece);
            machine_.record(piece.copied, Queue::copies);
        }
        machine_.record(to.arrived, Queue::copies);
    }

    // What is run from here on may read the strip, until it leaves.
    void arrive(const Strip<M>& strip) { machine_.wait(Queue::work, strip.arrived); }
    void leave(Strip<M>& strip) { machine_.record(strip.left, Queue::work); }

  private:
    struct Piece {
        typename M::Pinned memory;
        typename M::Event copied;
    };
    static constexpr Index kRows = 64;  // that a thread brings at a time

    void bring(const std::vector<BlockView>& blocks, Index first, Index rows, std::byte* to) const {
        struct Worker {
            const StripFeed& feed;
            const std::vector<BlockView>& blocks;
            Index first, rows;
            std::byte* to;
            void work(Index t) const {
                const Index parts = simkit::cuda::pieces(rows, kRows), b = t / parts, i = t % parts * kRows;
                const Index end = smaller(rows, i + kRows);
                const BlockView& block = blocks[b];
                bring_rows(block.x, first + i, first + end,
                           to + feed.layout_.values(b) + i * StripLayout::row_bytes(block.x));
                if (block.row_scale)
                    std::memcpy(to + feed.layout_.weights(b) + i * sizeof(double), block.row_scale + first + i,
                                (end - i) * sizeof(double));
            }
        };
        const Index tasks = static_cast<Index>(blocks.size()) * simkit::cuda::pieces(rows, kRows);
        for_each_tile(tasks, threads_, {}, [&] { return Worker{*this, blocks, first, rows, to}; });
    }

    void copy(Strip<M>& to, Index at, Index rows, const Piece& from) {
        for (Index b = 0; b < static_cast<Index>(blocks_.size()); ++b) {
            const Index row = StripLayout::row_bytes(blocks_[b].x), weight = sizeof(double);
            machine_.copy(to.memory, to.layout.values(b) + at * row, from.memory, layout_.values(b), rows * row);
            if (blocks_[b].row_scale)
                machine_.copy(to.memory, to.layout.weights(b) + at * weight, from.memory, layout_.weights(b),
                              rows * weight);
        }
    }

    M& machine_;
    std::vector<BlockView> blocks_;
    StripLayout layout_;
    int threads_;
    std::array<Piece, 2> pieces_;
    std::size_t turn_ = 0;
};

// Whole chunks of rows, about as many as are wanted, at least one and no more than there are.
inline Index whole_chunks(Index wanted, Index chunk, Index rows) {
    return smaller(larger(1, wanted / chunk), pieces(rows, chunk)) * chunk;
}

// Calls use(strip, first, end) with strips of rows of the feed, which arrive one after another: `rows` each, of those
// that begin a group no more than the group has.
template <class M, class Use>
void pass_strips(M& machine, StripFeed<M>& feed, std::array<Strip<M>, 2>& strips, Index rows, Index group,
                 const Use& use) {
    const Index n = feed.blocks().front().x.rows;
    std::size_t turn = 0;
    for (Index first = 0, end; first < n; first = end) {
        end = smaller(n, first + rows);
        if (rows < group) end = smaller(end, (first / group + 1) * group);
        Strip<M>& strip = strips[turn++ % strips.size()];
        feed.send(strip, first, end);
        feed.arrive(strip);
        use(strip, first, end);
        feed.leave(strip);
        machine.pause();
    }
}

// The statistics of columns, whose rows come in strips: the parts of one join what is there, in their order; `first` is
// the strip's first row. Program blocks: pieces(cols, kThreads).
struct JoinStrip {
    static constexpr int kThreads = 128, kResident = 1;
    struct Shared {};
    struct Registers {};

    const Column* parts;
    Index cols, count, first;
    Column* out;

    SIMKIT_BOTH bool step(Index number, int thread, int, Shared&, Registers&) const {
        const Index column = number * kThreads + thread;
        if (column >= cols) return false;
        Column sum = first > 0 ? out[column] : parts[column];
        for (Index part = first > 0 ? 0 : 1; part < count; ++part) {
            Column more = parts[part * cols + column];
            if (more.first >= 0) more.first += first;
            join(sum, more);
        }
        out[column] = sum;
        return false;
    }
};

// The origins of a band of columns, and their sums over all rows.
template <class M>
void pass_columns(M& machine, const MatrixView& x, const double* row_scale, const Strips& strips, double* origins,
                  Column* columns) {
    const Index rows = whole_chunks(strips.passing, ColumnParts::kRows, x.rows), most = rows / ColumnParts::kRows;
    const BlockView block{x, nullptr, row_scale, 1.0, Kernel::linear, 0.0, 0.0, 1, nullptr};
    auto origin = machine.template array<double>(x.cols);
    auto parts = machine.template array<Column>(most * x.cols);
    auto joined = machine.template array<Column>(x.cols);
    auto pair = two_strips(machine, {block}, rows);
    StripFeed<M> feed(machine, {block}, rows, strips.threads);

    // The rows of the pilot, side by side.
    BlockView few = block;
    few.x.rows = smaller(x.rows, PilotMeans::kRows);
    const Index each = x.rows / few.x.rows;
    few.x.row_stride *= each;
    std::vector<double> weights;
    for (Index i = 0; row_scale && i < few.x.rows; ++i) weights.push_back(row_scale[i * each]);
    if (row_scale) few.row_scale = weights.data();
    feed.send(pair[1], {few}, 0, few.x.rows);
    feed.arrive(pair[1]);
    machine.run(PilotMeans{pair[1].view({few}, 0, few.x.rows), pair[1].weights({few}, 0), origin.data()},
                pieces(x.cols, PilotMeans::kThreads));
    feed.leave(pair[1]);

    pass_strips(machine, feed, pair, rows, 1, [&](const Strip<M>& strip, Index first, Index end) {
        const Index count = pieces(end - first, ColumnParts::kRows);
        const PilotMeans values{strip.view(feed.blocks(), 0, end - first), strip.weights(feed.blocks(), 0),
                                origin.data()};
        machine.run(ColumnParts{values, parts.data()}, pieces(x.cols, ColumnParts::kColumns) * count);
        machine.run(JoinStrip{parts.data(), x.cols, count, first, joined.data()}, pieces(x.cols, JoinStrip::kThreads));
    });
    machine.fetch(origins, origin, x.cols);
    machine.fetch(columns, joined, x.cols);
}

// As column_stats of a matrix on the machine, the same bits; x and row_scale lie on the host. Where strips.bytes do not
// hold two strips of all columns, these pass in bands.
template <class M>
ColumnStats column_stats(M& machine, const MatrixView& x, const double* row_scale, const Strips& strips) {
    const Index fitting = strips.bytes / (2 * ColumnParts::kRows * item_size(x.dtype));
    const Index width = smaller(x.cols, larger(ColumnParts::kColumns, fitting));
    std::vector<double> origins(x.cols);
    std::vector<Column> columns(x.cols);
    for (Index k = 0; k < x.cols; k += width) {
        MatrixView band = x;
        band.data += k * x.col_stride;
        band.cols = smaller(width, x.cols - k);
        pass_columns(machine, band, row_scale, strips, origins.data() + k, columns.data() + k);
    }
    return stats_of(std::move(origins), columns, x.rows);
}

// As row_norms of a matrix on the machine, the same bits; the block lies on the host.
template <class M>
std::vector<double> row_norms(M& machine, const BlockView& block, const Strips& strips) {
    const MatrixView& x = block.x;
    const Index rows = whole_chunks(strips.passing, RowNorms::kRows, x.rows);
    auto norms = machine.template array<double>(x.rows);
    const auto shift = sent(machine, std::vector<double>(block.shift, block.shift + x.cols));
    auto pair = two_strips(machine, {block}, rows);
    StripFeed<M> feed(machine, {block}, rows, strips.threads);
    pass_strips(machine, feed, pair, rows, 1, [&](const Strip<M>& strip, Index first, Index end) {
        PlacedBlock here{block, nullptr, false, block.shift};
        here.view.x = strip.view(feed.blocks(), 0, end - first);
        here.view.shift = shift.data();
        here.view.row_scale = strip.weights(feed.blocks(), 0);
        machine.run(RowNorms{samples_of(here, false), norms.data() + first}, pieces(end - first, RowNorms::kRows));
    });
    return fetched<M, double>(machine, norms, x.rows);
}

}  // namespace simkit::cuda
