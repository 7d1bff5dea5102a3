// Moments of a stream, on any machine (cuda/machine.hpp), in memory that outlives it: ops/moments.hpp says what lies
// there.
//
// Round trips. A batch costs one for the check that its entries are finite (`largest_entries`), and where it completes
// a block one for the norms of the rows of all the blocks that it completes, 16 bytes a row and layer: with them the
// host finds the rows to keep apart and sees whether the units hold. Products and sums are then put on the stream and
// nobody waits. A row that is kept apart costs one more; units that fail, the first block's among them, bring the sums
// to the host and back.
//
// Bytes and operations of a block of 512 rows, P columns in all, p and q of the two sides, w of a layer, s bytes an
// element: StreamRows reads P s 512 and writes 8 P 512; AddWeighted reads 8 P 512 for every six weights, which are 1,
// the layer's own norm and those of the other side's layers; AddCross reads its columns once for every 64 of the other
// side, 8 (2 p q / 64) 512 from the second-level cache, reads and writes 16 (p q + sum w^2 / 2), and does 512 (p q +
// sum w^2 / 2) float64 multiply-adds. An H200 at 34 TFLOP/s and 4.8 TB/s: p = q = 1024 in layers of 256, 0.54 + 0.13 G
// multiply-adds, 40 us, and 21 MB to and from sums that stay in the cache; p = q = 4096 in layers of 1024, 8.6 + 2.1 G,
// 630 us, and 340 MB, 70 us, beside them. Tensor cores take half of that, so that squares of 64 columns leave the
// second-level cache as the limit, at 5.5 TB/s 30 and 490 us; of 128 they would need more shared memory than 48 KB.
#pragma once

#include <string>
#include <type_traits>
#include <vector>

#include "cuda/machine.hpp"
#include "cuda/tensor_product.hpp"
#include "ops/moments.hpp"

namespace simkit::cuda {

// z [rows, columns] = (x - shift) scale of the rows of several raw layers side by side, or x where there is no shift,
// and norms [rows, 2, layers], where they are wanted: the sum of the squares and the largest |z|. kLanes threads a row
// of a layer, whose sums join in their order; float64. Program blocks [pieces(rows, kRows), layers].
struct StreamRows {
    static constexpr int kRows = 8, kLanes = 32, kThreads = kRows * kLanes, kResident = 4;
    struct Shared {
        double squares[kRows][kLanes + 1], tops[kRows][kLanes + 1];
    };
    struct Registers {};

    const MatrixView* layers;  // [count]
    const Index* offsets;      // [count + 1], of their columns
    Index count, first, rows, columns;
    const double *shift, *scale;  // [columns], or null
    double *z, *norms;            // norms: or null

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers&) const {
        const Index layer = number % count;
        const int row = thread / kLanes, lane = thread % kLanes;
        const Index i = number / count * kRows + row;
        if (k == 0) {
            double square = 0.0, top = 0.0;
            if (i < rows) move(layer, i, lane, square, top);
            shared.squares[row][lane] = square;
            shared.tops[row][lane] = top;
            return norms != nullptr;
        }
        if (lane > 0 || i >= rows) return false;
        double square = 0.0, top = 0.0;
        for (int other = 0; other < kLanes; ++other) {
            square += shared.squares[row][other];
            top = larger(top, shared.tops[row][other]);
        }
        norms[2 * i * count + layer] = square;
        norms[(2 * i + 1) * count + layer] = top;
        return false;
    }

    SIMKIT_BOTH void move(Index layer, Index i, int lane, double& square, double& top) const {
        const MatrixView& x = layers[layer];
        const std::byte* from = x.data + (first + i) * x.row_stride;
        const Index at = offsets[layer];
        double* to = z + i * columns + at;
        for (Index c = lane; c < x.cols; c += kLanes) {
            double value = wide_value(from + c * x.col_stride, x.dtype);
            if (shift) value = (value - shift[at + c]) * scale[at + c];
            to[c] = value;
            square += value * value;
            top = larger(top, value < 0.0 ? -value : value);
        }
    }
};

