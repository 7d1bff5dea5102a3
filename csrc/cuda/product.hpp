// The innermost product: two strips of rows -> a square of C = A B^T in registers.
//
// A block of 16 x 16 threads holds a square of 16 R rows and columns, R x R elements a thread. Slices of kSlice columns
// go through two buffers of shared memory: while one is multiplied, the next is on its way from device memory to
// registers, so one barrier a slice is enough. Per slice a block reads 2 x 16 R x kSlice elements and does
// (16 R)^2 kSlice multiply-adds. What multiplies a slice, how the slices lie for it, and which elements of C a thread
// holds, is the product's `Multiply`: PlainMultiply here, or TensorMultiply (cuda/tensor_product.hpp).
#pragma once

#include "cuda/operand.hpp"

namespace simkit::cuda {

constexpr int kSide = 16;   // threads along a side
constexpr int kSlice = 16;  // columns of a slice

// Two slices of both sides. Row r's element in column k is cell Multiply::cell(r, k).
template <class T, int Cells>
struct ProductSlices {
    alignas(16) T a[2][Cells], b[2][Cells];
};

// Multiply-adds of T, one thread's elements by itself.
template <class T, int R>
struct PlainMultiply {
    static constexpr int kWidth = kSide * R;
    static constexpr int kPadded = kWidth + 4;  // whole 16-byte words, and few threads meet in a bank
    static constexpr int kCarried = 32;         // rows of a column that a warp brings, where they are neighbours
    static_assert(R % 4 == 0, "a thread's rows come four at a time");
    using Slices = ProductSlices<T, kSlice * kPadded>;
    struct alignas(16) Four {
        T value[4];
    };

    SIMKIT_BOTH static constexpr int cell(int r, int k) { return k * kPadded + r; }

    // A thread's place among those that hold elements of the same columns (rows) of C.
    SIMKIT_BOTH static constexpr int row_place(int thread) { return thread / kSide; }
    SIMKIT_BOTH static constexpr int column_place(int thread) { return thread % kSide; }

    // The row (column) of the square that a thread's r-th row (s-th column) of C is.
    SIMKIT_BOTH static constexpr int spread(int at, int r) { return r / 4 * (4 * kSide) + at * 4 + r % 4; }
    SIMKIT_BOTH static constexpr int row(int thread, int r) { return spread(row_place(thread), r); }
    SIMKIT_BOTH static constexpr int column(int thread, int s) { return spread(column_place(thread), s); }

    SIMKIT_BOTH static void multiply(const Slices& slices, int buffer, int thread, bool, T (&c)[R][R]) {
        const int i = row_place(thread) * 4, j = column_place(thread) * 4;
        SIMKIT_UNROLL
        for (int k = 0; k < kSlice; ++k) {
            T x[R], y[R];
            SIMKIT_UNROLL
            for (int r = 0; r < R; r += 4) {
                const Four left = *reinterpret_cast<const Four*>(&slices.a[buffer][cell(r * kSide + i, k)]);
                const Four right = *reinterpret_cast<const Four*>(&slices.b[buffer][cell(r * kSide + j, k)]);
                SIMKIT_UNROLL
                for (int q = 0; q < 4; ++q) {
                    x[r + q] = left.value[q];
                    y[r + q] = right.value[q];
                }
            }
            SIMKIT_UNROLL
            for (int r = 0; r < R; ++r) {
                SIMKIT_UNROLL
                for (int s = 0; s < R; ++s) c[r][s] += x[r] * y[s];
            }
        }
    }
};

// Plain: both operands are float32, so that reading them is one load and the rest can wait.
// An operand has rows, depth, deep() and element<T>(row, column); a plain one what `Operand` has besides.
template <class T, int R, bool Plain, class Side = Operand, class Multiply = PlainMultiply<T, R>>
struct Product {
    static constexpr int kWidth = kSide * R, kThreads = kSide * kSide, kEach = kWidth * kSlice / kThreads;
    static constexpr int kColumns = kSlice, kChunk = 256;  // of a slice, and of what one sum in T takes
    using Slices = typename Multiply::Slices;
    struct Registers {
        T c[R][R];
        T a[kEach], b[kEach];  // of the next slice
    };

