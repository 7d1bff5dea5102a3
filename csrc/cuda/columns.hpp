// Statistics and cross-products of the columns of one matrix, on any machine (cuda/machine.hpp).
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "cuda/machine.hpp"
#include "cuda/tensor_product.hpp"
#include "ops/columns.hpp"

namespace simkit::cuda {

// What is known of a column, or of a part of its rows; d = value - origin.
struct Column {
    double sum, square;      // of d
    double top, far;         // the largest |value| and |d|
    Index nonfinite, first;  // entries, and the row of the first; -1
};
static_assert(kSentAs<Column, 48> && offsetof(Column, first) == 40);

SIMKIT_BOTH inline void join(Column& to, const Column& more) {
    to.sum += more.sum;
    to.square += more.square;
    to.top = larger(to.top, more.top);
    to.far = larger(to.far, more.far);
    to.nonfinite += more.nonfinite;
    if (to.first < 0 || (more.first >= 0 && more.first < to.first)) to.first = more.first;
}

// Column by column the mean of a few rows from all over, which lies among the values; a constant column's is its value.
// Program blocks: pieces(cols, kThreads).
struct PilotMeans {
    static constexpr int kThreads = 128, kResident = 1;
    static constexpr Index kRows = 64;
    struct Shared {};
    struct Registers {};

    MatrixView x;
    const double* row_scale;  // or null
    double* origin;

    SIMKIT_BOTH double value(Index i, Index k) const {
        const double value = wide_value(x.data + i * x.row_stride + k * x.col_stride, x.dtype);
        return row_scale ? rounded_product(value, row_scale[i]) : value;
    }

    SIMKIT_BOTH bool step(Index number, int thread, int, Shared&, Registers&) const {
        const Index k = number * kThreads + thread, count = smaller(x.rows, kRows), each = x.rows / count;
        if (k >= x.cols) return false;
        const double first = value(0, k);
        double sum = 0.0;
        for (Index i = 1; i < count; ++i) sum += value(i * each, k) - first;
        const double mean = first + sum / static_cast<double>(count);
        origin[k] = mean - mean == 0.0 ? mean : first;
        return false;
    }
};

// Program blocks [pieces(cols, kColumns), pieces(rows, kRows)]: parts [pieces(rows, kRows), cols].
// A column's rows go to kLanes threads, whose sums join in their order; all float64.
struct ColumnParts {
    static constexpr int kColumns = 32, kLanes = 8, kThreads = kColumns * kLanes, kResident = 4;
    static constexpr Index kRows = 512;
    struct Shared {
        Column lanes[kLanes][kColumns];
    };
    struct Registers {};

    PilotMeans values;
    Column* parts;

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers&) const {
        const MatrixView& x = values.x;
        const Index groups = pieces(x.cols, kColumns), part = number / groups;
        const int lane = thread / kColumns, at = thread % kColumns;
        const Index column = number % groups * kColumns + at;
        if (k == 0) {
            if (column < x.cols) shared.lanes[lane][at] = lane_of(part * kRows, lane, column);
            return true;
        }
        if (lane > 0 || column >= x.cols) return false;
        Column sum = shared.lanes[0][at];
        for (int other = 1; other < kLanes; ++other) join(sum, shared.lanes[other][at]);
        parts[part * x.cols + column] = sum;
        return false;
    }

    SIMKIT_BOTH Column lane_of(Index first, int lane, Index column) const {
        const double origin = values.origin[column];
        const Index end = smaller(values.x.rows, first + kRows);
        Column out{0.0, 0.0, 0.0, 0.0, 0, -1};
        for (Index i = first + lane; i < end; i += kLanes) {
            const double value = values.value(i, column), d = value - origin;
            out.sum += d;
            out.square += d * d;
            out.top = larger(out.top, value < 0.0 ? -value : value);
            out.far = larger(out.far, d < 0.0 ? -d : d);
            if (value - value != 0.0 && out.nonfinite++ == 0) out.first = i;
        }
        return out;
    }
};

// out [cols]: the parts of every column, joined in their order. Program blocks: pieces(cols, kThreads).
struct JoinColumns {
    static constexpr int kThreads = 128, kResident = 1;
    struct Shared {};
    struct Registers {};

    const Column* parts;
    Index cols, count;
    Column* out;

