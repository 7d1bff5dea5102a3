// The innermost product on tensor cores (capability 8.0 and later): another way to multiply the slices of product.hpp.
//
// float32: three products of TF32 for one, high low + low high + high high of the split operands (tensor_model.hpp).
// Eight columns are summed inside the tensor cores, which cut, and each such sum is added to a thread's own in float32,
// which rounds: inside them a longer sum would drift towards zero. float64: fused multiply-adds, column after column.
//
// The one place where the threads of a warp work together. On a device the warp loads fragments of the slices and runs
// mma.sync; on the host every thread forms its own elements from the slices, as tensor_model.hpp rounds. Nothing passes
// between threads but what lies in the slices, so that within a step still no thread reads what another writes. Which
// elements a lane loads and holds is said once, in Fragments; tests/native/cuda_tensor_programs.cpp runs whole warps
// through it against the PTX ISA's tables.
//
// float32, R = 8, a warp and eight columns: 48 mma.sync of 1024 multiply-adds each, which take 192 cycles of its
// quarter of a multiprocessor of capability 9.0 at the data sheet's rate, 307 at five eighths of it, 384 on 8.0; 24
// loads (32 lanes, 32 banks), 72 instructions that split, 64 additions: 245 in all, with the loop's own, by the
// disassembly.
#pragma once

#include <type_traits>

#include "cuda/product.hpp"
#include "cuda/tensor_model.hpp"

namespace simkit::cuda {

struct CellPlace {
    int row, column;
};

// Which elements of A [kRows, kDepth], B [kDepth, kColumns] and C [kRows, kColumns] a lane of a warp holds.
template <class T>
struct Fragments;

// PTX ISA, matrix fragments for mma.m16n8k8, .tf32.
template <>
struct Fragments<float> {
    static constexpr int kRows = 16, kColumns = 8, kDepth = 8, kLeft = 4, kRight = 2, kSums = 4;

    SIMKIT_BOTH static constexpr CellPlace left(int lane, int e) {
        return {lane / 4 + e % 2 * 8, lane % 4 + e / 2 * 4};
    }
    SIMKIT_BOTH static constexpr CellPlace right(int lane, int e) { return {lane % 4 + e * 4, lane / 4}; }
    SIMKIT_BOTH static constexpr CellPlace sum(int lane, int e) { return {lane / 4 + e / 2 * 8, lane % 4 * 2 + e % 2}; }
};

// PTX ISA, matrix fragments for mma.m8n8k4, .f64.
template <>
struct Fragments<double> {
    static constexpr int kRows = 8, kColumns = 8, kDepth = 4, kLeft = 1, kRight = 1, kSums = 2;

    SIMKIT_BOTH static constexpr CellPlace left(int lane, int) { return {lane / 4, lane % 4}; }
    SIMKIT_BOTH static constexpr CellPlace right(int lane, int) { return {lane % 4, lane / 4}; }
    SIMKIT_BOTH static constexpr CellPlace sum(int lane, int e) { return {lane / 4, lane % 4 * 2 + e}; }
};

// Whether the lanes of a warp hold every element of rows x columns, and each once.
template <class Place>
constexpr bool holds_all(int rows, int columns, int each, Place&& place) {
    std::uint64_t seen[4] = {};
    if (rows * columns != 32 * each) return false;
    for (int lane = 0; lane < 32; ++lane)
        for (int e = 0; e < each; ++e) {
            const CellPlace at = place(lane, e);
            if (at.row < 0 || at.row >= rows || at.column < 0 || at.column >= columns) return false;
            const int cell = at.row * columns + at.column;
            if (seen[cell / 64] >> (cell % 64) & 1) return false;
            seen[cell / 64] |= std::uint64_t{1} << (cell % 64);
        }
    return true;
}
template <class T>
constexpr bool fragments_hold_all() {
    using Of = Fragments<T>;
    return holds_all(Of::kRows, Of::kDepth, Of::kLeft, [](int lane, int e) { return Of::left(lane, e); }) &&
           holds_all(Of::kDepth, Of::kColumns, Of::kRight, [](int lane, int e) { return Of::right(lane, e); }) &&
           holds_all(Of::kRows, Of::kColumns, Of::kSums, [](int lane, int e) { return Of::sum(lane, e); });
}
static_assert(fragments_hold_all<float>() && fragments_hold_all<double>());

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
// c += a b of one warp, a and b in TF32.
__device__ inline void multiply_on_warp(float (&c)[4], const float (&a)[4], const float (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(bits_of(a[0])), "r"(bits_of(a[1])), "r"(bits_of(a[2])), "r"(bits_of(a[3])), "r"(bits_of(b[0])),
          "r"(bits_of(b[1])));
}
__device__ inline void multiply_on_warp(double& c0, double& c1, double a, double b) {
    asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
                 : "+d"(c0), "+d"(c1)
                 : "d"(a), "d"(b));
}
#endif

