// Tiles of the upper triangle: product, compare, pack; the lower triangle by transposing bits. Tiles write disjoint
// words, so nothing is committed in order.
#include "ops/adjacency.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <mutex>
#include <numeric>
#include <type_traits>

#include "core/blas.hpp"
#include "core/clones.hpp"
#include "core/pack.hpp"
#include "cpu/unit_rows.hpp"

#ifdef SIMKIT_X86
#include <immintrin.h>
#endif

namespace simkit {
namespace {

constexpr std::int64_t kColumns = 256;  // columns of one product: its sums, and so the error bound, stay short
constexpr std::int64_t kBand = 128;     // rows compared with one threshold after the other while they are in cache
constexpr int kBits = 64;
constexpr int kLanes = 16;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// v[k] *= a b[k]; the largest and the smallest of every lane so far, NaN left out.
template <class T>
[[gnu::always_inline]] inline void scaled(T* v, T a, const T* b, std::int64_t count, T* largest, T* smallest) {
    std::int64_t k = 0;
    auto one = [&](std::int64_t at, int l) {
        v[at] *= a * b[at];
        largest[l] = v[at] > largest[l] ? v[at] : largest[l];
        smallest[l] = v[at] < smallest[l] ? v[at] : smallest[l];
    };
    for (; k + kLanes <= count; k += kLanes)
        for (int l = 0; l < kLanes; ++l) one(k + l, l);
    for (; k < count; ++k) one(k, 0);
}
SIMKIT_CLONES void scale_row(float* v, float a, const float* b, std::int64_t count, float* high, float* low) {
    scaled(v, a, b, count, high, low);
}
SIMKIT_CLONES void scale_row(double* v, double a, const double* b, std::int64_t count, double* high, double* low) {
    scaled(v, a, b, count, high, low);
}

// Bit k of `possible`: v[k] >= low; of `sure`: v[k] >= high. False for NaN.
template <class T>
[[gnu::always_inline]] inline std::uint64_t at_least(const T* v, T limit) {
    std::uint32_t half[2] = {0, 0};
    for (int h = 0; h < 2; ++h)
        for (int l = 0; l < 32; ++l) half[h] |= v[32 * h + l] >= limit ? std::uint32_t{1} << l : 0;
    return half[0] | static_cast<std::uint64_t>(half[1]) << 32;
}
template <class T>
[[gnu::always_inline]] inline void compare_any(const T* v, std::int64_t words, T low, T high, std::uint64_t* possible,
                                               std::uint64_t* sure) {
    for (std::int64_t w = 0; w < words; ++w) {
        possible[w] = at_least(v + w * kBits, low);
        sure[w] = at_least(v + w * kBits, high);
    }
}
SIMKIT_CLONES void compare(const double* v, std::int64_t words, double low, double high, std::uint64_t* possible,
                           std::uint64_t* sure) {
    compare_any(v, words, low, high, possible, sure);
}
SIMKIT_CLONES void compare_plain(const float* v, std::int64_t words, float low, float high, std::uint64_t* possible,
                                 std::uint64_t* sure) {
    compare_any(v, words, low, high, possible, sure);
}
#ifdef SIMKIT_X86
// Compilers do not find the compare that writes a mask: 2.5 times as fast.
__attribute__((target("avx512f"))) void compare_avx512(const float* v, std::int64_t words, float low, float high,
                                                       std::uint64_t* possible, std::uint64_t* sure) {
    const __m512 from = _mm512_set1_ps(low), safe = _mm512_set1_ps(high);
    for (std::int64_t w = 0; w < words; ++w) {
        std::uint64_t maybe = 0, surely = 0;
        for (int h = 0; h < kBits; h += 16) {
            const __m512 x = _mm512_loadu_ps(v + w * kBits + h);
            maybe |= static_cast<std::uint64_t>(_mm512_cmp_ps_mask(x, from, _CMP_GE_OQ)) << h;
            surely |= static_cast<std::uint64_t>(_mm512_cmp_ps_mask(x, safe, _CMP_GE_OQ)) << h;
        }
        possible[w] = maybe;
        sure[w] = surely;
    }
}
#endif
void compare(const float* v, std::int64_t words, float low, float high, std::uint64_t* possible, std::uint64_t* sure) {
#ifdef SIMKIT_X86
    static const bool wide = __builtin_cpu_supports("avx512f");
    if (wide) return compare_avx512(v, words, low, high, possible, sure);
#endif
    compare_plain(v, words, low, high, possible, sure);
}

// Bit c of word r becomes bit r of word c.
template <int step>
[[gnu::always_inline]] inline void exchange(std::uint64_t* block, std::uint64_t mask) {
    for (int base = 0; base < kBits; base += 2 * step)
        for (int r = base; r < base + step; ++r) {
            const std::uint64_t swap = (block[r] >> step ^ block[r + step]) & mask;
            block[r] ^= swap << step;
            block[r + step] ^= swap;
        }
}
SIMKIT_CLONES void transpose(std::uint64_t* block) {
    exchange<32>(block, 0x00000000ffffffff);
    exchange<16>(block, 0x0000ffff0000ffff);
    exchange<8>(block, 0x00ff00ff00ff00ff);
    exchange<4>(block, 0x0f0f0f0f0f0f0f0f);
    exchange<2>(block, 0x3333333333333333);
    exchange<1>(block, 0x5555555555555555);
}

// What every worker reads. T: the type of the products.
template <class T>
struct Pairs {
    Pairs(const MatrixView& view, const std::vector<double>& scales, const std::vector<double>& limits,
          std::int64_t side, std::uint64_t* out)
        : x(view), scale(scales), squared(limits), tile(side), words(words_of(view.rows)), bits(out) {
        in_place = readable();
        if (!in_place) zeros.assign(static_cast<std::size_t>(x.cols), 0.0);
        factor.resize(scale.size());
        for (std::size_t i = 0; i < scale.size(); ++i)  // NaN: every comparison with a zero row is false
            factor[i] = scale[i] == 0.0 ? static_cast<T>(kNaN) : in_place ? static_cast<T>(scale[i]) : T(1);
        const double unit = std::numeric_limits<T>::epsilon() / 2;
        bound = std::max(std::is_same_v<T, float> ? 1e-5 : 1e-11,
                         static_cast<double>(kColumns + x.cols / kColumns + 12) * unit);
        order.resize(squared.size());
        std::iota(order.begin(), order.end(), std::size_t{0});
        std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return squared[a] > squared[b]; });
        for (const std::size_t t : order) {
            sure.push_back(static_cast<T>(1.0 - 0.5 * squared[t] + bound));
            possible.push_back(static_cast<T>(1.0 - 0.5 * squared[t] - bound));
        }
    }
    // Whether BLAS can read the rows where they lie, without an overflow or an underflow that matters.
    bool readable() const {
        constexpr auto size = static_cast<std::int64_t>(sizeof(T));
        const bool layout = x.col_stride == size && x.row_stride % size == 0 && x.row_stride / size >= x.cols &&
                            x.row_stride / size <= std::numeric_limits<int>::max() && item_size(x.dtype) == size;
        const double far = std::is_same_v<T, float> ? 0x1p30 : 0x1p250;
        return layout && std::all_of(scale.begin(), scale.end(),
                                     [&](double s) { return s == 0.0 || (s > 1.0 / far && s < far); });
    }
    BlockView unit_rows() const { return {x, zeros.data(), scale.data(), 1.0, Kernel::linear, kNaN, 0.0, 1, nullptr}; }
    std::uint64_t* row(std::size_t t, std::int64_t i) const {
        return bits + (static_cast<std::int64_t>(t) * x.rows + i) * words;
    }

