// The innermost product of 16-bit rows as they lie, on tensor cores (capability 8.0 and later): beside Product
// (cuda/product.hpp), with whose names programs use it.
//
// A product of two numbers of bfloat16 (of 8 bits) or float16 (11) is exact in float32, so that one mma.sync does what
// three of TF32 do for float32 (cuda/tensor_product.hpp), on twice as many columns. Nothing is subtracted before: the
// difference would have more bits. What is asked for is centred afterwards (UncentredValue, cuda/gram.hpp).
//
// In words a warp and sixteen columns take what they take of float32 in eight: 16 mma.sync, 24 loads and 64 additions,
// without a word spilled between them.
//
// Sixteen columns are summed inside the tensor cores, which cut, and each such sum is added to a thread's own in
// float32, which rounds. Two columns of a row share a word, the first in its lower half: in words, the fragments of
// mma.m16n8k16 are those of mma.m16n8k8 in numbers of TF32, and so is all of a warp's layout.
#pragma once

#include "cuda/tensor_product.hpp"

namespace simkit::cuda {

SIMKIT_BOTH constexpr bool is_half(Dtype type) { return type == Dtype::f16 || type == Dtype::bf16; }

// One of the two numbers of a word.
template <Dtype Type>
SIMKIT_BOTH float half_of(std::uint32_t word, int which) {
    if constexpr (Type == Dtype::f16)
        return widen_half(static_cast<std::uint16_t>(which ? word >> 16 : word & 0xffffu));
    else
        return from_bits(which ? word & 0xffff0000u : word << 16);
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
// c += a b of one warp, m16n8k16.
template <Dtype Type>
__device__ inline void multiply_halves_on_warp(float (&c)[4], const std::uint32_t (&a)[4],
                                               const std::uint32_t (&b)[2]) {
    if constexpr (Type == Dtype::f16)
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    else
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

template <Dtype Type, int R>
struct HalfMultiply {
    static_assert(is_half(Type));
    using Layout = TensorMultiply<float, R>;  // of words
    using Of = typename Layout::Of;
    static constexpr int kWords = kSlice;          // of a row in a slice
    static constexpr int kDepth = 2 * Of::kDepth;  // columns of one mma.sync
    struct Slices {
        alignas(16) std::uint32_t a[2][Layout::kWidth * Layout::kPadded], b[2][Layout::kWidth * Layout::kPadded];
    };

    SIMKIT_BOTH static void multiply(const Slices& slices, int buffer, int thread, float (&c)[R][R]) {
#if !defined(__CUDA_ARCH__)
        multiply_on_host(slices, buffer, thread, c);
#elif __CUDA_ARCH__ >= 800
        __syncwarp();
        multiply_fragments(slices, buffer, thread, c);
#else
        multiply_plainly(slices, buffer, thread, c);
#endif
    }

#if !defined(__CUDA_ARCH__)
    struct Row {
        TensorOperand value[2 * kWords];

        Row() = default;
        SIMKIT_BOTH explicit Row(const std::uint32_t* from) {
            for (int k = 0; k < 2 * kWords; ++k) value[k] = operand_of(half_of<Type>(from[k / 2], k % 2));
        }
    };

    SIMKIT_BOTH static void multiply_on_host(const Slices& slices, int buffer, int thread, float (&c)[R][R]) {
        Row x[R], y[R];
        for (int r = 0; r < R; ++r) x[r] = Row(&slices.a[buffer][Layout::cell(Layout::row(thread, r), 0)]);
        for (int s = 0; s < R; ++s) y[s] = Row(&slices.b[buffer][Layout::cell(Layout::column(thread, s), 0)]);
        for (int r = 0; r < R; ++r)
            for (int s = 0; s < R; ++s) {
                for (int k = 0; k < 2 * kWords; k += kDepth)
                    c[r][s] += tensor_sum_of_halves(0.0f, x[r].value + k, y[s].value + k);
            }
    }
#elif __CUDA_ARCH__ >= 800
    __device__ static void multiply_fragments(const Slices& slices, int buffer, int thread, float (&c)[R][R]) {
        constexpr int at_once = 2;  // fragments of B, whose sums do not wait for one another
        SIMKIT_NO_UNROLL
        for (int k = 0; k < kWords; k += Of::kDepth) {
            std::uint32_t y[Layout::kRights][2];
            SIMKIT_UNROLL
            for (int j = 0; j < Layout::kRights; ++j) {
                SIMKIT_UNROLL
                for (int e = 0; e < 2; ++e) y[j][e] = slices.b[buffer][Layout::right_cell(thread, j, k, e)];
            }
            SIMKIT_UNROLL
            for (int i = 0; i < Layout::kLefts; ++i) {
                std::uint32_t x[4];
                SIMKIT_UNROLL
                for (int e = 0; e < 4; ++e) x[e] = slices.a[buffer][Layout::left_cell(thread, i, k, e)];
                SIMKIT_UNROLL
                for (int j = 0; j < Layout::kRights; j += at_once) {
                    float sums[at_once][4] = {};
                    SIMKIT_UNROLL
                    for (int q = 0; q < at_once; ++q) multiply_halves_on_warp<Type>(sums[q], x, y[j + q]);
                    SIMKIT_UNROLL
                    for (int q = 0; q < at_once; ++q) {
                        SIMKIT_UNROLL
                        for (int e = 0; e < 4; ++e)
                            c[Layout::sum_row(i, e)][Layout::sum_column(j + q, e)] += sums[q][e];
                    }
                }
            }
        }
    }
#else
    __device__ static void multiply_plainly(const Slices& slices, int buffer, int thread, float (&c)[R][R]) {
        SIMKIT_NO_UNROLL
        for (int k = 0; k < 2 * kWords; ++k) {
            float y[R];
            SIMKIT_UNROLL
            for (int s = 0; s < R; ++s)
                y[s] = half_of<Type>(slices.b[buffer][Layout::cell(Layout::column(thread, s), k / 2)], k % 2);
            SIMKIT_UNROLL
            for (int r = 0; r < R; ++r) {
                const float x = half_of<Type>(slices.a[buffer][Layout::cell(Layout::row(thread, r), k / 2)], k % 2);
                SIMKIT_UNROLL
                for (int s = 0; s < R; ++s) c[r][s] += x * y[s];
            }
        }
    }
#endif
};

// Rows i0.. of a and j0.. of b, columns [k0, k1), in slices of kColumns: the names of Product.
template <Dtype Type, int R>
struct HalfProduct {
    using Multiply = HalfMultiply<Type, R>;
    using Layout = typename Multiply::Layout;
    using Slices = typename Multiply::Slices;
    static constexpr int kWidth = Layout::kWidth, kThreads = kSide * kSide, kColumns = 2 * Multiply::kWords;
    static constexpr int kChunk = 1024;  // as in Product: 64 additions

    // Eight columns of a row: what one load and one store take, where they lie side by side.
    struct alignas(16) Piece {
        std::uint32_t word[4];
    };
    static constexpr int kPiece = 8, kAcross = kColumns / kPiece, kEach = kWidth * kAcross / kThreads;
    static_assert(sizeof(Piece) == 2 * kPiece && Layout::kPadded % 4 == 0 && kAcross == 4);
    struct Registers {
        float c[R][R];
        Piece a[kEach], b[kEach];  // of the next slice
    };

    Operand a, b;
    Index i0, j0, k0, k1;

    SIMKIT_BOTH int slices() const { return static_cast<int>(pieces(k1 - k0, kColumns)); }
    SIMKIT_BOTH static int row(int thread, int r) { return Layout::row(thread, r); }
    SIMKIT_BOTH static int column(int thread, int s) { return Layout::column(thread, s); }
    SIMKIT_BOTH static int row_place(int thread) { return Layout::row_place(thread); }
    SIMKIT_BOTH static int column_place(int thread) { return Layout::column_place(thread); }

    SIMKIT_BOTH static void clear(Registers& registers) {
        SIMKIT_UNROLL
        for (int r = 0; r < R; ++r) {
            SIMKIT_UNROLL
            for (int s = 0; s < R; ++s) registers.c[r][s] = 0.0f;
        }
    }

    // Which piece of a slice a thread carries: a warp takes whole rows of eight, or a column of pieces where rows are
    // neighbours in memory. Eight threads in a row store pieces of eight rows, which lie in all banks.
    SIMKIT_BOTH static void carried(bool deep, int thread, int e, int& r, int& k) {
        const int at = thread + e * kThreads;
        r = deep ? at / 32 * 8 + at % 8 : at % kWidth;
        k = (deep ? at / 8 % kAcross : at / kWidth) * kPiece;
    }

    // Whether every piece of a row begins at a multiple of its size.
    SIMKIT_BOTH static bool in_pieces(const Operand& x) {
        constexpr auto size = static_cast<Index>(sizeof(Piece));
        return x.depth_stride == 2 && x.row_stride % size == 0 && reinterpret_cast<std::uintptr_t>(x.data) % size == 0;
    }

    SIMKIT_BOTH Piece piece(const Operand& x, Index row, Index column) const {
        Piece out = {};
        if (row >= x.rows || column >= k1) return out;
        const std::byte* at = x.at(row, column);
        if (in_pieces(x) && column + kPiece <= k1) return read<Piece>(at);
        SIMKIT_UNROLL
        for (int q = 0; q < kPiece; ++q)
            if (column + q < k1)
                out.word[q / 2] |= static_cast<std::uint32_t>(read<std::uint16_t>(at + q * x.depth_stride))
                                   << (q % 2 * 16);
        return out;
    }

    SIMKIT_BOTH void fetch_side(const Operand& x, Index row0, Index column0, int thread, Piece* next) const {
        SIMKIT_UNROLL
        for (int e = 0; e < kEach; ++e) {
            int r, k;
            carried(x.deep(), thread, e, r, k);
            next[e] = piece(x, row0 + r, column0 + k);
        }
    }

    SIMKIT_BOTH static void store_side(const Operand& x, int thread, const Piece* next, std::uint32_t* slice) {
        SIMKIT_UNROLL
        for (int e = 0; e < kEach; ++e) {
            int r, k;
            carried(x.deep(), thread, e, r, k);
            *reinterpret_cast<Piece*>(slice + Layout::cell(r, k / 2)) = next[e];
        }
    }

    SIMKIT_BOTH void fetch(int slice, int thread, Registers& registers) const {
        const Index k = k0 + static_cast<Index>(slice) * kColumns;
        fetch_side(a, i0, k, thread, registers.a);
        fetch_side(b, j0, k, thread, registers.b);
    }

    SIMKIT_BOTH void store(int slice, int thread, const Registers& registers, Slices& shared) const {
        store_side(a, thread, registers.a, shared.a[slice % 2]);
        store_side(b, thread, registers.b, shared.b[slice % 2]);
    }

    // As Product's.
    SIMKIT_BOTH void step(int k, int thread, Slices& shared, Registers& registers) const {
        if (k == 0) {
            clear(registers);
            fetch(0, thread, registers);
            store(0, thread, registers, shared);
            return;
        }
        const bool more = k < slices();
        if (more) fetch(k, thread, registers);
        Multiply::multiply(shared, (k - 1) % 2, thread, registers.c);
        if (more) store(k, thread, registers, shared);
    }
};

}  // namespace simkit::cuda
