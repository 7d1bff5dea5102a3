// The product on tensor cores, warp by warp: what the lanes of csrc/cuda/tensor_product.hpp load and hold, through the
// PTX ISA's own tables, against what every thread forms by itself on the host.
#include <algorithm>
#include <array>
#include <random>
#include <set>

#include "cuda/tensor_product.hpp"
#include "emulated.hpp"

using namespace simkit::cuda;
using emulated::guarded;

namespace {

constexpr int kLanes = 32;

// PTX ISA 9.7.14.5.7, matrix fragments for mma.m16n8k8, .tf32; written as it is there.
struct IsaFloat {
    static constexpr int M = 16, N = 8, K = 8, A = 4, B = 2, C = 4;
    using Part = float;

    static void a(int laneid, int i, int& row, int& col) {
        const int groupID = laneid >> 2, threadID_in_group = laneid % 4;
        row = i == 0 || i == 2 ? groupID : groupID + 8;
        col = i == 0 || i == 1 ? threadID_in_group : threadID_in_group + 4;
    }
    static void b(int laneid, int i, int& row, int& col) {
        const int groupID = laneid >> 2, threadID_in_group = laneid % 4;
        row = i == 0 ? threadID_in_group : threadID_in_group + 4;
        col = groupID;
    }
    static void c(int laneid, int i, int& row, int& col) {
        const int groupID = laneid >> 2, threadID_in_group = laneid % 4;
        row = i == 0 || i == 1 ? groupID : groupID + 8;
        col = threadID_in_group * 2 + (i & 0x1);
    }
    static float sum(float c, const float* x, const float* y) {
        TensorOperand left[K], right[K];
        for (int k = 0; k < K; ++k) {
            if ((bits_of(x[k]) | bits_of(y[k])) & 0x1fffu) throw std::runtime_error("an operand is no number of TF32");
            left[k] = operand_of(x[k]);
            right[k] = operand_of(y[k]);
        }
        return tensor_sum(c, left, right);
    }
};

// PTX ISA 9.7.14.5.2, matrix fragments for mma.m8n8k4, .f64.
struct IsaDouble {
    static constexpr int M = 8, N = 8, K = 4, A = 1, B = 1, C = 2;
    using Part = double;

    static void a(int laneid, int, int& row, int& col) {
        row = laneid >> 2;
        col = laneid % 4;
    }
    static void b(int laneid, int, int& row, int& col) {
        row = laneid % 4;
        col = laneid >> 2;
    }
    static void c(int laneid, int i, int& row, int& col) {
        const int groupID = laneid >> 2, threadID_in_group = laneid % 4;
        row = groupID;
        col = threadID_in_group * 2 + (i & 0x1);
    }
    static double sum(double c, const double* x, const double* y) {
        for (int k = 0; k < K; ++k) c = std::fma(x[k], y[k], c);
        return c;
    }
};

template <class T>
using IsaOf = std::conditional_t<std::is_same_v<T, float>, IsaFloat, IsaDouble>;

// c += a b of a warp, as the PTX ISA defines it: the registers of all lanes.
template <class T, class Isa = IsaOf<T>>
void warp_mma(std::array<T, Isa::C> (&c)[kLanes], const std::array<T, Isa::A> (&a)[kLanes],
              const std::array<T, Isa::B> (&b)[kLanes]) {
    T left[Isa::M][Isa::K], right[Isa::N][Isa::K], sums[Isa::M][Isa::N];
    int row, col;
    for (int lane = 0; lane < kLanes; ++lane) {
        for (int i = 0; i < Isa::A; ++i) Isa::a(lane, i, row, col), left[row][col] = a[lane][i];
        for (int i = 0; i < Isa::B; ++i) Isa::b(lane, i, row, col), right[col][row] = b[lane][i];
        for (int i = 0; i < Isa::C; ++i) Isa::c(lane, i, row, col), sums[row][col] = c[lane][i];
    }
    for (row = 0; row < Isa::M; ++row)
        for (col = 0; col < Isa::N; ++col) sums[row][col] = Isa::sum(sums[row][col], left[row], right[col]);
    for (int lane = 0; lane < kLanes; ++lane)
        for (int i = 0; i < Isa::C; ++i) Isa::c(lane, i, row, col), c[lane][i] = sums[row][col];
}

float part_of(float z, bool high) { return high ? split(z).high : split(z).low; }

template <class T, int R>
struct Warps {
    using Multiply = TensorMultiply<T, R>;
    using Isa = IsaOf<T>;
    using Slices = typename Multiply::Slices;
    using Sums = std::array<std::array<std::array<T, R>, R>, kSide * kSide>;

