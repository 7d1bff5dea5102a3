// The product of 16-bit rows on tensor cores, warp by warp: what the lanes of csrc/cuda/half_product.hpp load and hold,
// through the PTX ISA's own tables, against what every thread forms by itself on the host.
#include <algorithm>
#include <array>
#include <random>
#include <set>

#include "cuda/half_product.hpp"
#include "emulated.hpp"

using namespace simkit;
using namespace simkit::cuda;
using emulated::guarded;

namespace {

constexpr int kLanes = 32;

// PTX ISA 9.7.14.5.8, matrix fragments for mma.m16n8k16, .f16 and .bf16; written as it is there. Elements 2 q and 2 q +
// 1 of A and B are the lower and the upper half of register q.
struct IsaHalf {
    static constexpr int M = 16, N = 8, K = 16, A = 8, B = 4, C = 4;

    static void a(int laneid, int i, int& row, int& col) {
        const int groupID = laneid >> 2, threadID_in_group = laneid % 4;
        row = (0 <= i && i < 2) || (4 <= i && i < 6) ? groupID : groupID + 8;
        col = i < 4 ? threadID_in_group * 2 + (i & 0x1) : threadID_in_group * 2 + (i & 0x1) + 8;
    }
    static void b(int laneid, int i, int& row, int& col) {
        const int groupID = laneid >> 2, threadID_in_group = laneid % 4;
        row = i < 2 ? threadID_in_group * 2 + (i & 0x1) : threadID_in_group * 2 + (i & 0x1) + 8;
        col = groupID;
    }
    static void c(int laneid, int i, int& row, int& col) {
        const int groupID = laneid >> 2, threadID_in_group = laneid % 4;
        row = i < 2 ? groupID : groupID + 8;
        col = threadID_in_group * 2 + (i & 0x1);
    }
};

float sum_of(float c, const float* x, const float* y) {
    TensorOperand left[IsaHalf::K], right[IsaHalf::K];
    for (int k = 0; k < IsaHalf::K; ++k) {
        left[k] = operand_of(x[k]);
        right[k] = operand_of(y[k]);
    }
    return tensor_sum_of_halves(c, left, right);
}

// c += a b of a warp, as the PTX ISA defines it: the registers of all lanes.
template <Dtype Type>
void warp_mma(std::array<float, 4> (&c)[kLanes], const std::array<std::uint32_t, 4> (&a)[kLanes],
              const std::array<std::uint32_t, 2> (&b)[kLanes]) {
    using Isa = IsaHalf;
    float left[Isa::M][Isa::K], right[Isa::N][Isa::K], sums[Isa::M][Isa::N];
    int row, col;
    for (int lane = 0; lane < kLanes; ++lane) {
        for (int i = 0; i < Isa::A; ++i)
            Isa::a(lane, i, row, col), left[row][col] = half_of<Type>(a[lane][i / 2], i % 2);
        for (int i = 0; i < Isa::B; ++i)
            Isa::b(lane, i, row, col), right[col][row] = half_of<Type>(b[lane][i / 2], i % 2);
        for (int i = 0; i < Isa::C; ++i) Isa::c(lane, i, row, col), sums[row][col] = c[lane][i];
    }
    for (row = 0; row < Isa::M; ++row)
        for (col = 0; col < Isa::N; ++col) sums[row][col] = sum_of(sums[row][col], left[row], right[col]);
    for (int lane = 0; lane < kLanes; ++lane)
        for (int i = 0; i < Isa::C; ++i) Isa::c(lane, i, row, col), c[lane][i] = sums[row][col];
}

template <Dtype Type>
struct Warps {
    static constexpr int R = 8;
    using Whole = HalfProduct<Type, R>;
    using Multiply = HalfMultiply<Type, R>;
    using Layout = typename Multiply::Layout;
    using Slices = typename Multiply::Slices;
    using Sums = std::array<std::array<std::array<float, R>, R>, kSide * kSide>;

    static void multiply(const Slices& slices, int buffer, Sums& c) {
        std::array<std::uint32_t, 4> a[kLanes];
        std::array<std::uint32_t, 2> b[kLanes];
        for (int warp = 0; warp < kSide * kSide / kLanes; ++warp)
            for (int i = 0; i < Layout::kLefts; ++i)
                for (int j = 0; j < Layout::kRights; ++j)
                    for (int k = 0; k < Multiply::kWords; k += Layout::Of::kDepth) {
                        for (int lane = 0; lane < kLanes; ++lane) {
                            const int thread = warp * kLanes + lane;
                            for (int e = 0; e < 4; ++e)
                                a[lane][e] = slices.a[buffer][Layout::left_cell(thread, i, k, e)];
                            for (int e = 0; e < 2; ++e)
                                b[lane][e] = slices.b[buffer][Layout::right_cell(thread, j, k, e)];
                        }
                        std::array<float, 4> sums[kLanes] = {};
                        warp_mma<Type>(sums, a, b);
                        for (int lane = 0; lane < kLanes; ++lane)
                            for (int e = 0; e < 4; ++e)
                                c[warp * kLanes + lane][Layout::sum_row(i, e)][Layout::sum_column(j, e)] +=
                                    sums[lane][e];
                    }
    }

