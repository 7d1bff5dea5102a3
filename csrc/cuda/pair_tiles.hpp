// Tiles of all pairs of samples, of a kernel that is no sum over units: what is summed over features, and L of
// ops/candidates.hpp.
#pragma once

#include <cmath>

#include "cuda/gram.hpp"

namespace simkit::cuda {

// A tile is a square of kWidth samples each way, (i, j) of the upper triangle. A block of 16 x 16 threads holds it in
// registers, 4 x 4 pairs a thread; in memory a thread's pairs lie apart, so that neighbours read neighbours.
struct PairTile {
    static constexpr int kThreads = kSide * kSide, kEdge = 4, kWidth = kSide * kEdge, kOwn = kEdge * kEdge;
    static constexpr Index kCells = Index{kWidth} * kWidth;

    SIMKIT_BOTH static int row(int thread, int e) { return thread / kSide * kEdge + e / kEdge; }
    SIMKIT_BOTH static int column(int thread, int e) { return thread % kSide * kEdge + e % kEdge; }
    SIMKIT_BOTH static Index at(Index tile, int e, int thread) { return (tile * kOwn + e) * kThreads + thread; }
};

template <class T>
struct alignas(16) PairEdge {
    T value[PairTile::kEdge];
};

// What candidates start from: -q, which what they leave out raises towards 0, of distances; q of products.
template <class T, bool Distance>
struct CandidateStart {
    static constexpr bool kCostly = false, kDistance = Distance;
    SIMKIT_BOTH T operator()(T q, Index, Index) const { return Distance ? -q : q; }
};

// L = f(q) - centre_i - centre_j, or f - 1 of a distance unless it is small; f in float64.
template <class T>
struct CentredValue {
    static constexpr bool kCostly = true;
    Kernel kernel;  // not linear, not custom
    double length, coef0;
    int degree;
    const double* centre;  // [n]
    bool small;

    SIMKIT_BOTH T operator()(T q, Index i, Index j) const {
        return static_cast<T>(value(static_cast<double>(q)) - centre[i] - centre[j]);
    }
    SIMKIT_BOTH double value(double q) const {
        if (kernel == Kernel::polynomial) return whole_power(length * q + coef0, degree);
        const double x = kernel == Kernel::laplacian ? -sqrt(q) : -q;
        return small ? exp2(x) : expm1(x * 0.693147180559945309);
    }
};

// Program blocks [tiles]: out [tiles] of what `finish` makes of q_ij = sum (z_ri - z_rj)^2, or z_ri z_rj, over `count`
// rows r of z [., n]: the first ones, or those that are listed. 0 outside of the n x n plane.
// Sums: T over kChunk rows, the chunks' sums in T. 2 operations a pair and row; a row's 2 x 64 values are read for 4096
// pairs.
template <class T, bool Distance, class Finish>
struct PairTiles {
    static constexpr int kThreads = PairTile::kThreads, kResident = 2, kWidth = PairTile::kWidth;
    static constexpr int kChunk = 64, kEach = kSlice * kWidth / kThreads, kOwn = PairTile::kOwn;
    static_assert(kChunk % kSlice == 0 && kSlice * kWidth % kThreads == 0);
    struct Shared {
        alignas(16) T a[2][kSlice][kWidth], b[2][kSlice][kWidth];
    };
    struct Registers {
        T sum[kOwn], part[kOwn];
        T a[kEach], b[kEach];  // of the next slice
    };

    const T* z;
    const std::int32_t* rows;  // [count] or null
    Index n, count;
    const TilePlace* tiles;
    Finish finish;
    T* out;

    SIMKIT_BOTH bool step(Index t, int thread, int k, Shared& shared, Registers& registers) const {
        const int slices = static_cast<int>(pieces(count, kSlice));
        const Index i0 = tiles[t].row * kWidth, j0 = tiles[t].column * kWidth;
        if (k == 0) {
            SIMKIT_UNROLL
            for (int e = 0; e < kOwn; ++e) registers.sum[e] = registers.part[e] = T(0);
            fetch(0, i0, j0, thread, registers);
            store(0, thread, registers, shared);
            return true;
        }
        const bool more = k < slices;
        if (more) fetch(k, i0, j0, thread, registers);
        add(k - 1, thread, shared, registers);
        if (more) store(k, thread, registers, shared);
        if (k % (kChunk / kSlice) == 0 || !more) {
            SIMKIT_UNROLL
            for (int e = 0; e < kOwn; ++e) {
                registers.sum[e] += registers.part[e];
                registers.part[e] = T(0);
            }
        }
        if (!more) write(t, i0, j0, thread, registers);
        return more;
    }

  private:
    SIMKIT_BOTH void fetch(int slice, Index i0, Index j0, int thread, Registers& registers) const {
        SIMKIT_UNROLL
        for (int e = 0; e < kEach; ++e) {
            const int at = thread + e * kThreads;
            const Index number = Index{slice} * kSlice + at / kWidth, column = at % kWidth;
            registers.a[e] = registers.b[e] = T(0);
            if (number >= count) continue;
            const T* const row = z + (rows ? Index{rows[number]} : number) * n;
            if (i0 + column < n) registers.a[e] = row[i0 + column];
            if (j0 + column < n) registers.b[e] = row[j0 + column];
        }
    }

    SIMKIT_BOTH static void store(int slice, int thread, const Registers& registers, Shared& shared) {
        SIMKIT_UNROLL
        for (int e = 0; e < kEach; ++e) {
            const int at = thread + e * kThreads;
            shared.a[slice % 2][at / kWidth][at % kWidth] = registers.a[e];
            shared.b[slice % 2][at / kWidth][at % kWidth] = registers.b[e];
        }
    }

    SIMKIT_BOTH static void add(int slice, int thread, const Shared& shared, Registers& registers) {
        const int i = PairTile::row(thread, 0), j = PairTile::column(thread, 0), buffer = slice % 2;
        SIMKIT_UNROLL
        for (int k = 0; k < kSlice; ++k) {
            const auto a = *reinterpret_cast<const PairEdge<T>*>(&shared.a[buffer][k][i]);
            const auto b = *reinterpret_cast<const PairEdge<T>*>(&shared.b[buffer][k][j]);
            SIMKIT_UNROLL
            for (int e = 0; e < kOwn; ++e) {
                const T own = a.value[e / PairTile::kEdge], other = b.value[e % PairTile::kEdge], d = own - other;
                registers.part[e] += Distance ? d * d : own * other;
            }
        }
    }

    SIMKIT_BOTH void write(Index t, Index i0, Index j0, int thread, const Registers& registers) const {
        SIMKIT_UNROLL
        for (int e = 0; e < kOwn; ++e) {
            T value = registers.sum[e];
            if constexpr (!Finish::kCostly) value = finished(value, i0, j0, thread, e);
            out[PairTile::at(t, e, thread)] = value;
        }
        if constexpr (Finish::kCostly) {  // one by one, that the code stands there once
            SIMKIT_NO_UNROLL
            for (int e = 0; e < kOwn; ++e) {
                T& own = out[PairTile::at(t, e, thread)];
                own = finished(own, i0, j0, thread, e);
            }
        }
    }

    SIMKIT_BOTH T finished(T q, Index i0, Index j0, int thread, int e) const {
        const Index i = i0 + PairTile::row(thread, e), j = j0 + PairTile::column(thread, e);
        return i < n && j < n ? finish(q, i, j) : T(0);
    }
};

}  // namespace simkit::cuda