    // The fragments that the lanes of a warp load: of A the i-th, of B the j-th.
    template <std::size_t Count, class Cell>
    static void load(std::array<T, Count> (&to)[kLanes], const T* side, int warp, bool high, Cell&& cell) {
        for (int lane = 0; lane < kLanes; ++lane)
            for (std::size_t e = 0; e < Count; ++e) {
                const T value = side[cell(warp * kLanes + lane, static_cast<int>(e))];
                if constexpr (std::is_same_v<T, float>)
                    to[lane][e] = part_of(value, high);
                else
                    to[lane][e] = value;
            }
    }

    static void multiply(const Slices& slices, int buffer, Sums& c) {
        std::array<T, Isa::A> a[kLanes];
        std::array<T, Isa::B> b[kLanes];
        std::array<T, Isa::C> sums[kLanes];
        const auto product = [&](int warp, int i, int j, int k, bool left_high, bool right_high) {
            load(a, slices.a[buffer], warp, left_high,
                 [&](int thread, int e) { return Multiply::left_cell(thread, i, k, e); });
            load(b, slices.b[buffer], warp, right_high,
                 [&](int thread, int e) { return Multiply::right_cell(thread, j, k, e); });
            warp_mma<T>(sums, a, b);
        };
        const auto own = [&](int warp, int lane, int i, int j, int e) -> T& {
            return c[warp * kLanes + lane][Multiply::sum_row(i, e)][Multiply::sum_column(j, e)];
        };
        for (int warp = 0; warp < kSide * kSide / kLanes; ++warp)
            for (int k = 0; k < kSlice; k += Isa::K)
                for (int i = 0; i < Multiply::kLefts; ++i)
                    for (int j = 0; j < Multiply::kRights; ++j) {
                        for (int lane = 0; lane < kLanes; ++lane)
                            for (int e = 0; e < Isa::C; ++e)
                                sums[lane][e] = std::is_same_v<T, float> ? T(0) : own(warp, lane, i, j, e);
                        if (std::is_same_v<T, float>) {
                            product(warp, i, j, k, false, true);
                            product(warp, i, j, k, true, false);
                        }
                        product(warp, i, j, k, true, true);
                        for (int lane = 0; lane < kLanes; ++lane)
                            for (int e = 0; e < Isa::C; ++e) {
                                T& to = own(warp, lane, i, j, e);
                                to = std::is_same_v<T, float> ? to + sums[lane][e] : sums[lane][e];
                            }
                    }
    }