    // Rows i0.. of a and j0.. of b, columns [k0, k1).
    Side a, b;
    Index i0, j0, k0, k1;

    SIMKIT_BOTH int slices() const { return static_cast<int>(pieces(k1 - k0, kSlice)); }

    // As `Multiply` says.
    SIMKIT_BOTH static int row(int thread, int r) { return Multiply::row(thread, r); }
    SIMKIT_BOTH static int column(int thread, int s) { return Multiply::column(thread, s); }
    SIMKIT_BOTH static int row_place(int thread) { return Multiply::row_place(thread); }
    SIMKIT_BOTH static int column_place(int thread) { return Multiply::column_place(thread); }

    SIMKIT_BOTH static void clear(Registers& registers) {
        SIMKIT_UNROLL
        for (int r = 0; r < R; ++r) {
            SIMKIT_UNROLL
            for (int s = 0; s < R; ++s) registers.c[r][s] = T(0);
        }
    }

    // Which element of a slice a thread carries: neighbours in memory go to neighbouring threads; where they are rows,
    // a warp takes so many of a column that its stores meet in no bank.
    SIMKIT_BOTH static void carried(bool deep, int thread, int e, int& r, int& k) {
        const int at = thread + e * kThreads;
        if (deep) {
            r = at / kSlice;
            k = at % kSlice;
        } else {
            constexpr int rows = Multiply::kCarried, columns = 32 / rows, groups = kWidth / rows;
            r = at / 32 % groups * rows + at % rows;
            k = at / 32 / groups * columns + at % 32 / rows;
        }
    }

    SIMKIT_BOTH static bool inside(const Side& x, Index row, Index column, Index end) {
        return row < x.rows && column < end;
    }

    SIMKIT_BOTH void fetch_side(const Side& x, Index row0, Index column0, int thread, T* next) const {
        SIMKIT_UNROLL
        for (int e = 0; e < kEach; ++e) {
            int r, k;
            carried(x.deep(), thread, e, r, k);
            next[e] = T(0);
            if (!inside(x, row0 + r, column0 + k, k1)) continue;
            if constexpr (Plain)
                next[e] = read<float>(x.at(row0 + r, column0 + k));
            else
                next[e] = x.template element<T>(row0 + r, column0 + k);
        }
    }

    SIMKIT_BOTH void store_side(const Side& x, Index row0, Index column0, int thread, const T* next, T* slice) const {
        SIMKIT_UNROLL
        for (int e = 0; e < kEach; ++e) {
            int r, k;
            carried(x.deep(), thread, e, r, k);
            T value = next[e];
            if constexpr (Plain)
                if (inside(x, row0 + r, column0 + k, k1)) value = x.narrow_element(value, row0 + r, column0 + k);
            slice[Multiply::cell(r, k)] = value;
        }
    }

    SIMKIT_BOTH void fetch(int slice, int thread, Registers& registers) const {
        const Index k = k0 + static_cast<Index>(slice) * kSlice;
        fetch_side(a, i0, k, thread, registers.a);
        fetch_side(b, j0, k, thread, registers.b);
    }

    SIMKIT_BOTH void store(int slice, int thread, const Registers& registers, Slices& shared) const {
        const Index k = k0 + static_cast<Index>(slice) * kSlice;
        store_side(a, i0, k, thread, registers.a, shared.a[slice % 2]);
        store_side(b, j0, k, thread, registers.b, shared.b[slice % 2]);
    }

    SIMKIT_BOTH void multiply(int slice, int thread, const Slices& shared, Registers& registers) const {
        Multiply::multiply(shared, slice % 2, thread, k1 - k0 < kSlice, registers.c);
    }

    // Step k of slices() + 1: the first brings slice 0 in, every other multiplies one while the next is on its way.
    SIMKIT_BOTH void step(int k, int thread, Slices& shared, Registers& registers) const {
        if (k == 0) {
            clear(registers);
            fetch(0, thread, registers);
            store(0, thread, registers, shared);
            return;
        }
        const bool more = k < slices();
        if (more) fetch(k, thread, registers);
        multiply(k - 1, thread, shared, registers);
        if (more) store(k, thread, registers, shared);
    }
};

}  // namespace simkit::cuda
