#include "cpu/candidate_pass.hpp"

#include <algorithm>
#include <cstring>

#include "core/clones.hpp"
#include "cpu/exponential.hpp"

namespace simkit {
namespace {

constexpr std::int64_t kTile = kCandidateTile;
constexpr std::int64_t kGroup = 4;  // rows whose sums stay in registers

template <class T, int Bytes>
struct Lanes {
    typedef T Vector __attribute__((vector_size(Bytes)));
    typedef T Loose __attribute__((vector_size(Bytes), aligned(sizeof(T)), may_alias));
    typedef typename PowerOfTwo<T>::Integer Integers __attribute__((vector_size(Bytes)));
    static constexpr std::int64_t count = Bytes / static_cast<std::int64_t>(sizeof(T));

    [[gnu::always_inline]] static Vector load(const T* p) { return *reinterpret_cast<const Loose*>(p); }
    [[gnu::always_inline]] static void store(T* p, Vector value) { *reinterpret_cast<Loose*>(p) = value; }

    // 0, 1, 2, ...
    [[gnu::always_inline]] static Integers lanes() {
        Integers all;
        for (int i = 0; i < count; ++i) all[i] = i;
        return all;
    }

    // Halves onto halves.
    [[gnu::always_inline]] static T sum(Vector value) {
        if constexpr (count == 2) {
            return value[0] + value[1];
        } else {
            using Half = Lanes<T, Bytes / 2>;
            typename Half::Vector low, high;
            std::memcpy(&low, &value, sizeof low);
            std::memcpy(&high, reinterpret_cast<const char*>(&value) + sizeof low, sizeof high);
            return Half::sum(low + high);
        }
    }
};

constexpr bool is_factor(Form form) { return form == Form::near || form == Form::middle || form == Form::far; }
constexpr Reach reach(Form form) {
    return form == Form::near ? Reach::quarter : form == Form::middle ? Reach::half : Reach::one;
}

template <class T, int Bytes, Form form>
[[gnu::always_inline]] inline typename Lanes<T, Bytes>::Vector kernel(typename Lanes<T, Bytes>::Vector base,
                                                                      typename Lanes<T, Bytes>::Vector less,
                                                                      typename Lanes<T, Bytes>::Vector d) {
    using L = Lanes<T, Bytes>;
    using Vector = typename L::Vector;
    if constexpr (is_factor(form)) return base * power_of_little<T, Vector, reach(form)>(d * d) + less;
    using Integers = typename L::Integers;
    if constexpr (form == Form::fused) return power_of_two_less_one<T, Vector, Integers>(d * d - base) - less;
    if constexpr (form == Form::fused_small) return power_of_two<T, Vector, Integers>(d * d - base) - less;
    if constexpr (form == Form::scaled) return power_of_two_less_one<T, Vector, Integers>(-base) - less;
    if constexpr (form == Form::scaled_small) return power_of_two<T, Vector, Integers>(-base) - less;
    return base - less;
}

template <class T, int Bytes>
struct Totals {
    typename Lanes<T, Bytes>::Vector cross, squares;
};

// Rows [first, first + Rows): the columns that all count together; beside the diagonal the next ones under masks; row
// by row what is then left of a diagonal tile whose width is no whole number of vectors.
template <class T, int Bytes, Form form, int Rows>
[[gnu::always_inline]] inline void pass_rows(const Strip<T>& s, std::int64_t first, Totals<T, Bytes>& totals) {
    using L = Lanes<T, Bytes>;
    using Vector = typename L::Vector;
    using Integer = typename PowerOfTwo<T>::Integer;
    constexpr bool differs = is_factor(form) || form == Form::fused || form == Form::fused_small;
    const T* const base = s.base + first * kTile;
    const T* const less = s.less + first * kTile;
    const T* const centred = s.centred + first * s.ld;
    T own[Rows] = {};
    for (int r = 0; differs && r < Rows; ++r) own[r] = s.own[first + r];
    const std::int64_t shared = (s.count + first * s.longer) / L::count * L::count;
    Vector sum[Rows] = {}, cross = {}, squares = {};
    const auto value_at = [&](int r, std::int64_t j, Vector column) __attribute__((always_inline)) {
        return kernel<T, Bytes, form>(L::load(base + r * kTile + j), L::load(less + r * kTile + j),
                                      differs ? (own[r] - Vector{}) - column : column);
    };
    for (std::int64_t j = 0; j < shared; j += L::count) {
        const Vector column = differs ? L::load(s.column + j) : Vector{};
        Vector down = L::load(s.columns + j);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
            const Vector value = value_at(r, j, column);
            cross += value * L::load(centred + r * s.ld + j);
            squares += value * value;
            sum[r] += value;
            down += value;
        }
        L::store(s.columns + j, down);
    }
    // Beside the diagonal, vectors of which each row counts another part.
    std::int64_t done = shared;
    for (; s.longer && done < s.count + first + Rows - 1 && done + L::count <= s.width; done += L::count) {
        const Vector column = differs ? L::load(s.column + done) : Vector{};
        Vector down = L::load(s.columns + done);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
            const auto counts = L::lanes() < static_cast<Integer>(s.count + first + r - done);
            const Vector value = counts ? value_at(r, done, column) : Vector{};
            const Vector l = counts ? L::load(centred + r * s.ld + done) : Vector{};
            cross += value * l;
            squares += value * value;
            sum[r] += value;
            down += value;
        }
        L::store(s.columns + done, down);
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
        const std::int64_t count = s.count + (first + r) * s.longer;
        for (std::int64_t j = done; j < count; j += L::count) {
            const std::int64_t held = count - j < L::count ? count - j : L::count;
            alignas(64) T b[L::count] = {}, less_[L::count] = {}, c[L::count] = {}, l[L::count] = {},
                          used[L::count] = {}, out[L::count];
            for (std::int64_t i = 0; i < held; ++i) {
                b[i] = base[r * kTile + j + i];
                less_[i] = less[r * kTile + j + i];
                c[i] = differs ? s.column[j + i] : T(0);
                l[i] = centred[r * s.ld + j + i];
                used[i] = T(1);
            }
            const Vector all = kernel<T, Bytes, form>(L::load(b), L::load(less_), (own[r] - Vector{}) - L::load(c));
            const Vector value = L::load(used) > T(0) ? all : Vector{};
            cross += value * L::load(l);
            squares += value * value;
            sum[r] += value;
            L::store(out, value);
            for (std::int64_t i = 0; i < held; ++i) s.columns[j + i] += out[i];
        }
        s.row_sums[first + r] += static_cast<double>(L::sum(sum[r]));
    }
    totals.cross += cross;
    totals.squares += squares;
}