    // Two slices through warps and through threads: the same bits in every element of every thread, and as many rows
    // and columns as the square has.
    static void check() {
        auto slices = std::make_unique<Slices>();
        std::mt19937 random(R);
        std::normal_distribution<T> normal;
        std::fill_n(&slices->a[0][0], sizeof(Slices) / sizeof(T), std::numeric_limits<T>::quiet_NaN());
        for (int buffer = 0; buffer < 2; ++buffer)
            for (int r = 0; r < Multiply::kWidth; ++r)
                for (int k = 0; k < kSlice; ++k) {
                    slices->a[buffer][Multiply::cell(r, k)] = normal(random) * (k % 5 ? T(1) : T(1e-4));
                    slices->b[buffer][Multiply::cell(r, k)] = normal(random) + T(r % 3);
                }
        auto sums = std::make_unique<Sums>(Sums{});
        for (int buffer = 0; buffer < 2; ++buffer) multiply(*slices, buffer, *sums);
        std::set<std::pair<int, int>> held;
        for (int thread = 0; thread < kSide * kSide; ++thread) {
            T c[R][R] = {};
            for (int buffer = 0; buffer < 2; ++buffer) Multiply::multiply(*slices, buffer, thread, false, c);
            for (int r = 0; r < R; ++r)
                for (int s = 0; s < R; ++s) {
                    const int row = Multiply::row(thread, r), column = Multiply::column(thread, s);
                    if (!held.insert({row, column}).second) throw std::runtime_error("two threads hold one element");
                    double exact = 0.0, size = 0.0;
                    for (int buffer = 0; buffer < 2; ++buffer)
                        for (int k = 0; k < kSlice; ++k) {
                            const double term = static_cast<double>(slices->a[buffer][Multiply::cell(row, k)]) *
                                                static_cast<double>(slices->b[buffer][Multiply::cell(column, k)]);
                            exact += term;
                            size += std::fabs(term);
                        }
                    if (!(std::fabs(exact - c[r][s]) <= 8 * std::numeric_limits<T>::epsilon() * size))
                        throw std::runtime_error("a product of rows is wrong");
                    if (std::memcmp(&c[r][s], &(*sums)[thread][r][s], sizeof(T)) != 0)
                        throw std::runtime_error("a warp and a thread disagree");
                }
        }
        if (held.size() != static_cast<std::size_t>(Multiply::kWidth * Multiply::kWidth) ||
            held.rbegin()->first >= Multiply::kWidth)
            throw std::runtime_error("an element is held by no thread");
    }
};

// The most accesses of a group of lanes (a quarter, half or whole warp, 128 bytes) that meet in one bank.
template <class T, class Cell>
int conflicts(Cell&& cell) {
    constexpr int group = 128 / static_cast<int>(sizeof(T)), banks = group;
    int most = 0;
    for (int first = 0; first < kSide * kSide; first += group) {
        std::set<int> words[banks];
        for (int thread = first; thread < first + group; ++thread) {
            const int word = cell(thread);
            words[word % banks].insert(word);
        }
        for (const auto& of : words) most = std::max(most, static_cast<int>(of.size()));
    }
    return most;
}

// worst: [loads of fragments, stores of rows along memory, stores of rows across it]
template <class T, int R>
void count_conflicts(int* worst) {
    using Multiply = TensorMultiply<T, R>;
    using Whole = Product<T, R, false, Operand, Multiply>;
    const auto take = [&](int which, int found) { worst[which] = std::max(worst[which], found); };
    for (int k = 0; k < kSlice; k += Multiply::Of::kDepth) {
        for (int i = 0; i < Multiply::kLefts; ++i)
            for (int e = 0; e < Multiply::Of::kLeft; ++e)
                take(0, conflicts<T>([&](int thread) { return Multiply::left_cell(thread, i, k, e); }));
        for (int j = 0; j < Multiply::kRights; ++j)
            for (int e = 0; e < Multiply::Of::kRight; ++e)
                take(0, conflicts<T>([&](int thread) { return Multiply::right_cell(thread, j, k, e); }));
    }
    for (const bool deep : {true, false})
        for (int e = 0; e < Whole::kEach; ++e)
            take(deep ? 1 : 2, conflicts<T>([&](int thread) {
                     int r, k;
                     Whole::carried(deep, thread, e, r, k);
                     return Multiply::cell(r, k);
                 }));
}

}  // namespace

extern "C" {

int warps_agree() {
    return guarded([] {
        Warps<float, 8>::check();
        Warps<float, 4>::check();
        Warps<double, 4>::check();
    });
}

int bank_conflicts(int* single, int* wide) {
    return guarded([&] {
        std::fill_n(single, 3, 0);
        std::fill_n(wide, 3, 0);
        count_conflicts<float, 8>(single);
        count_conflicts<double, 4>(wide);
    });
}

// parts [count, 2] of float32 numbers, as they go to tensor cores.
int split_floats(const float* z, Index count, float* parts) {
    return guarded([&] {
        for (Index i = 0; i < count; ++i) {
            const SplitFloat of = split(z[i]);
            parts[2 * i] = of.high;
            parts[2 * i + 1] = of.low;
        }
    });
}

// c + x y [8] of numbers of TF32, as one mma.sync forms an element.
int sum_of_eight(float c, const float* x, const float* y, float* sum) {
    return guarded([&] { *sum = IsaFloat::sum(c, x, y); });
}

}  // extern "C"