    SIMKIT_BOTH bool step(Index number, int thread, int, Shared&, Registers&) const {
        const Index column = number * kThreads + thread;
        if (column >= cols) return false;
        Column sum = parts[column];
        for (Index part = 1; part < count; ++part) join(sum, parts[part * cols + column]);
        out[column] = sum;
        return false;
    }
};

// mean: the origins that the sums of the columns of `rows` rows are of.
inline ColumnStats stats_of(std::vector<double> mean, const std::vector<Column>& columns, Index rows) {
    const Index cols = static_cast<Index>(columns.size());
    ColumnStats stats;
    stats.sum_sq_dev.resize(cols);
    double moved = 0.0;
    for (Index k = 0; k < cols; ++k) {
        const Column& of = columns[k];
        if (of.nonfinite && (!stats.nonfinite || of.first < stats.first_row)) {
            stats.first_row = of.first;
            stats.first_col = k;
        }
        stats.nonfinite += of.nonfinite;
        const double step = of.sum / static_cast<double>(rows);
        stats.sum_sq_dev[k] = std::max(0.0, of.square - step * of.sum);  // -1e-17 is rounding
        mean[k] += step;
        moved = std::max(moved, std::fabs(step));
        stats.max_abs = std::max(stats.max_abs, of.top);
        stats.max_dev = std::max(stats.max_dev, of.far);
    }
    stats.max_dev += moved;
    stats.mean = std::move(mean);
    return stats;
}

// x and row_scale lie on the machine.
template <class M>
ColumnStats column_stats(M& machine, const MatrixView& x, const double* row_scale) {
    const Index count = pieces(x.rows, ColumnParts::kRows);
    auto origin = machine.template array<double>(x.cols);
    auto parts = machine.template array<Column>(count * x.cols);
    auto joined = machine.template array<Column>(x.cols);
    const PilotMeans pilot{x, row_scale, origin.data()};
    machine.run(pilot, pieces(x.cols, PilotMeans::kThreads));
    machine.run(ColumnParts{pilot, parts.data()}, pieces(x.cols, ColumnParts::kColumns) * count);
    machine.run(JoinColumns{parts.data(), x.cols, count, joined.data()}, pieces(x.cols, JoinColumns::kThreads));
    auto mean = fetched<M, double>(machine, origin, x.cols);
    return stats_of(std::move(mean), fetched<M, Column>(machine, joined, x.cols), x.rows);
}

// norms [each i] = |z_i|^2 of every row i: kLanes threads a row, whose sums join in their order; float64. Program
// blocks: pieces(rows, kRows).
struct RowNorms {
    static constexpr int kRows = 8, kLanes = 32, kThreads = kRows * kLanes, kResident = 4;
    struct Shared {
        double lanes[kRows][kLanes + 1];
    };
    struct Registers {};

    Operand z;
    double* norms;
    Index each = 1;

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers&) const {
        const int row = thread / kLanes, lane = thread % kLanes;
        const Index i = number * kRows + row;
        if (k == 0) {
            double sum = 0.0;
            for (Index c = lane; i < z.rows && c < z.depth; c += kLanes) {
                const double value = z.wide_element(i, c);
                sum += value * value;
            }
            shared.lanes[row][lane] = sum;
            return true;
        }
        if (lane > 0 || i >= z.rows) return false;
        double sum = 0.0;
        for (int other = 0; other < kLanes; ++other) sum += shared.lanes[row][other];
        norms[each * i] = sum;
        return false;
    }
};

template <class M>
std::vector<double> row_norms(M& machine, const Operand& z) {
    auto norms = machine.template array<double>(z.rows);
    machine.run(RowNorms{z, norms.data()}, pieces(z.rows, RowNorms::kRows));
    std::vector<double> out(z.rows);
    machine.fetch(out.data(), norms, z.rows);
    return out;
}

struct SquarePlace {
    Index i0, j0;  // its first row and column
};
static_assert(kSentAs<SquarePlace, 16>);

// Squares of G = Z^T Z over groups of rows of z, the operand's rows being columns of z.
// Program blocks [squares, groups]: parts [groups, squares, W, W], float64.
// Sums: T over kChunkSlices slices, float64 across.
template <class T, int R, bool Plain, class Side = Operand, bool Tensor = false>
struct CrossSquares {
    using Tile = ProductOn<Tensor, T, R, Plain, Side>;
    static constexpr int kThreads = Tile::kThreads, kResident = 2, kWidth = Tile::kWidth;
    static constexpr int kChunkSlices = (Tensor || sizeof(T) == 8 ? 1024 : 256) / kSlice;
    using Shared = typename Tile::Slices;
    using Registers = typename Tile::Registers;

