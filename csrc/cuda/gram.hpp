// Sample space on a device: tiles of every block's Gram matrix into a panel, the panel's own products, and the sums
// over tiles. See ops/hsic.hpp for what they are for.
#pragma once

#include "cuda/half_product.hpp"
#include "cuda/kernel_value.hpp"

namespace simkit::cuda {

// What becomes of the product of rows i and j of z before it is summed: a kernel, less its centre. A costly one is not
// repeated for every element of a thread: its code would be.
struct LinearValue {
    static constexpr bool kCostly = false;
    Centre centre;

    template <class T>
    SIMKIT_BOTH T operator()(T product, const Operand&, Index i, Index j) const {
        return centre.means ? static_cast<T>(static_cast<double>(product) - centre.of(i, j)) : product;
    }
};
struct KernelValue {
    static constexpr bool kCostly = true;
    KernelOfRows kernel;
    Centre centre;

    SIMKIT_BOTH double operator()(double product, const Operand& z, Index i, Index j, Index across) const {
        return kernel(product, z, i, j, across) - centre.of(i, j);
    }
};
// The linear kernel of 16-bit rows that were multiplied as they lie, neither centred nor scaled: square is that of z's
// scale, the centre as if of z; see RowCentres.
template <Dtype Type>
struct UncentredValue {
    static constexpr bool kCostly = false;
    Centre centre;
    double square;

    SIMKIT_BOTH float operator()(float product, const Operand&, Index i, Index j) const {
        return static_cast<float>(static_cast<double>(product) * square - centre.of(i, j));
    }
};

// What multiplies the tiles of a value's Gram matrices.
template <class T, int R, bool Plain, class Value, bool Tensor>
struct TileFor {
    using Tile = ProductOn<Tensor, T, R, Plain>;
};
template <int R, bool Plain, Dtype Type>
struct TileFor<float, R, Plain, UncentredValue<Type>, true> {
    using Tile = HalfProduct<Type, R>;
};

template <class Value>
struct GramBlock {
    Operand rows;
    Value value;
    Index place;       // among the panel's rows
    Index across = 0;  // bytes from where rows of a tile's columns would lie to where they do: in another strip
};
static_assert(kSentAs<GramBlock<LinearValue>, 112> && kSentAs<GramBlock<KernelValue>, 152> &&
              kSentAs<GramBlock<UncentredValue<Dtype::bf16>>, 120>);

struct TilePlace {
    Index row, column;  // in tiles

    SIMKIT_BOTH bool diagonal() const { return row == column; }
    SIMKIT_BOTH double weight() const { return diagonal() ? 1.0 : 2.0; }  // the tile below the diagonal counts too
};
static_assert(kSentAs<TilePlace, 16>);

// Program blocks [m, count]: `count` tiles of every one of m blocks; the widest blocks come first, that none is left
// for the end.
//   panel [count, m, W, W], T: K_ij, zero outside of the n x n plane and, debiased, on the diagonal
//   sums [count, m, 2, W], float64: of its rows and of its columns
//   diagonal [m, n], float64: K_ii
// Sums: T over Tile::kChunk columns, the chunks' sums in T; float64 from there on. Tensor: on tensor cores.
template <class T, int R, bool Plain, class Value = LinearValue, bool Tensor = false>
struct GramTiles {
    using Tile = typename TileFor<T, R, Plain, Value, Tensor>::Tile;
    static constexpr int kThreads = Tile::kThreads, kResident = 2, kWidth = Tile::kWidth;
    static constexpr int kChunkSlices = Tile::kChunk / Tile::kColumns;
    struct Parts {
        double rows[kSide][kWidth], columns[kSide][kWidth];
    };
    union Shared {
        typename Tile::Slices slices;
        Parts parts;
    };
    using Registers = typename Tile::Registers;
    using Block = GramBlock<Value>;

    const Block* blocks;     // [m]
    const TilePlace* tiles;  // [count]
    Index m, n, count;
    bool debiased;
    T* panel;
    double *sums, *diagonal;

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers& registers) const {
        const auto order = static_cast<std::uint32_t>(number) / static_cast<std::uint32_t>(count);
        const Index t = number - order * count;
        const Block& block = blocks[order];
        Operand columns = block.rows;
        columns.data += block.across;
        const Tile tile{block.rows, columns, tiles[t].row * kWidth, tiles[t].column * kWidth, 0, block.rows.depth};
        const Index at = t * m + block.place;
        const int slices = tile.slices();
        if (k <= slices) {
            tile.step(k, thread, shared.slices, registers);
            if (k > 0 && k < slices && k % kChunkSlices == 0) put_away(at, k > kChunkSlices, thread, registers);
            return true;
        }
        if (k == slices + 1) {
            finish(block, at, tiles[t], slices > kChunkSlices, thread, shared.parts, registers);
            return true;
        }
        add_parts(at, thread, shared.parts);
        return false;
    }