// taken [count, columns] = rows of z, which are zeros from then on, as their norms. Program blocks: one a row.
struct TakeRows {
    static constexpr int kThreads = 256, kResident = 4;
    struct Shared {};
    struct Registers {};

    const Index* rows;
    Index columns, norms_of_row;
    double *z, *norms, *taken;

    SIMKIT_BOTH bool step(Index number, int thread, int, Shared&, Registers&) const {
        double* row = z + rows[number] * columns;
        for (Index c = thread; c < columns; c += kThreads) {
            taken[number * columns + c] = row[c];
            row[c] = 0.0;
        }
        for (Index l = thread; l < norms_of_row; l += kThreads) norms[rows[number] * norms_of_row + l] = 0.0;
        return false;
    }
};

// Columns of z as the rows of an operand.
struct MomentColumns {
    const double* z;  // [depth, leading]
    Index rows, depth, leading;

    SIMKIT_BOTH bool deep() const { return false; }

    template <class T>
    SIMKIT_BOTH T element(Index r, Index k) const {
        return z[k * leading + r];
    }
};

// Columns [i0, i1) by [j0, j1) of z, whose products go to `to`; upper: only on and above the diagonal, i0 being j0.
struct CrossTile {
    Index i0, i1, j0, j1, to, leading;
    bool upper;
};
static_assert(kSentAs<CrossTile, 56> && offsetof(CrossTile, upper) == 48);

// sums += Z_i^T Z_j, one square a program block: the rows of a block of kMomentBlock one after another, in registers,
// and block after block to the sum, so that it matters to no bit how many blocks a launch adds.
template <bool Tensor>
struct AddCross {
    static constexpr int R = 4;
    using Tile = ProductOn<Tensor, double, R, false, MomentColumns>;
    static constexpr int kThreads = Tile::kThreads, kResident = 2, kWidth = Tile::kWidth;
    static constexpr int kBlockSlices = kMomentBlock / kSlice;
    static_assert(kMomentBlock % kSlice == 0, "a block is whole slices");
    using Shared = typename Tile::Slices;
    using Registers = typename Tile::Registers;

    const CrossTile* tiles;
    const double* z;  // [rows, columns]
    Index rows, columns;
    double* sums;

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers& registers) const {
        const CrossTile& square = tiles[number];
        const Tile tile{{z, square.i1, rows, columns}, {z, square.j1, rows, columns}, square.i0, square.j0, 0, rows};
        tile.step(k, thread, shared, registers);
        const int slices = tile.slices();
        if (k == 0) return true;
        if (k % kBlockSlices && k < slices) return true;
        add(square, thread, registers);
        Tile::clear(registers);
        return k < slices;
    }

    SIMKIT_BOTH void add(const CrossTile& square, int thread, const Registers& registers) const {
        SIMKIT_UNROLL
        for (int r = 0; r < R; ++r) {
            const int row = Tile::row(thread, r);
            SIMKIT_UNROLL
            for (int s = 0; s < R; ++s) {
                const int column = Tile::column(thread, s);
                const bool inside = square.i0 + row < square.i1 && square.j0 + column < square.j1;
                if (inside && (!square.upper || row <= column))
                    sums[square.to + row * square.leading + column] += registers.c[r][s];
            }
        }
    }
};

// Columns [first, end) of one layer; its rows are weighted by the norms of layers from `other` on, `others` of them,
// and the sums go to row 0, 1, ... of `to`, which is `leading` wide.
struct WeightedColumns {
    Index first, end, layer, other, others, to, leading;
};
static_assert(kSentAs<WeightedColumns, 56> && offsetof(WeightedColumns, leading) == 48);

// sum_z, sum_az and the sums of z weighted by the norms of other layers, in the order of the blocks; kLanes threads a
// column, whose sums join in their order; float64. Program blocks [chunks of kWeights weights, groups].
struct AddWeighted {
    static constexpr int kColumns = 32, kLanes = 16, kThreads = kColumns * kLanes, kResident = 2, kWeights = 6;
    struct Shared {
        double lanes[kLanes][kWeights][kColumns];
    };
    struct Registers {};