// Eight warps, two down and four across, hold the square; a thread's rows and columns are those of its elements of the
// fragments of C.
template <class T, int R>
struct TensorMultiply {
    using Of = Fragments<T>;
    static constexpr int kWidth = kSide * R, kDown = kWidth / 2, kAcross = kWidth / 4;  // rows, columns of a warp
    static constexpr int kLefts = kDown / Of::kRows, kRights = kAcross / Of::kColumns;  // its fragments
    static constexpr int kPadded = kSlice + 4;  // a fragment's rows begin in different banks
    static constexpr int kCarried = 8;          // as in PlainMultiply
    using Slices = ProductSlices<T, kWidth * kPadded>;

    SIMKIT_BOTH static constexpr int cell(int r, int k) { return r * kPadded + k; }

    // As in PlainMultiply.
    SIMKIT_BOTH static constexpr int row_place(int thread) { return thread / 128 * 8 + thread % 32 / 4; }
    SIMKIT_BOTH static constexpr int column_place(int thread) { return thread / 32 % 4 * 4 + thread % 4; }
    SIMKIT_BOTH static constexpr int row(int thread, int r) { return top(thread) + thread % 32 / 4 + 8 * r; }
    SIMKIT_BOTH static constexpr int column(int thread, int s) {
        return first(thread) + s / 2 * 8 + thread % 4 * 2 + s % 2;
    }

    // The first row and column of a thread's warp.
    SIMKIT_BOTH static constexpr int top(int thread) { return thread / 128 * kDown; }
    SIMKIT_BOTH static constexpr int first(int thread) { return thread / 32 % 4 * kAcross; }

    // The cells of the slices that a thread loads: element e of its i-th fragment of A, j-th of B, from column k on.
    SIMKIT_BOTH static constexpr int left_cell(int thread, int i, int k, int e) {
        const CellPlace at = Of::left(thread % 32, e);
        return cell(top(thread) + i * Of::kRows + at.row, k + at.column);
    }
    SIMKIT_BOTH static constexpr int right_cell(int thread, int j, int k, int e) {
        const CellPlace at = Of::right(thread % 32, e);
        return cell(first(thread) + j * Of::kColumns + at.column, k + at.row);
    }

    // Which of a thread's rows r (columns s) element e of fragment (i, j) of C is.
    SIMKIT_BOTH static constexpr int sum_row(int i, int e) { return (i * Of::kRows + Of::sum(0, e).row) / 8; }
    SIMKIT_BOTH static constexpr int sum_column(int j, int e) { return 2 * j + Of::sum(0, e).column; }

    static constexpr bool rows_and_columns_agree() {
        for (int thread = 0; thread < kSide * kSide; ++thread)
            for (int i = 0; i < kLefts; ++i)
                for (int j = 0; j < kRights; ++j)
                    for (int e = 0; e < Of::kSums; ++e) {
                        const CellPlace at = Of::sum(thread % 32, e);
                        if (row(thread, sum_row(i, e)) != top(thread) + i * Of::kRows + at.row) return false;
                        if (column(thread, sum_column(j, e)) != first(thread) + j * Of::kColumns + at.column)
                            return false;
                    }
        return true;
    }

    // narrow: the whole product has fewer columns than a slice. Too few for the errors of splitting to average: they
    // are multiplied plainly, which such a product hardly notices.
    SIMKIT_BOTH static void multiply(const Slices& slices, int buffer, int thread, bool narrow, T (&c)[R][R]) {
        if constexpr (std::is_same_v<T, float>)
            if (narrow) return multiply_plainly(slices, buffer, thread, c);
#if !defined(__CUDA_ARCH__)
        multiply_on_host(slices, buffer, thread, c);
#elif __CUDA_ARCH__ >= 800
        __syncwarp();
        multiply_fragments(slices, buffer, thread, c);
#else
        multiply_plainly(slices, buffer, thread, c);
#endif
    }

    SIMKIT_BOTH static void multiply_plainly(const Slices& slices, int buffer, int thread, T (&c)[R][R]) {
        SIMKIT_NO_UNROLL
        for (int k = 0; k < kSlice; ++k) {
            T y[R];
            SIMKIT_UNROLL
            for (int s = 0; s < R; ++s) y[s] = slices.b[buffer][cell(column(thread, s), k)];
            SIMKIT_UNROLL
            for (int r = 0; r < R; ++r) {
                const T x = slices.a[buffer][cell(row(thread, r), k)];
                SIMKIT_UNROLL
                for (int s = 0; s < R; ++s) c[r][s] += x * y[s];
            }
        }
    }

#if !defined(__CUDA_ARCH__)
    SIMKIT_BOTH static void multiply_on_host(const Slices& slices, int buffer, int thread, T (&c)[R][R]) {
        for (int k = 0; k < kSlice; k += Of::kDepth) {
            Halves x[R], y[R];
            for (int r = 0; r < R; ++r) x[r] = Halves(&slices.a[buffer][cell(row(thread, r), k)]);
            for (int s = 0; s < R; ++s) y[s] = Halves(&slices.b[buffer][cell(column(thread, s), k)]);
            for (int r = 0; r < R; ++r)
                for (int s = 0; s < R; ++s) c[r][s] = Halves::added(c[r][s], x[r], y[s]);
        }
    }