template <class T, int Bytes, Form form>
[[gnu::always_inline]] inline void pass_body(Strip<T>& s) {
    using L = Lanes<T, Bytes>;
    Totals<T, Bytes> totals{};
    std::int64_t r = 0;
    for (; r + kGroup <= s.rows; r += kGroup) pass_rows<T, Bytes, form, kGroup>(s, r, totals);
    for (; r < s.rows; ++r) pass_rows<T, Bytes, form, 1>(s, r, totals);
    using Wide = Lanes<double, sizeof(double) * L::count>;
    s.cross += Wide::sum(__builtin_convertvector(totals.cross, typename Wide::Vector));
    s.squares += Wide::sum(__builtin_convertvector(totals.squares, typename Wide::Vector));
}

template <class T, int Bytes>
[[gnu::always_inline]] inline void powers_body(bool small, const T* levels, T* base, T* less, std::int64_t count) {
    using L = Lanes<T, Bytes>;
    using Vector = typename L::Vector;
    for (std::int64_t j = 0; small && j < count; j += L::count) {  // rows are padded to whole tiles
        const Vector value = power_of_two<T, Vector, typename L::Integers>(-L::load(base + j));
        L::store(base + j, value);
        L::store(less + j, value - L::load(levels + j));
    }
    for (std::int64_t j = 0; !small && j < count; j += L::count) {
        const Vector value = power_of_two_less_one<T, Vector, typename L::Integers>(-L::load(base + j));
        L::store(base + j, value + T(1));
        L::store(less + j, value - L::load(levels + j));
    }
}