    const WeightedColumns* groups;
    Index count, rows, columns, layers;
    const double *z, *norms;
    double* sums;

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers&) const {
        const WeightedColumns& of = groups[number % count];
        const Index weight0 = number / count * kWeights, weights = 2 + of.others;
        if (weight0 >= weights) return false;
        const int lane = thread / kColumns, at = thread % kColumns;
        const Index begin = k / 2 * kMomentBlock, end = smaller(rows, begin + kMomentBlock), column = of.first + at;
        if (k % 2 == 0) {
            if (column < of.end) weigh(of, weight0, begin + lane, end, column, shared.lanes[lane], at);
            return true;
        }
        const Index weight = weight0 + lane;
        if (lane < kWeights && weight < weights && column < of.end) {
            double sum = 0.0;
            for (int other = 0; other < kLanes; ++other) sum += shared.lanes[other][lane][at];
            sums[place(of, weight, column)] += sum;
        }
        return end < rows;
    }

  private:
    SIMKIT_BOTH Index place(const WeightedColumns& of, Index weight, Index column) const {
        if (weight < 2) return weight * columns + column;
        return of.to + (weight - 2) * of.leading + column - of.first;
    }

    SIMKIT_BOTH void weigh(const WeightedColumns& of, Index weight0, Index i, Index end, Index column,
                           double (*out)[kColumns], int at) const {
        double sum[kWeights];
        int norm[kWeights];  // of the row; below 0 for a weight of 1
        SIMKIT_UNROLL
        for (int w = 0; w < kWeights; ++w) {
            const Index weight = smaller(weight0 + w, 1 + of.others);
            sum[w] = 0.0;
            norm[w] = static_cast<int>(weight == 0 ? -1 : weight == 1 ? of.layer : of.other + weight - 2);
        }
        for (; i < end; i += kLanes) {
            const double value = z[i * columns + column];
            const double* row = norms + 2 * i * layers;
            SIMKIT_UNROLL
            for (int w = 0; w < kWeights; ++w) sum[w] += norm[w] < 0 ? value : row[norm[w]] * value;
        }
        SIMKIT_UNROLL
        for (int w = 0; w < kWeights; ++w) out[w][at] = sum[w];
    }
};

// Where everything lies in one piece of memory, and what the programs are told about it.
class MomentLayout {
  public:
    MomentLayout(const std::vector<Index>& left, const std::vector<Index>& right, Index blocks) : blocks_(blocks) {
        for (const auto* widths : {&left, &right})
            for (const Index width : *widths) offsets_.push_back(offsets_.back() + width);
        layers_ = static_cast<Index>(left.size());
        p_ = offsets_[layers_];
        ay_ = 2 * columns();
        bx_ = ay_ + layers_ * q();
        cross_ = bx_ + (alone() ? 0 : others() * p_);
        count_ = cross_ + p_ * q();
        list_cross();
        list_weighted();
    }

    Index columns() const { return offsets_.back(); }
    Index layers() const { return static_cast<Index>(offsets_.size()) - 1; }
    Index room() const { return blocks_ * kMomentBlock; }
    Index count() const { return count_; }
    Index chunks() const { return pieces(2 + (alone() ? layers_ : larger(layers_, others())), AddWeighted::kWeights); }

    const std::vector<Index>& offsets() const { return offsets_; }
    const std::vector<CrossTile>& tiles() const { return tiles_; }
    const std::vector<WeightedColumns>& groups() const { return groups_; }

    // In doubles, from the start of the memory.
    Index shift() const { return 0; }
    Index scale() const { return columns(); }
    Index numbers() const { return scale() + columns(); }
    Index stage() const { return numbers() + count_; }
    Index z() const { return stage() + kMomentBlock * columns(); }
    Index norms() const { return z() + (room() + kMomentBlock) * columns(); }
    // In bytes.
    Index offsets_at() const { return 8 * (norms() + 2 * (room() + kMomentBlock) * layers()); }
    Index tiles_at() const { return offsets_at() + bytes_of(offsets_); }
    Index groups_at() const { return tiles_at() + bytes_of(tiles_); }
    Index bytes() const { return groups_at() + bytes_of(groups_); }