    Side columns;
    const SquarePlace* squares;
    Index count, group;  // squares, samples of a group
    double* parts;
    bool waiting = false;  // the parts hold sums of the group's samples before these

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers& registers) const {
        const auto of = static_cast<std::uint32_t>(number) / static_cast<std::uint32_t>(count);
        const SquarePlace& place = squares[number - static_cast<Index>(of) * count];
        const Index k0 = of * group;
        const Tile tile{columns, columns, place.i0, place.j0, k0, smaller(columns.depth, k0 + group)};
        tile.step(k, thread, shared, registers);
        const int slices = tile.slices();
        if (k == 0) return true;
        if (k % kChunkSlices && k < slices) return true;
        double* to = parts + number * kWidth * kWidth;
        SIMKIT_UNROLL
        for (int r = 0; r < R; ++r) {
            SIMKIT_UNROLL
            for (int s = 0; s < R; ++s) {
                double& cell = to[Tile::row(thread, r) * kWidth + Tile::column(thread, s)];
                const double own = static_cast<double>(registers.c[r][s]);
                cell = waiting || k > kChunkSlices ? cell + own : own;
            }
        }
        Tile::clear(registers);
        return k < slices;
    }
};

// G [p, p] where it goes, on the machine, and what the parts do not hold of it: less n rest rest^T off the diagonal,
// which is squares[k] scale^2 where `squares` is not null; or the squares of all that.
struct Products {
    Index p;
    double n, scale;
    const double *rest, *squares;  // [p], or null
    bool squared;
    double* g;
};
static_assert(kSentAs<Products, 56> && offsetof(Products, squared) == 40 && offsetof(Products, g) == 48);

// Both halves of G from the groups' parts, added in their order. Program blocks [squares]: one square each, kThreads
// elements at a time.
struct JoinSquares {
    static constexpr int kThreads = 256, kResident = 1;
    struct Shared {};
    struct Registers {};

    const SquarePlace* places;
    const double* parts;
    Index count, groups, width;
    Products to;

    SIMKIT_BOTH bool step(Index number, int thread, int, Shared&, Registers&) const {
        for (Index at = thread; at < width * width; at += kThreads) {
            const Index i = places[number].i0 + at / width, j = places[number].j0 + at % width;
            if (i >= to.p || j >= to.p || j < i) continue;
            double sum = 0.0;
            for (Index group = 0; group < groups; ++group) sum += parts[(group * count + number) * width * width + at];
            if (to.rest && i != j) sum -= to.n * to.rest[i] * to.rest[j];
            if (to.squares && i == j) sum = to.squares[i] * to.scale * to.scale;
            if (to.squared) sum *= sum;
            to.g[i * to.p + j] = to.g[j * to.p + i] = sum;
        }
        return false;
    }
};

// Samples of a group: whole chunks, so many groups that a few hundred blocks have work and 256 MiB hold their parts. It
// depends on nothing but the sizes, that the answer does not either.
inline Index group_rows(Index n, Index squares, Index square_bytes) {
    constexpr Index chunk = 1024, blocks = 528, bytes = Index{1} << 28;
    const Index wanted = smaller(pieces(blocks, squares), larger(1, bytes / (squares * square_bytes)));
    return pieces(pieces(n, chunk), smaller(wanted, pieces(n, chunk))) * chunk;
}

constexpr Index kPartsRoom = Index{1} << 30;  // bytes of parts in flight, about

// What the two remedies of ops/columns.hpp leave to be read: columns with mean^2 <= kCentred var are not centred, and
// their mean, in z's units, stays in `rest`.
struct PartlyCentred {
    std::vector<double> shift, rest;
};
inline PartlyCentred partly_centred(const std::vector<double>& shift, const std::vector<double>& sum_sq_dev, double n,
                                    double scale) {
    PartlyCentred out{shift, std::vector<double>(shift.size(), 0.0)};
    for (std::size_t k = 0; k < shift.size(); ++k)
        if (shift[k] * shift[k] <= kCentred * sum_sq_dev[k] / n) {
            out.rest[k] = shift[k] * scale;
            out.shift[k] = 0.0;
        }
    return out;
}