    // Two slices through warps and through threads: the same bits in every element of every thread.
    static void check() {
        auto slices = std::make_unique<Slices>();
        std::fill_n(&slices->a[0][0], sizeof(Slices) / sizeof(std::uint32_t), 0xffffffffu);  // NaN
        std::mt19937 random(7);
        // Of either sign, within a factor of 2^8.
        const auto number = [&] {
            const std::uint32_t low = Type == Dtype::bf16 ? 123u << 7 : 11u << 10, bits = random();
            return (bits & 0x8000u) | (low + (bits >> 16) % (Type == Dtype::bf16 ? 8u << 7 : 8u << 10));
        };
        for (int buffer = 0; buffer < 2; ++buffer)
            for (int r = 0; r < Layout::kWidth; ++r)
                for (int k = 0; k < Multiply::kWords; ++k) {
                    slices->a[buffer][Layout::cell(r, k)] = number() | number() << 16;
                    slices->b[buffer][Layout::cell(r, k)] = number() | number() << 16;
                }
        auto sums = std::make_unique<Sums>(Sums{});
        for (int buffer = 0; buffer < 2; ++buffer) multiply(*slices, buffer, *sums);
        for (int thread = 0; thread < kSide * kSide; ++thread) {
            float c[R][R] = {};
            for (int buffer = 0; buffer < 2; ++buffer) Multiply::multiply(*slices, buffer, thread, c);
            for (int r = 0; r < R; ++r)
                for (int s = 0; s < R; ++s) {
                    double exact = 0.0, size = 0.0;
                    for (int buffer = 0; buffer < 2; ++buffer)
                        for (int k = 0; k < 2 * Multiply::kWords; ++k) {
                            const auto of = [&](const std::uint32_t* side, int row) {
                                return static_cast<double>(half_of<Type>(side[Layout::cell(row, k / 2)], k % 2));
                            };
                            const double term = of(slices->a[buffer], Layout::row(thread, r)) *
                                                of(slices->b[buffer], Layout::column(thread, s));
                            exact += term;
                            size += std::fabs(term);
                        }
                    if (!(std::fabs(exact - c[r][s]) <= 4 * std::numeric_limits<float>::epsilon() * size))
                        throw std::runtime_error("a product of rows is wrong");
                    if (std::memcmp(&c[r][s], &(*sums)[thread][r][s], sizeof(float)) != 0)
                        throw std::runtime_error("a warp and a thread disagree");
                }
        }
    }

    // The most accesses of `group` lanes, of `words` words each, that meet in one bank.
    template <class Cell>
    static int conflicts(int words, Cell&& cell) {
        constexpr int banks = 32;
        const int group = banks / words;
        int most = 0;
        for (int first = 0; first < kSide * kSide; first += group) {
            std::set<int> found[banks];
            for (int thread = first; thread < first + group; ++thread)
                for (int w = 0; w < words; ++w) found[(cell(thread) + w) % banks].insert(cell(thread) + w);
            for (const auto& of : found) most = std::max(most, static_cast<int>(of.size()));
        }
        return most;
    }

    // worst: [loads of fragments, stores of rows along memory, stores of rows across it]. Every piece of a slice is
    // carried once.
    static void count_conflicts(int* worst) {
        for (int k = 0; k < Multiply::kWords; k += Layout::Of::kDepth) {
            for (int e = 0; e < 4 * Layout::kLefts; ++e)
                worst[0] = std::max(
                    worst[0], conflicts(1, [&](int thread) { return Layout::left_cell(thread, e / 4, k, e % 4); }));
            for (int e = 0; e < 2 * Layout::kRights; ++e)
                worst[0] = std::max(
                    worst[0], conflicts(1, [&](int thread) { return Layout::right_cell(thread, e / 2, k, e % 2); }));
        }
        for (const bool deep : {true, false}) {
            std::set<int> held;
            for (int e = 0; e < Whole::kEach; ++e) {
                const auto place = [&](int thread) {
                    int r, k;
                    Whole::carried(deep, thread, e, r, k);
                    return Layout::cell(r, k / 2);
                };
                worst[deep ? 1 : 2] = std::max(worst[deep ? 1 : 2], conflicts(4, place));
                for (int thread = 0; thread < Whole::kThreads; ++thread)
                    if (!held.insert(place(thread)).second) throw std::runtime_error("two threads carry one piece");
            }
            if (held.size() != static_cast<std::size_t>(Layout::kWidth * Whole::kAcross))
                throw std::runtime_error("a piece is carried by no thread");
        }
    }
};

}  // namespace

extern "C" {

int warps_agree() {
    return guarded([] {
        Warps<Dtype::bf16>::check();
        Warps<Dtype::f16>::check();
    });
}

int bank_conflicts(int* worst) {
    return guarded([&] {
        std::fill_n(worst, 3, 0);
        Warps<Dtype::bf16>::count_conflicts(worst);
    });
}

// Both numbers of words [count], as they go to tensor cores: values [count, 2].
int widen_words(const std::uint32_t* words, Index count, int bfloat, float* values) {
    return guarded([&] {
        for (Index i = 0; i < 2 * count; ++i) {
            const int which = static_cast<int>(i % 2);
            values[i] = bfloat ? half_of<Dtype::bf16>(words[i / 2], which) : half_of<Dtype::f16>(words[i / 2], which);
        }
    });
}

// c + x y [16] of 16-bit numbers, as one mma.sync forms an element.
int sum_of_sixteen(float c, const float* x, const float* y, float* sum) {
    return guarded([&] { *sum = sum_of(c, x, y); });
}

}  // extern "C"