  private:
    SIMKIT_BOTH T& cell(Index at, int thread, int r, int s) const {
        return panel[(at * kWidth + Tile::row(thread, r)) * kWidth + Tile::column(thread, s)];
    }

    // A chunk's sums join those of the chunks before, which wait in the panel.
    SIMKIT_BOTH void put_away(Index at, bool waiting, int thread, Registers& registers) const {
        SIMKIT_UNROLL
        for (int r = 0; r < R; ++r) {
            SIMKIT_UNROLL
            for (int s = 0; s < R; ++s) {
                T& to = cell(at, thread, r, s);
                to = waiting ? to + registers.c[r][s] : registers.c[r][s];
            }
        }
        Tile::clear(registers);
    }

    // The values of a costly kernel, one by one, in the panel.
    SIMKIT_BOTH void evaluate(const Block& block, Index at, const TilePlace& place, int thread) const {
        SIMKIT_NO_UNROLL
        for (int q = 0; q < R * R; ++q) {
            const int r = q / R, s = q % R;
            const Index i = place.row * kWidth + Tile::row(thread, r);
            const Index j = place.column * kWidth + Tile::column(thread, s);
            T& to = cell(at, thread, r, s);
            if (i < n && j < n) to = block.value(to, block.rows, i, j, block.across);
        }
    }

    SIMKIT_BOTH void finish(const Block& block, Index at, const TilePlace& place, bool waiting, int thread,
                            Parts& parts, Registers& registers) const {
        if constexpr (Value::kCostly) {
            put_away(at, waiting, thread, registers);
            evaluate(block, at, place, thread);
        }
        double columns[R];
        SIMKIT_UNROLL
        for (int s = 0; s < R; ++s) columns[s] = 0.0;
        SIMKIT_UNROLL
        for (int r = 0; r < R; ++r) {
            const Index i = place.row * kWidth + Tile::row(thread, r);
            double row = 0.0;
            SIMKIT_UNROLL
            for (int s = 0; s < R; ++s) {
                const Index j = place.column * kWidth + Tile::column(thread, s);
                T& to = cell(at, thread, r, s);
                T value = T(0);
                if (i < n && j < n) {
                    if constexpr (Value::kCostly)
                        value = to;
                    else
                        value = block.value(waiting ? to + registers.c[r][s] : registers.c[r][s], block.rows, i, j);
                }
                if (i == j && i < n) {
                    diagonal[block.place * n + i] = static_cast<double>(value);
                    if (debiased) value = T(0);
                }
                to = value;
                row += static_cast<double>(value);
                columns[s] += static_cast<double>(value);
            }
            parts.rows[Tile::column_place(thread)][Tile::row(thread, r)] = row;
        }
        SIMKIT_UNROLL
        for (int s = 0; s < R; ++s) parts.columns[Tile::row_place(thread)][Tile::column(thread, s)] = columns[s];
    }

    SIMKIT_BOTH void add_parts(Index at, int thread, const Parts& parts) const {
        for (int q = thread; q < 2 * kWidth; q += kThreads) {
            double sum = 0.0;
            for (int part = 0; part < kSide; ++part)
                sum += q < kWidth ? parts.rows[part][q] : parts.columns[part][q - kWidth];
            sums[at * 2 * kWidth + q] = sum;
        }
    }
};

// A strip of rows whose sums some tiles hold: their sides [first, end), in the order of the tiles.
struct RowShare {
    Index strip, first, end;
};
static_assert(kSentAs<RowShare, 24>);

// Row sums r [m, n] += those of a group of tiles, in the order of the tiles. Program blocks [m, shares]: one strip
// each.
struct AddRowSums {
    static constexpr int kThreads = 128, kResident = 1;
    struct Shared {};
    struct Registers {};

    const RowShare* shares;
    const std::uint32_t* sides;  // 2 t for the rows of tile t of the group, 2 t + 1 for its columns
    const double* sums;          // [tiles, m, 2, width]
    Index m, n, count, width;    // count: of shares
    double* r;