    const MatrixView& x;
    const std::vector<double>& scale;
    const std::vector<double>& squared;
    std::int64_t tile, words;
    std::uint64_t* bits;
    bool in_place;
    std::vector<double> zeros;       // [p], the shift of packed rows
    std::vector<T> factor;           // [n], products -> cosines
    std::vector<std::size_t> order;  // thresholds from the widest to the narrowest
    std::vector<T> sure, possible;   // in that order: cosines from `sure` on are edges, below `possible` none is
    double bound;
};

struct Extremes {
    double largest = -std::numeric_limits<double>::infinity(), smallest = std::numeric_limits<double>::infinity();
};

template <class T>
class TileWorker {
  public:
    TileWorker(const Pairs<T>& pairs, std::mutex& mutex, Extremes& extremes)
        : pairs_(pairs),
          mutex_(mutex),
          extremes_(extremes),
          c_(pairs.tile * pairs.tile),
          possible_(words_of(pairs.tile)),
          sure_(kBand * words_of(pairs.tile)),
          near_(kBand * words_of(pairs.tile)),
          top_(kBand) {
        if (!pairs.in_place) {
            a_.resize(pairs.tile * kColumns);
            b_.resize(pairs.tile * kColumns);
        }
        low_.fill(std::numeric_limits<T>::infinity());
    }