constexpr std::int64_t kFeatures = 64;  // summed in a register

// Rows x Vectors sums in registers.
template <class T, int Bytes, bool distance, int Rows, int Vectors>
[[gnu::always_inline]] inline void sum_block(const PairFeatures<T>& f, std::int64_t first, std::int64_t last,
                                             std::int64_t r, std::int64_t j, T* q) {
    using L = Lanes<T, Bytes>;
    using Vector = typename L::Vector;
    Vector sum[Rows][Vectors] = {};
    for (std::int64_t k = first; k < last; ++k) {
        const T* const z = f.z + f.features[k] * f.n;
        Vector column[Vectors];
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) column[v] = L::load(z + f.j0 + j + v * L::count);
#pragma GCC unroll 4
        for (int i = 0; i < Rows; ++i) {
            const Vector own = z[f.i0 + r + i] - Vector{};
#pragma GCC unroll 4
            for (int v = 0; v < Vectors; ++v) {
                const Vector d = distance ? own - column[v] : column[v];
                sum[i][v] += (distance ? d : own) * d;
            }
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < Rows; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) {
            T* const to = q + (r + i) * kTile + j + v * L::count;
            L::store(to, first ? L::load(to) + sum[i][v] : sum[i][v]);
        }
}

template <class T, int Bytes, bool distance>
[[gnu::always_inline]] inline void sum_features(const PairFeatures<T>& f, std::int64_t count, T* q) {
    constexpr std::int64_t lanes = Lanes<T, Bytes>::count, pair = 2 * lanes;
    const std::int64_t all = static_cast<std::int64_t>(f.features.size());
    // What lies beyond is computed too, as long as it is a sample.
    const std::int64_t whole = f.j0 + (count + pair - 1) / pair * pair <= f.n ? count : count / pair * pair;
    for (std::int64_t first = 0; first < all; first += kFeatures) {
        const std::int64_t last = first + kFeatures < all ? first + kFeatures : all;
        std::int64_t r = 0;
        for (; r + kGroup <= f.rows; r += kGroup)
            for (std::int64_t j = 0; j < whole; j += pair)
                sum_block<T, Bytes, distance, kGroup, 2>(f, first, last, r, j, q);
        for (; r < f.rows; ++r)
            for (std::int64_t j = 0; j < whole; j += pair) sum_block<T, Bytes, distance, 1, 2>(f, first, last, r, j, q);
        for (r = 0; r < f.rows; ++r)
            for (std::int64_t j = whole; j < count; ++j) {
                T sum = 0;
                for (std::int64_t k = first; k < last; ++k) {
                    const T* const z = f.z + f.features[k] * f.n;
                    const T d = distance ? z[f.i0 + r] - z[f.j0 + j] : z[f.j0 + j];
                    sum += (distance ? d : z[f.i0 + r]) * d;
                }
                q[r * kTile + j] = first ? q[r * kTile + j] + sum : sum;
            }
    }
}

template <class T, int Bytes>
[[gnu::always_inline]] inline void sums_body(bool distance, const PairFeatures<T>& f, std::int64_t count, T* q) {
    if (distance)
        sum_features<T, Bytes, true>(f, count, q);
    else
        sum_features<T, Bytes, false>(f, count, q);
}

template <class T>
struct Passes {
    void (*run[kForms])(Strip<T>&);
    void (*powers)(bool, const T*, T*, T*, std::int64_t);
    void (*sums)(bool, const PairFeatures<T>&, std::int64_t, T*);
};