  private:
    template <class T>
    static Index bytes_of(const std::vector<T>& values) {
        static_assert(sizeof(T) % 8 == 0, "the next ones lie on whole words");
        return static_cast<Index>(values.size() * sizeof(T));
    }

    bool alone() const { return layers() == layers_; }
    Index others() const { return layers() - layers_; }
    Index q() const { return alone() ? p_ : columns() - p_; }

    // Columns [i0, i1) by [j0, j1), to a matrix `leading` wide whose first element is that of (i0, j0).
    void add_square(Index i0, Index i1, Index j0, Index j1, Index to, Index leading, bool own) {
        constexpr Index width = AddCross<false>::kWidth;
        for (Index i = i0; i < i1; i += width)
            for (Index j = own ? i : j0; j < j1; j += width)
                tiles_.push_back({i, smaller(i1, i + width), j, smaller(j1, j + width),
                                  to + (i - i0) * leading + j - j0, leading, own && i == j});
    }

    void list_cross() {
        if (alone()) return add_square(0, p_, 0, p_, cross_, p_, true);
        add_square(0, p_, p_, columns(), cross_, q(), false);
        for (Index l = 0; l < layers(); ++l) {
            const Index first = offsets_[l], end = offsets_[l + 1], width = end - first;
            add_square(first, end, first, end, count_, width, true);
            count_ += width * width;
        }
    }

    void list_weighted() {
        for (Index l = 0; l < layers(); ++l) {
            const bool left = l < layers_;
            const Index other = alone() || !left ? 0 : layers_, others_of = alone() || !left ? layers_ : others();
            const Index from = left && !alone() ? bx_ : left ? ay_ : ay_ - p_;
            for (Index first = offsets_[l]; first < offsets_[l + 1]; first += AddWeighted::kColumns)
                groups_.push_back({first, smaller(offsets_[l + 1], first + AddWeighted::kColumns), l, other, others_of,
                                   from + first, left ? p_ : q()});
        }
    }

    std::vector<Index> offsets_{0};
    Index blocks_, layers_, p_, ay_, bx_, cross_, count_;
    std::vector<CrossTile> tiles_;
    std::vector<WeightedColumns> groups_;
};

// What a DeviceMoments does, in memory that somebody else owns. Functions that `run` programs alone do not wait. Each
// may begin again where memory was full (with_memory): `add` allocates nothing, `take` does before it takes, and the
// others write what they wrote before.
template <class M>
class MomentWork {
  public:
    MomentWork(M& machine, const MomentLayout& layout, std::byte* memory)
        : machine_(machine), layout_(layout), memory_(memory) {}

    void send_tables() {
        machine_.send(tables<Index>(layout_.offsets_at()), layout_.offsets().data(), size(layout_.offsets()));
        machine_.send(tables<CrossTile>(layout_.tiles_at()), layout_.tiles().data(), size(layout_.tiles()));
        machine_.send(tables<WeightedColumns>(layout_.groups_at()), layout_.groups().data(), size(layout_.groups()));
    }

    void set(const double* shift, const double* scale, const double* numbers) {
        machine_.send(at(layout_.shift()), shift, layout_.columns());
        machine_.send(at(layout_.scale()), scale, layout_.columns());
        machine_.send(at(layout_.numbers()), numbers, layout_.count());
    }
    void numbers(double* out) { fetch(out, layout_.numbers(), layout_.count()); }

    void set_stage(const double* rows, Index count) {
        machine_.send(at(layout_.stage()), rows, count * layout_.columns());
    }
    void stage(double* rows, Index count) { fetch(rows, layout_.stage(), count * layout_.columns()); }

    void keep(const std::vector<MatrixView>& layers, Index first, Index count, Index row) {
        const auto held = sent(machine_, layers);
        move(held.data(), first, count, false, at(layout_.stage()) + row * layout_.columns(), nullptr);
    }