    SIMKIT_BOTH bool step(Index number, int thread, int, Shared&, Registers&) const {
        const Index b = number / count;
        const RowShare& share = shares[number % count];
        const Index i = share.strip * width + thread;
        if (thread >= width || i >= n) return false;
        double sum = r[b * n + i];
        for (Index at = share.first; at < share.end; ++at) {
            const Index side = sides[at];
            sum += sums[(side / 2 * m + b) * 2 * width + side % 2 * width + thread];
        }
        r[b * n + i] = sum;
        return false;
    }
};

struct StripPair {
    Index a, b;  // strips of kWidth rows
};
static_assert(kSentAs<StripPair, 16>);

// Inner products of the rows of panels x [count, m, size]. Program blocks [pairs, count, cuts]: kPiece elements each.
//   parts [count, cuts, m, m], float64, where a pair of strips was asked for
// Sums: T over kRun elements (few: samples that are alike give equal elements, whose sum rounds the same way every
// time), float64 across.
template <class T, bool Tensor = false>
struct PanelProducts {
    static constexpr int R = 4, kRunSlices = 2;
    static constexpr Index kPiece = 2048;
    using Tile = ProductOn<Tensor, T, R, sizeof(T) == 4>;
    static constexpr int kThreads = Tile::kThreads, kResident = 2, kWidth = Tile::kWidth;
    using Shared = typename Tile::Slices;
    struct Registers {
        typename Tile::Registers product;
        double wide[R][R];
    };

    const T* x;
    const StripPair* pairs;
    Index m, size, count;
    double* parts;

    SIMKIT_BOTH Index cuts() const { return simkit::cuda::pieces(size, kPiece); }

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers& registers) const {
        const auto many = static_cast<std::uint32_t>(count * cuts());
        const auto pair = static_cast<std::uint32_t>(number) / many;
        const Index part = number - static_cast<Index>(pair) * many, t = part / cuts(), cut = part - t * cuts();
        const Operand rows = ready_rows(x + t * m * size, m, size, size);
        const Index k0 = cut * kPiece;
        const Tile tile{rows, rows, pairs[pair].a * kWidth, pairs[pair].b * kWidth, k0, smaller(size, k0 + kPiece)};
        tile.step(k, thread, shared, registers.product);
        const int slices = tile.slices();
        if (k == 0) {
            SIMKIT_UNROLL
            for (int r = 0; r < R; ++r) {
                SIMKIT_UNROLL
                for (int s = 0; s < R; ++s) registers.wide[r][s] = 0.0;
            }
            return true;
        }
        if (k % kRunSlices == 0 || k == slices) {
            SIMKIT_UNROLL
            for (int r = 0; r < R; ++r) {
                SIMKIT_UNROLL
                for (int s = 0; s < R; ++s) registers.wide[r][s] += static_cast<double>(registers.product.c[r][s]);
            }
            Tile::clear(registers.product);
        }
        if (k < slices) return true;
        SIMKIT_UNROLL
        for (int r = 0; r < R; ++r) {
            SIMKIT_UNROLL
            for (int s = 0; s < R; ++s) {
                const Index a = tile.i0 + Tile::row(thread, r), b = tile.j0 + Tile::column(thread, s);
                if (a < m && b < m) parts[(part * m + a) * m + b] = registers.wide[r][s];
            }
        }
        return false;
    }
};

// p [m, m] += the parts of `count` tiles by their weights, in the order of tiles and cuts, for the upper triangle.
// Program blocks: pieces(m m, kThreads).
struct AddParts {
    static constexpr int kThreads = 256, kResident = 1;
    struct Shared {};
    struct Registers {};

    const TilePlace* tiles;
    const double* parts;         // [count, cuts, m, m]
    Index m, left, count, cuts;  // left: as in PairProblem
    double* p;

    SIMKIT_BOTH bool step(Index number, int thread, int, Shared&, Registers&) const {
        const Index at = number * kThreads + thread;
        if (at >= m * m || !wanted(at / m, at % m)) return false;
        double sum = p[at];
        for (Index t = 0; t < count; ++t) {
            double own = 0.0;
            for (Index cut = 0; cut < cuts; ++cut) own += parts[(t * cuts + cut) * m * m + at];
            sum += tiles[t].weight() * own;
        }
        p[at] = sum;
        return false;
    }

    SIMKIT_BOTH bool wanted(Index a, Index b) const { return a == b || (left == m ? a < b : a < left && b >= left); }
};

}  // namespace simkit::cuda