    void work(std::int64_t t) {
        place(t);
        multiply();
        for (std::int64_t r = 0; r < rows_; r += kBand) compare_band(r, std::min(rows_, r + kBand));
        release_rows(pairs_.x, i0_, i0_ + rows_);
        release_rows(pairs_.x, j0_, j0_ + cols_);
        std::lock_guard lock(mutex_);
        extremes_.largest = std::max<double>(extremes_.largest, largest_);
        extremes_.smallest = std::min<double>(extremes_.smallest, *std::min_element(low_.begin(), low_.end()));
    }

  private:
    // Tiles above the diagonal first: those on it are half the work and even out the end.
    void place(std::int64_t t) {
        const std::int64_t n = pairs_.x.rows, side = pairs_.tile, strips = (n + side - 1) / side;
        std::int64_t i = 0, j = 0;
        if (const std::int64_t above = strips * (strips - 1) / 2; t >= above) {
            i = j = t - above;
        } else {
            for (; t >= strips - 1 - i; ++i) t -= strips - 1 - i;
            j = i + 1 + t;
        }
        i0_ = i * side;
        j0_ = j * side;
        rows_ = std::min(n, i0_ + side) - i0_;
        cols_ = std::min(n, j0_ + side) - j0_;
    }

    bool diagonal() const { return i0_ == j0_; }

    void multiply() {
        const std::int64_t p = pairs_.x.cols;
        for (std::int64_t k = 0; k < p; k += kColumns) {
            const int count = static_cast<int>(std::min(p, k + kColumns) - k);
            const auto [a, lda] = strip(i0_, rows_, k, count, a_);
            const auto [b, ldb] = diagonal() ? std::pair{a, lda} : strip(j0_, cols_, k, count, b_);
            const int m = static_cast<int>(rows_), ld = static_cast<int>(pairs_.tile);
            if (diagonal())
                syrk_n(m, count, a, lda, T(k > 0), c_.data(), ld);
            else
                gemm_nt(m, static_cast<int>(cols_), count, a, lda, b, ldb, T(k > 0), c_.data(), ld);
        }
    }

    std::pair<const T*, int> strip(std::int64_t row, std::int64_t count, std::int64_t k, int columns,
                                   std::vector<T>& packed) const {
        const MatrixView& x = pairs_.x;
        if (pairs_.in_place)
            return {reinterpret_cast<const T*>(x.data + row * x.row_stride) + k,
                    static_cast<int>(x.row_stride / static_cast<std::int64_t>(sizeof(T)))};
        pack(pairs_.unit_rows(), row, row + count, k, k + columns, packed.data(), columns);
        return {packed.data(), columns};
    }