    void rows(const std::vector<MatrixView>& layers, Index first, Index rows, bool staged, double* norms) {
        const Index before = staged ? kMomentBlock : 0;
        const auto views = sent(machine_, staged_views());
        if (staged) move(views.data(), 0, before, true, at(layout_.z()), at(layout_.norms()));
        if (rows > before) {
            const auto held = sent(machine_, layers);
            move(held.data(), first, rows - before, true, at(layout_.z()) + before * layout_.columns(),
                 at(layout_.norms()) + 2 * before * layout_.layers());
        }
        fetch(norms, layout_.norms(), 2 * rows * layout_.layers());
    }

    void take(const std::vector<Index>& rows, double* taken) {
        const Index count = size(rows);
        const auto held = sent(machine_, rows);
        auto out = machine_.template array<double>(count * layout_.columns());
        machine_.run(TakeRows{held.data(), layout_.columns(), 2 * layout_.layers(), at(layout_.z()),
                              at(layout_.norms()), out.data()},
                     count);
        machine_.fetch(taken, out, count * layout_.columns());
    }

    void put(const double* z, const double* norms, Index count) {
        machine_.send(at(layout_.z()) + layout_.room() * layout_.columns(), z, count * layout_.columns());
        machine_.send(at(layout_.norms()) + 2 * layout_.room() * layout_.layers(), norms, 2 * count * layout_.layers());
    }

    // tensor: products by tensor cores, which the machine must have.
    void add(Index first, Index rows, bool tensor) {
        const double* z = at(layout_.z()) + first * layout_.columns();
        const Index groups = size(layout_.groups());
        on_cores(tensor, [&](auto cores) {
            machine_.run(AddCross<decltype(cores)::value>{tables<CrossTile>(layout_.tiles_at()), z, rows,
                                                          layout_.columns(), at(layout_.numbers())},
                         size(layout_.tiles()));
        });
        machine_.run(
            AddWeighted{tables<WeightedColumns>(layout_.groups_at()), groups, rows, layout_.columns(), layout_.layers(),
                        z, at(layout_.norms()) + 2 * first * layout_.layers(), at(layout_.numbers())},
            groups * layout_.chunks());
    }

  private:
    template <class T>
    static Index size(const std::vector<T>& values) {
        return static_cast<Index>(values.size());
    }

    double* at(Index place) const { return reinterpret_cast<double*>(memory_) + place; }
    template <class T>
    T* tables(Index place) const {
        return reinterpret_cast<T*>(memory_ + place);
    }

    void fetch(double* out, Index place, Index count) {
        const double* from = at(place);
        machine_.fetch(out, from, count);
    }

    std::vector<MatrixView> staged_views() const {
        std::vector<MatrixView> views;
        for (Index l = 0; l < layout_.layers(); ++l) {
            const Index first = layout_.offsets()[l], width = layout_.offsets()[l + 1] - first;
            views.push_back({reinterpret_cast<const std::byte*>(at(layout_.stage()) + first), kMomentBlock, width,
                             8 * layout_.columns(), 8, Dtype::f64, false});
        }
        return views;
    }

    void move(const MatrixView* layers, Index first, Index rows, bool units, double* z, double* norms) {
        const double* shift = units ? at(layout_.shift()) : nullptr;
        const double* scale = units ? at(layout_.scale()) : nullptr;
        machine_.run(StreamRows{layers, tables<Index>(layout_.offsets_at()), layout_.layers(), first, rows,
                                layout_.columns(), shift, scale, z, norms},
                     pieces(rows, StreamRows::kRows) * layout_.layers());
    }

    M& machine_;
    const MomentLayout& layout_;
    std::byte* memory_;
};

// The memory of a stream's moments, tables and all, on a machine that make() gives.
template <class Make>
DeviceMemory moments_there(const Make& make, const MomentLayout& layout) {
    return explained(
        "the moments of " + std::to_string(layout.columns()) + " columns take " + std::to_string(layout.bytes()) +
            " bytes there",
        [&] {
            return with_memory(make, Index{0}, [&](auto& machine, Index) {
                auto memory = machine.memory(layout.bytes());
                MomentWork<std::remove_reference_t<decltype(machine)>>(machine, layout, memory.get()).send_tables();
                return memory;
            });
        });
}

}  // namespace simkit::cuda