    // A row's elements in the columns of one mma.sync.
    struct HalvesOfFloat {
        TensorOperand high[8], low[8];

        HalvesOfFloat() = default;
        SIMKIT_BOTH explicit HalvesOfFloat(const float* from) {
            for (int k = 0; k < 8; ++k) {
                const SplitFloat parts = split(from[k]);
                high[k] = operand_of(parts.high);
                low[k] = operand_of(parts.low);
            }
        }
        SIMKIT_BOTH static float added(float c, const HalvesOfFloat& x, const HalvesOfFloat& y) {
            const float small = tensor_sum(tensor_sum(0.0f, x.low, y.high), x.high, y.low);
            return c + tensor_sum(small, x.high, y.high);
        }
    };
    struct WholeDouble {
        const double* value;

        WholeDouble() = default;
        SIMKIT_BOTH explicit WholeDouble(const double* from) : value(from) {}
        SIMKIT_BOTH static double added(double c, const WholeDouble& x, const WholeDouble& y) {
            for (int k = 0; k < 4; ++k) c = std::fma(x.value[k], y.value[k], c);
            return c;
        }
    };
    using Halves = std::conditional_t<std::is_same_v<T, float>, HalvesOfFloat, WholeDouble>;
#elif __CUDA_ARCH__ >= 800
    __device__ static void multiply_fragments(const Slices& slices, int buffer, int thread, float (&c)[R][R]) {
        constexpr int at_once = 2;  // fragments of B, whose sums do not wait for one another
        SIMKIT_NO_UNROLL
        for (int k = 0; k < kSlice; k += Of::kDepth) {
            float y_high[kRights][2], y_low[kRights][2];
            SIMKIT_UNROLL
            for (int j = 0; j < kRights; ++j) {
                SIMKIT_UNROLL
                for (int e = 0; e < 2; ++e) {
                    const SplitFloat parts = split(slices.b[buffer][right_cell(thread, j, k, e)]);
                    y_high[j][e] = parts.high;
                    y_low[j][e] = parts.low;
                }
            }
            SIMKIT_UNROLL
            for (int i = 0; i < kLefts; ++i) {
                float x_high[4], x_low[4];
                SIMKIT_UNROLL
                for (int e = 0; e < 4; ++e) {
                    const SplitFloat parts = split(slices.a[buffer][left_cell(thread, i, k, e)]);
                    x_high[e] = parts.high;
                    x_low[e] = parts.low;
                }
                SIMKIT_UNROLL
                for (int j = 0; j < kRights; j += at_once) {
                    float sums[at_once][4] = {};
                    SIMKIT_UNROLL
                    for (int q = 0; q < at_once; ++q) multiply_on_warp(sums[q], x_low, y_high[j + q]);
                    SIMKIT_UNROLL
                    for (int q = 0; q < at_once; ++q) multiply_on_warp(sums[q], x_high, y_low[j + q]);
                    SIMKIT_UNROLL
                    for (int q = 0; q < at_once; ++q) multiply_on_warp(sums[q], x_high, y_high[j + q]);
                    SIMKIT_UNROLL
                    for (int q = 0; q < at_once; ++q) {
                        SIMKIT_UNROLL
                        for (int e = 0; e < 4; ++e) c[sum_row(i, e)][sum_column(j + q, e)] += sums[q][e];
                    }
                }
            }
        }
    }

    __device__ static void multiply_fragments(const Slices& slices, int buffer, int thread, double (&c)[R][R]) {
        SIMKIT_UNROLL
        for (int k = 0; k < kSlice; k += Of::kDepth) {
            double y[kRights];
            SIMKIT_UNROLL
            for (int j = 0; j < kRights; ++j) y[j] = slices.b[buffer][right_cell(thread, j, k, 0)];
            SIMKIT_UNROLL
            for (int i = 0; i < kLefts; ++i) {
                const double x = slices.a[buffer][left_cell(thread, i, k, 0)];
                SIMKIT_UNROLL
                for (int j = 0; j < kRights; ++j)
                    multiply_on_warp(c[sum_row(i, 0)][sum_column(j, 0)], c[sum_row(i, 1)][sum_column(j, 1)], x, y[j]);
            }
        }
    }
#endif
};

static_assert(TensorMultiply<float, 8>::rows_and_columns_agree() &&
              TensorMultiply<double, 4>::rows_and_columns_agree());

// The product of two float32 or float64 sides, on tensor cores or not.
template <bool Tensor, class T, int R, bool Plain, class Side = Operand>
using ProductOn = Product<T, R, Plain, Side, std::conditional_t<Tensor, TensorMultiply<T, R>, PlainMultiply<T, R>>>;

// compute(the choice as a type): what a problem says becomes what programs are made of.
template <class Compute>
auto on_cores(bool tensor, const Compute& compute) {
    return tensor ? compute(std::true_type{}) : compute(std::false_type{});
}

}  // namespace simkit::cuda