    // Rows [r0, r1) of the tile: cosines, compared with every threshold from the widest to the narrowest.
    void compare_band(std::int64_t r0, std::int64_t r1) {
        const std::int64_t words = words_of(cols_);
        for (std::int64_t r = r0; r < r1; ++r) top_[r - r0] = to_cosines(r, words);
        std::fill(near_.begin(), near_.end(), 0);
        for (std::size_t q = 0; q < pairs_.order.size(); ++q) {
            bool any = false;
            for (std::int64_t r = r0; r < r1; ++r) {
                std::uint64_t *sure = sure_.data() + (r - r0) * words, *near = near_.data() + (r - r0) * words;
                if (!(top_[r - r0] >= pairs_.possible[q])) {
                    std::fill(sure, sure + words, 0);
                    continue;
                }
                __builtin_prefetch(pairs_.row(pairs_.order[q], i0_ + r) + j0_ / kBits, 1);
                any = true;
                compare(cosines(r), words, pairs_.possible[q], pairs_.sure[q], possible_.data(), sure);
                for (std::int64_t w = 0; w < words; ++w) near[w] |= possible_[w] & ~sure[w];
            }
            if (!any) break;  // narrower thresholds find nothing either
            store(pairs_.order[q], r0, r1, words);
        }
        for (std::int64_t r = r0; r < r1; ++r)
            for (std::int64_t w = 0; w < words; ++w)
                for (std::uint64_t left = near_[(r - r0) * words + w]; left; left &= left - 1)
                    decide(r, w * kBits + __builtin_ctzll(left));
    }

    T* cosines(std::int64_t r) { return c_.data() + r * pairs_.tile; }

    // NaN where there is no pair: every comparison with it is false. Returns the row's largest cosine.
    T to_cosines(std::int64_t r, std::int64_t words) {
        const std::int64_t first = diagonal() ? r + 1 : 0;
        T* v = cosines(r);
        std::fill(v, v + std::min(first, cols_), static_cast<T>(kNaN));
        std::fill(v + cols_, v + words * kBits, static_cast<T>(kNaN));
        std::array<T, kLanes> high;
        high.fill(-std::numeric_limits<T>::infinity());
        if (first < cols_)
            scale_row(v + first, pairs_.factor[i0_ + r], pairs_.factor.data() + j0_ + first, cols_ - first, high.data(),
                      low_.data());
        const T top = *std::max_element(high.begin(), high.end());
        largest_ = std::max(largest_, top);
        return top;
    }

    // The band's sure edges at threshold t, and their mirror images.
    void store(std::size_t t, std::int64_t r0, std::int64_t r1, std::int64_t words) {
        for (std::int64_t r = r0; r < r1; r += kBits) {
            const std::int64_t rows = std::min<std::int64_t>(kBits, r1 - r);
            for (std::int64_t w = 0; w < words; ++w)
                store_block(t, i0_ + r, j0_ + w * kBits, sure_.data() + (r - r0) * words + w, rows, words);
        }
    }

    // 64 x 64 pairs; edges are mirrored one by one where they are few.
    void store_block(std::size_t t, std::int64_t i, std::int64_t j, const std::uint64_t* from, std::int64_t rows,
                     std::int64_t stride) {
        constexpr std::int64_t few = 12;
        std::array<std::uint64_t, kBits> block{};
        std::int64_t used = 0;
        std::uint64_t* out = pairs_.row(t, i) + j / kBits;
        for (std::int64_t k = 0; k < rows; ++k) {
            if (!(block[k] = from[k * stride])) continue;
            out[k * pairs_.words] |= block[k];
            ++used;
        }
        if (used == 0) return;
        out = pairs_.row(t, j) + i / kBits;
        if (used <= few) {
            for (std::int64_t k = 0; k < rows; ++k)
                for (std::uint64_t left = block[k]; left; left &= left - 1)
                    out[__builtin_ctzll(left) * pairs_.words] |= std::uint64_t{1} << k;
            return;
        }
        transpose(block.data());
        const std::int64_t end = std::min<std::int64_t>(kBits, pairs_.x.rows - j);
        for (std::int64_t k = 0; k < end; ++k) out[k * pairs_.words] |= block[k];
    }