// Those on the diagonal of G [p, p] and above it.
inline std::vector<SquarePlace> upper_squares(Index p, Index width) {
    std::vector<SquarePlace> places;
    for (Index i = 0; i < p; i += width)
        for (Index j = i; j < p; j += width) places.push_back({i, j});
    return places;
}

// Squares is a CrossSquares; room: bytes of parts, about, which change no bit.
template <class Squares, class M>
void cross_squares(M& machine, const Operand& columns, const Products& to, Index room) {
    constexpr Index cells = Squares::kWidth * Squares::kWidth;
    std::vector<SquarePlace> places = upper_squares(to.p, Squares::kWidth);
    const Index count = static_cast<Index>(places.size()), group = group_rows(columns.depth, count, cells * 8);
    const Index groups = pieces(columns.depth, group);
    const Index batch = larger(1, smaller(count, room / (groups * cells * 8)));
    const auto held = sent(machine, std::move(places));
    auto parts = machine.template array<double>(groups * batch * cells);
    for (Index first = 0; first < count; first += batch) {
        const Index many = smaller(batch, count - first);
        const SquarePlace* here = held.data() + first;
        machine.run(Squares{columns, here, many, group, parts.data()}, many * groups);
        machine.run(JoinSquares{here, parts.data(), many, groups, Squares::kWidth, to}, many);
        machine.pause();
    }
}

// The columns of a block, and how their products are formed: as ops/columns.hpp. shift and sum_sq_dev [p] lie on the
// host; tensor: by tensor cores, which the machine must have.
struct ColumnProblem {
    BlockView block;
    bool narrow;
    std::vector<double> shift, sum_sq_dev;
    bool exact, tensor, squared;
};

// use(std::type_identity<a CrossSquares>, the columns as an operand, what becomes of their products): G goes to g.
template <bool Tensor, class M, class Use>
void products_on(M& machine, const ColumnProblem& of, double* g, const Use& use) {
    const MatrixView& x = of.block.x;
    const double n = static_cast<double>(x.rows), scale = of.block.scale;
    Operand columns{x.data, x.cols, x.rows,  x.col_stride,       x.row_stride, x.dtype,
                    false,  true,   nullptr, of.block.row_scale, nullptr,      scale};
    if (of.exact) {
        const auto wide = sent(machine, of.shift);
        columns.shift = wide.data();
        use(std::type_identity<CrossSquares<double, 4, false, Operand, Tensor>>{}, columns,
            Products{x.cols, n, scale, nullptr, nullptr, of.squared, g});
        return;
    }
    const PartlyCentred partly = partly_centred(of.shift, of.sum_sq_dev, n, scale);
    const auto wide = sent(machine, partly.shift), rest = sent(machine, partly.rest);
    const auto squares = sent(machine, of.sum_sq_dev);
    const auto single = sent(machine, std::vector<float>(partly.shift.begin(), partly.shift.end()));
    columns.shift = wide.data();
    columns.narrow = of.narrow;
    columns.narrow_shift = of.narrow ? single.data() : nullptr;
    const Products to{x.cols, n, scale, rest.data(), squares.data(), of.squared, g};
    if (of.narrow && x.dtype == Dtype::f32)
        use(std::type_identity<CrossSquares<float, 8, true, Operand, Tensor>>{}, columns, to);
    else
        use(std::type_identity<CrossSquares<float, 8, false, Operand, Tensor>>{}, columns, to);
}
template <class M, class Use>
void products_on(M& machine, const ColumnProblem& of, double* g, const Use& use) {
    on_cores(of.tensor, [&](auto cores) { products_on<decltype(cores)::value>(machine, of, g, use); });
}

// G [p, p] of the columns of a block, or its squares. The block and g lie on the machine.
template <class M>
void column_products(M& machine, const ColumnProblem& of, double* g, Index room = kPartsRoom) {
    products_on(machine, of, g, [&](auto squares, const Operand& columns, const Products& to) {
        cross_squares<typename decltype(squares)::type>(machine, columns, to, room);
    });
}

// The same, in memory that stays.
template <class M>
DeviceMemory column_products(M& machine, const ColumnProblem& of, Index room) {
    auto g = machine.memory(8 * of.block.x.cols * of.block.x.cols);
    column_products(machine, of, reinterpret_cast<double*>(g.get()), room);
    return g;
}

}  // namespace simkit::cuda