#define SIMKIT_PASSES(pass, powers, sums)                                                                    \
    {{pass<T, Form::near>, pass<T, Form::middle>, pass<T, Form::far>, pass<T, Form::fused>,                  \
      pass<T, Form::fused_small>, pass<T, Form::scaled>, pass<T, Form::scaled_small>, pass<T, Form::ready>}, \
     powers<T>,                                                                                              \
     sums<T>}

template <class T, Form form>
void pass_baseline(Strip<T>& s) {
    pass_body<T, 16, form>(s);
}
template <class T>
void powers_baseline(bool small, const T* levels, T* base, T* less, std::int64_t count) {
    powers_body<T, 16>(small, levels, base, less, count);
}
template <class T>
void sums_baseline(bool distance, const PairFeatures<T>& f, std::int64_t count, T* q) {
    sums_body<T, 16>(distance, f, count, q);
}
#ifdef SIMKIT_X86
template <class T, Form form>
__attribute__((target("avx2,fma"))) void pass_avx2(Strip<T>& s) {
    pass_body<T, 32, form>(s);
}
template <class T>
__attribute__((target("avx2,fma"))) void powers_avx2(bool small, const T* levels, T* base, T* less,
                                                     std::int64_t count) {
    powers_body<T, 32>(small, levels, base, less, count);
}
template <class T>
__attribute__((target("avx2,fma"))) void sums_avx2(bool distance, const PairFeatures<T>& f, std::int64_t count, T* q) {
    sums_body<T, 32>(distance, f, count, q);
}
template <class T, Form form>
__attribute__((target("avx512f,avx512dq,fma"))) void pass_avx512(Strip<T>& s) {
    pass_body<T, 64, form>(s);
}
template <class T>
__attribute__((target("avx512f,avx512dq,fma"))) void powers_avx512(bool small, const T* levels, T* base, T* less,
                                                                   std::int64_t count) {
    powers_body<T, 64>(small, levels, base, less, count);
}
template <class T>
__attribute__((target("avx512f,avx512dq,fma"))) void sums_avx512(bool distance, const PairFeatures<T>& f,
                                                                 std::int64_t count, T* q) {
    sums_body<T, 64>(distance, f, count, q);
}
#endif

template <class T>
Passes<T> choose() {
#ifdef SIMKIT_X86
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq"))
        return SIMKIT_PASSES(pass_avx512, powers_avx512, sums_avx512);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return SIMKIT_PASSES(pass_avx2, powers_avx2, sums_avx2);
#endif
    return SIMKIT_PASSES(pass_baseline, powers_baseline, sums_baseline);
}

template <class T>
const Passes<T>& passes() {
    static const Passes<T> chosen = choose<T>();
    return chosen;
}

}  // namespace

template <class T>
void candidate_pass(Form form, Strip<T>& strip) {
    passes<T>().run[static_cast<int>(form)](strip);
}

template <class T>
void powers(bool small, const T* levels, T* base, T* less, std::int64_t count) {
    passes<T>().powers(small, levels, base, less, count);
}

template <class T>
void feature_sums(bool distance, const PairFeatures<T>& f, std::int64_t count, T* q) {
    if (f.features.empty())
        for (std::int64_t r = 0; r < f.rows; ++r) std::fill_n(q + r * kTile, count, T(0));
    else
        passes<T>().sums(distance, f, count, q);
}

template void feature_sums<float>(bool, const PairFeatures<float>&, std::int64_t, float*);
template void feature_sums<double>(bool, const PairFeatures<double>&, std::int64_t, double*);
template void candidate_pass<float>(Form, Strip<float>&);
template void candidate_pass<double>(Form, Strip<double>&);
template void powers<float>(bool, const float*, float*, float*, std::int64_t);
template void powers<double>(bool, const double*, double*, double*, std::int64_t);

}  // namespace simkit