    // A pair within the bound of some threshold: its verdicts there from float64 differences.
    void decide(std::int64_t r, std::int64_t c) {
        const std::int64_t i = i0_ + r, j = j0_ + c;
        const T cosine = cosines(r)[c];
        const double d2 = unit_distance(pairs_.x, i, pairs_.scale[i], j, pairs_.scale[j]);
        for (std::size_t q = 0; q < pairs_.order.size() && cosine >= pairs_.possible[q]; ++q) {
            if (cosine >= pairs_.sure[q] || !(d2 <= pairs_.squared[pairs_.order[q]])) continue;
            pairs_.row(pairs_.order[q], i)[j / kBits] |= std::uint64_t{1} << j % kBits;
            pairs_.row(pairs_.order[q], j)[i / kBits] |= std::uint64_t{1} << i % kBits;
        }
    }

    const Pairs<T>& pairs_;
    std::mutex& mutex_;
    Extremes& extremes_;
    std::vector<T> c_, a_, b_;
    std::vector<std::uint64_t> possible_, sure_, near_;  // [words] of a row, [band, words] twice
    std::vector<T> top_;                                 // [band] the largest cosine of each row
    std::array<T, kLanes> low_;
    T largest_ = -std::numeric_limits<T>::infinity();
    std::int64_t i0_ = 0, j0_ = 0, rows_ = 0, cols_ = 0;
};

template <class T>
Extremes form(const Pairs<T>& pairs, int threads, const Poll& poll) {
    const std::int64_t strips = (pairs.x.rows + pairs.tile - 1) / pairs.tile;
    Extremes extremes;
    std::mutex mutex;
    for_each_tile(strips * (strips + 1) / 2, threads, poll, [&] { return TileWorker<T>(pairs, mutex, extremes); });
    return extremes;
}

void join_zeros(const std::vector<std::int64_t>& zeros, std::int64_t n, std::size_t thresholds, std::uint64_t* bits) {
    const std::int64_t words = words_of(n);
    for (std::size_t t = 0; t < thresholds; ++t)
        for (const std::int64_t i : zeros)
            for (const std::int64_t j : zeros)
                if (i != j)
                    bits[(static_cast<std::int64_t>(t) * n + i) * words + j / kBits] |= std::uint64_t{1} << j % kBits;
}

}  // namespace

Adjacency adjacency(const MatrixView& x, const std::vector<double>& squared, std::int64_t tile, int threads,
                    const Poll& poll, std::uint64_t* bits) {
    Adjacency out;
    const std::vector<double> scale = unit_scales(x, threads, poll);
    for (std::int64_t i = 0; i < x.rows; ++i) {
        out.finite = out.finite && !std::isnan(scale[i]);
        if (scale[i] == 0.0) out.zeros.push_back(i);
    }
    if (!out.finite) return out;
    const Extremes found = x.dtype == Dtype::f64 ? form(Pairs<double>(x, scale, squared, tile, bits), threads, poll)
                                                 : form(Pairs<float>(x, scale, squared, tile, bits), threads, poll);
    const bool pairs = found.largest >= found.smallest;
    out.nearest = pairs ? std::max(0.0, 2.0 - 2.0 * found.largest) : kNaN;
    out.farthest = pairs ? std::clamp(2.0 - 2.0 * found.smallest, 0.0, 4.0) : kNaN;
    join_zeros(out.zeros, x.rows, squared.size(), bits);
    return out;
}

}  // namespace simkit
