#include "ops/candidates.hpp"

#include <algorithm>
#include <cmath>

#include "core/clones.hpp"
#include "cpu/exponential.hpp"

namespace simkit {
namespace {

constexpr std::int64_t kTile = 256;  // samples
constexpr std::int64_t kRows = 8;    // rows of a tile whose distances stay in the level-1 cache while candidates pass

// A few rows of a tile and one candidate.
template <class T>
struct Strip {
    std::int64_t rows, count;  // row r has count + r * longer columns: longer = 1 on the diagonal
    std::int64_t longer;
    const T* base;     // [rows], leading dimension kTile: q of all kept units, less what the pass does not take off
    const T* own;      // [rows] the candidate's last feature at the rows' samples
    const T* column;   // and at the columns'
    const T* centred;  // [rows], leading dimension ld: L
    std::int64_t ld;
    T level;
    T* columns;        // += K
    double* row_sums;  // [rows] += K
    double cross, squares;
};

enum class Form {
    fused,   // K = 2^((own - column)^2 - base) - 1 - level
    scaled,  // K = 2^-base - 1 - level
    ready    // K = base - level
};

template <class T, int Bytes, Form form>
[[gnu::always_inline]] inline void pass_body(Strip<T>& s) {
    constexpr std::int64_t lanes = Bytes / static_cast<std::int64_t>(sizeof(T));
    typedef T Vector __attribute__((vector_size(Bytes)));
    typedef T Loose __attribute__((vector_size(Bytes), aligned(sizeof(T)), may_alias));
    typedef typename PowerOfTwo<T>::Integer Integers __attribute__((vector_size(Bytes)));
    const Vector level = s.level - Vector{};
    const auto load = [](const T* p)
                          __attribute__((always_inline)) { return Vector(*reinterpret_cast<const Loose*>(p)); };
    Vector cross = {}, squares = {};
    T* const sums = s.columns;
    for (std::int64_t r = 0; r < s.rows; ++r) {
        const T *const base = s.base + r * kTile, *const column = s.column, *const l = s.centred + r * s.ld;
        const std::int64_t count = s.count + r * s.longer;
        const Vector own = (form == Form::fused ? s.own[r] : T(0)) - Vector{};
        const auto kernel = [&](Vector q, Vector c) __attribute__((always_inline)) {
            if constexpr (form == Form::ready) return q - level;
            if constexpr (form == Form::scaled) return power_of_two_less_one<T, Vector, Integers>(-q) - level;
            const Vector d = own - c;
            return power_of_two_less_one<T, Vector, Integers>(d * d - q) - level;
        };
        Vector sum = {};
        const auto take = [&](Vector value, Vector centred) __attribute__((always_inline)) {
            cross += value * centred;
            squares += value * value;
            sum += value;
        };
        std::int64_t j = 0;
        for (; j <= count - lanes; j += lanes) {
            const Vector value = kernel(load(base + j), form == Form::fused ? load(column + j) : Vector{});
            take(value, load(l + j));
            Loose* to = reinterpret_cast<Loose*>(sums + j);
            *to = *to + value;
        }
        if (j < count) {
            alignas(64) T last[lanes] = {}, other[lanes] = {}, centred[lanes] = {}, used[lanes] = {}, out[lanes];
            for (std::int64_t i = 0; i < count - j; ++i) {
                last[i] = base[j + i];
                other[i] = form == Form::fused ? column[j + i] : T(0);
                centred[i] = l[j + i];
                used[i] = T(1);
            }
            const Vector value = load(used) > T(0) ? kernel(load(last), load(other)) : Vector{};
            take(value, load(centred));
            *reinterpret_cast<Loose*>(out) = value;
            for (std::int64_t i = 0; i < count - j; ++i) sums[j + i] += out[i];
        }
        alignas(64) T part[lanes];
        *reinterpret_cast<Loose*>(part) = sum;
        for (std::int64_t half = lanes / 2; half > 0; half /= 2)
            for (std::int64_t i = 0; i < half; ++i) part[i] += part[i + half];
        s.row_sums[r] += static_cast<double>(part[0]);
    }
    for (std::int64_t i = 0; i < lanes; ++i) {
        s.cross += static_cast<double>(cross[i]);
        s.squares += static_cast<double>(squares[i]);
    }
}

template <class T>
using Pass = void (*)(Strip<T>&);

template <class T, Form form>
void pass_baseline(Strip<T>& s) {
    pass_body<T, 16, form>(s);
}
#ifdef SIMKIT_X86
template <class T, Form form>
__attribute__((target("avx2,fma"))) void pass_avx2(Strip<T>& s) {
    pass_body<T, 32, form>(s);
}
template <class T, Form form>
__attribute__((target("avx512f,avx512dq,fma"))) void pass_avx512(Strip<T>& s) {
    pass_body<T, 64, form>(s);
}
#endif

template <class T, Form form>
Pass<T> choose_pass() {
#ifdef SIMKIT_X86
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")) return pass_avx512<T, form>;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return pass_avx2<T, form>;
#endif
    return pass_baseline<T, form>;
}

// out [count] +-= (own_c - column_c)^2 or own_c column_c for one row of z, four of them, or the kernel's function.
template <class T>
[[gnu::always_inline]] inline void add_one(bool distance, T sign, T own, const T* column, T* out, std::int64_t count) {
    if (distance)
        for (std::int64_t j = 0; j < count; ++j) out[j] += sign * (own - column[j]) * (own - column[j]);
    else
        for (std::int64_t j = 0; j < count; ++j) out[j] += sign * own * column[j];
}
template <class T>
[[gnu::always_inline]] inline void add_four_body(const T* own, const T* const* c, T* out, std::int64_t count) {
    const T o0 = own[0], o1 = own[1], o2 = own[2], o3 = own[3];
    const T *c0 = c[0], *c1 = c[1], *c2 = c[2], *c3 = c[3];
    for (std::int64_t j = 0; j < count; ++j) {
        const T d0 = o0 - c0[j], d1 = o1 - c1[j], d2 = o2 - c2[j], d3 = o3 - c3[j];
        out[j] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3);
    }
}
SIMKIT_CLONES void add_row(bool distance, float sign, float own, const float* column, float* out, std::int64_t count) {
    add_one(distance, sign, own, column, out, count);
}
SIMKIT_CLONES void add_row(bool distance, double sign, double own, const double* column, double* out,
                           std::int64_t count) {
    add_one(distance, sign, own, column, out, count);
}
SIMKIT_CLONES void add_four(const float* own, const float* const* c, float* out, std::int64_t count) {
    add_four_body(own, c, out, count);
}
SIMKIT_CLONES void add_four(const double* own, const double* const* c, double* out, std::int64_t count) {
    add_four_body(own, c, out, count);
}
template <class T>
[[gnu::always_inline]] inline void power_body(T length, T coef0, int degree, T* q, std::int64_t count) {
    for (std::int64_t j = 0; j < count; ++j) {
        const T base = length * q[j] + coef0;
        T value = base;
        for (int d = 1; d < degree; ++d) value *= base;
        q[j] = value;
    }
}
SIMKIT_CLONES void to_power(float length, float coef0, int degree, float* q, std::int64_t count) {
    power_body(length, coef0, degree, q, count);
}
SIMKIT_CLONES void to_power(double length, double coef0, int degree, double* q, std::int64_t count) {
    power_body(length, coef0, degree, q, count);
}
SIMKIT_CLONES void to_root(float* q, std::int64_t count) {
    for (std::int64_t j = 0; j < count; ++j) q[j] = std::sqrt(q[j]);
}
SIMKIT_CLONES void to_root(double* q, std::int64_t count) {
    for (std::int64_t j = 0; j < count; ++j) q[j] = std::sqrt(q[j]);
}

struct Tile {
    std::int64_t i0, i1, j0, j1;
    std::int64_t at;  // of its first element in the packed L
    bool diagonal() const { return i0 == j0; }
    // Columns below the diagonal in row i.
    std::int64_t count(std::int64_t i) const { return diagonal() ? i - j0 : j1 - j0; }
};

// Tiles (I, J), J <= I, row by row.
Tile tile_at(std::int64_t t, std::int64_t n) {
    std::int64_t row = 0;
    while (t > row) t -= ++row;
    Tile tile{row * kTile, std::min(n, (row + 1) * kTile), t * kTile, std::min(n, (t + 1) * kTile), 0};
    tile.at = row * (row + 1) / 2 * kTile * kTile + (tile.i1 - tile.i0) * tile.j0;
    return tile;
}

std::int64_t tile_count(std::int64_t n) {
    const std::int64_t tiles = (n + kTile - 1) / kTile;
    return tiles * (tiles + 1) / 2;
}

template <class T>
class Features {
  public:
    explicit Features(const CandidateProblem<T>& problem)
        : p_(problem), distance_(problem.kernel == Kernel::rbf || problem.kernel == Kernel::laplacian) {}

    bool distance() const { return distance_; }

    // q [count] of the given rows of z, between sample i and samples j0...
    void base(const std::vector<std::int64_t>& rows, std::int64_t i, std::int64_t j0, std::int64_t count, T* q) const {
        std::fill_n(q, count, T(0));
        std::size_t r = 0;
        for (; distance_ && r + 4 <= rows.size(); r += 4) {
            T own[4];
            const T* columns[4];
            for (std::size_t s = 0; s < 4; ++s) {
                own[s] = p_.z[rows[r + s] * p_.n + i];
                columns[s] = p_.z + rows[r + s] * p_.n + j0;
            }
            add_four(own, columns, q, count);
        }
        for (; r < rows.size(); ++r) take(T(1), rows[r], i, j0, count, q);
    }

    void take(T sign, std::int64_t row, std::int64_t i, std::int64_t j0, std::int64_t count, T* q) const {
        add_row(distance_, sign, p_.z[row * p_.n + i], p_.z + row * p_.n + j0, q, count);
    }

    // Distances that have cancelled are formed again from the rows that are left, [first, last) aside: a root makes
    // much of what rounding leaves of them.
    void mend(const std::vector<std::int64_t>& rows, std::int64_t first, std::int64_t last, std::int64_t i,
              std::int64_t j0, std::int64_t count, const T* before, T* q) const {
        constexpr T cancelled = sizeof(T) == 4 ? T(0.1) : T(1e-4);
        for (std::int64_t j = 0; j < count; ++j) {
            if (!(q[j] < cancelled * before[j])) continue;
            q[j] = T(0);
            for (std::int64_t row : rows) {
                const T d = p_.z[row * p_.n + i] - p_.z[row * p_.n + j0 + j];
                if (row < first || row >= last) q[j] += d * d;
            }
        }
    }

    // q -> what the pass expects: the square root, or the kernel's value.
    void shape(T* q, std::int64_t count) const {
        if (p_.kernel == Kernel::laplacian) to_root(q, count);
        if (p_.kernel == Kernel::polynomial) to_power(T(p_.length), T(p_.coef0), p_.degree, q, count);
    }

    // f(q_ii) of the rows given.
    double diagonal(const std::vector<std::int64_t>& rows, std::int64_t i) const {
        if (distance_) return 1.0;
        double q = 0.0;
        for (std::int64_t row : rows) q += double(p_.z[row * p_.n + i]) * double(p_.z[row * p_.n + i]);
        return std::pow(p_.length * q + p_.coef0, p_.degree);
    }

  private:
    const CandidateProblem<T>& p_;
    bool distance_;
};

std::vector<std::int64_t> rows_of(const std::vector<std::int64_t>& offsets, const std::vector<std::int64_t>& units) {
    std::vector<std::int64_t> rows;
    for (std::int64_t unit : units)
        for (std::int64_t r = offsets[unit]; r < offsets[unit + 1]; ++r) rows.push_back(r);
    return rows;
}

std::vector<std::int64_t> all_rows(const std::vector<std::int64_t>& offsets) {
    std::vector<std::int64_t> rows(offsets.back());
    for (std::size_t r = 0; r < rows.size(); ++r) rows[r] = static_cast<std::int64_t>(r);
    return rows;
}

// One row of L below the diagonal of a tile.
template <class T>
class Centred {
  public:
    explicit Centred(const CandidateProblem<T>& problem)
        : p_(problem), features_(problem), rows_(all_rows(problem.offsets)) {}

    void row(std::int64_t i, std::int64_t j0, std::int64_t count, T* out) {
        features_.base(rows_, i, j0, count, out);
        features_.shape(out, count);
        for (std::int64_t j = 0; j < count; ++j) {
            const double value =
                features_.distance() ? std::exp2(-static_cast<double>(out[j])) : static_cast<double>(out[j]);
            out[j] = static_cast<T>(value - p_.centre[i] - p_.centre[j0 + j] + p_.mean);
        }
    }

    double diagonal(std::int64_t i) const { return features_.diagonal(rows_, i) - 2.0 * p_.centre[i] + p_.mean; }

  private:
    const CandidateProblem<T>& p_;
    Features<T> features_;
    std::vector<std::int64_t> rows_;
};

template <class T>
class Worker {
  public:
    Worker(const CandidateProblem<T>& problem, CandidateSums& out)
        : p_(problem),
          out_(out),
          features_(problem),
          centred_(problem),
          kept_(rows_of(problem.offsets, problem.kept)),
          base_(kRows * kTile),
          rest_(kRows * kTile),
          l_(problem.packed ? 0 : kRows * kTile),
          columns_(problem.candidates.size() * kTile),
          row_sums_(problem.candidates.size() * kTile),
          cross_(problem.candidates.size()),
          squares_(problem.candidates.size()) {}

    void work(std::int64_t t) {
        tile_ = tile_at(t, p_.n);
        for (auto* sums : {&cross_, &squares_, &row_sums_}) std::fill(sums->begin(), sums->end(), 0.0);
        std::fill(columns_.begin(), columns_.end(), T(0));
        for (std::int64_t i0 = tile_.i0; i0 < tile_.i1; i0 += kRows) {
            const std::int64_t i1 = std::min(tile_.i1, i0 + kRows);
            for (std::int64_t i = i0; i < i1; ++i) {
                features_.base(kept_, i, tile_.j0, tile_.count(i), base_.data() + (i - i0) * kTile);
                if (!p_.packed) centred_.row(i, tile_.j0, tile_.count(i), l_.data() + (i - i0) * kTile);
            }
            for (std::size_t k = 0; k < p_.candidates.size(); ++k) add(k, i0, i1);
        }
    }

    void commit(std::int64_t) {
        for (std::size_t k = 0; k < p_.candidates.size(); ++k) {
            out_.cross[k] += 2.0 * cross_[k];
            out_.squares[k] += 2.0 * squares_[k];
            double* rows = out_.rows.data() + static_cast<std::int64_t>(k) * p_.n;
            for (std::int64_t i = tile_.i0; i < tile_.i1; ++i) rows[i] += row_sums_[k * kTile + (i - tile_.i0)];
            for (std::int64_t j = tile_.j0; j < tile_.j1; ++j) rows[j] += columns_[k * kTile + (j - tile_.j0)];
        }
    }

  private:
    void add(std::size_t k, std::int64_t i0, std::int64_t i1) {
        static const Pass<T> fused = choose_pass<T, Form::fused>(), scaled = choose_pass<T, Form::scaled>(),
                             ready = choose_pass<T, Form::ready>();
        const std::int64_t unit = p_.candidates[k], width = tile_.j1 - tile_.j0;
        const bool fuse = p_.kernel == Kernel::rbf && unit >= 0;
        const std::int64_t first = unit < 0 ? 0 : p_.offsets[unit], last = unit < 0 ? 0 : p_.offsets[unit + 1] - fuse;
        Strip<T> s{};
        s.rows = i1 - i0;
        s.count = tile_.count(i0);
        s.longer = tile_.diagonal();
        s.base = base_.data();
        s.centred = p_.packed ? p_.packed + tile_.at + (i0 - tile_.i0) * width : l_.data();
        s.ld = p_.packed ? width : kTile;
        s.level = T(features_.distance() ? p_.level - 1.0 : p_.level);
        s.columns = columns_.data() + k * kTile;
        s.row_sums = row_sums_.data() + k * kTile + (i0 - tile_.i0);
        if (first < last || p_.kernel != Kernel::rbf) {
            for (std::int64_t i = i0; i < i1; ++i) {
                T* rest = rest_.data() + (i - i0) * kTile;
                std::copy_n(s.base + (i - i0) * kTile, tile_.count(i), rest);
                for (std::int64_t row = first; row < last; ++row)
                    features_.take(T(-1), row, i, tile_.j0, tile_.count(i), rest);
                if (p_.kernel == Kernel::laplacian && first < last)
                    features_.mend(kept_, first, last, i, tile_.j0, tile_.count(i), s.base + (i - i0) * kTile, rest);
                features_.shape(rest, tile_.count(i));
            }
            s.base = rest_.data();
        }
        if (fuse) {
            s.own = p_.z + last * p_.n + i0;
            s.column = p_.z + last * p_.n + tile_.j0;
        }
        (fuse ? fused : features_.distance() ? scaled : ready)(s);
        cross_[k] += s.cross;
        squares_[k] += s.squares;
    }

    const CandidateProblem<T>& p_;
    CandidateSums& out_;
    Features<T> features_;
    Centred<T> centred_;
    std::vector<std::int64_t> kept_;
    std::vector<T> base_, rest_, l_, columns_;
    std::vector<double> row_sums_, cross_, squares_;
    Tile tile_{};
};

template <class T>
struct PackWorker {
    const CandidateProblem<T>& problem;
    T* out;
    Centred<T> centred{problem};
    void work(std::int64_t t) {
        const Tile tile = tile_at(t, problem.n);
        for (std::int64_t i = tile.i0; i < tile.i1; ++i)
            centred.row(i, tile.j0, tile.count(i), out + tile.at + (i - tile.i0) * (tile.j1 - tile.j0));
    }
    void commit(std::int64_t) {}
};

// The diagonal, which only the biased form counts.
template <class T>
void add_diagonal(const CandidateProblem<T>& problem, CandidateSums& out) {
    const Features<T> features(problem);
    const Centred<T> centred(problem);
    for (std::size_t k = 0; k < problem.candidates.size(); ++k) {
        std::vector<std::int64_t> units;
        for (std::int64_t unit : problem.kept)
            if (unit != problem.candidates[k]) units.push_back(unit);
        const std::vector<std::int64_t> rows = rows_of(problem.offsets, units);
        for (std::int64_t i = 0; i < problem.n; ++i) {
            const double value = features.diagonal(rows, i) - problem.level;
            out.cross[k] += value * centred.diagonal(i);
            out.squares[k] += value * value;
            out.rows[static_cast<std::int64_t>(k) * problem.n + i] += value;
        }
    }
}

}  // namespace

std::int64_t packed_size(std::int64_t n) {
    const std::int64_t full = n / kTile;
    return full * (full + 1) / 2 * kTile * kTile + (n - full * kTile) * n;
}

template <class T>
CandidateSums candidate_sums(const CandidateProblem<T>& problem, const Poll& poll) {
    const std::size_t count = problem.candidates.size();
    CandidateSums out{std::vector<double>(count), std::vector<double>(count),
                      std::vector<double>(count * static_cast<std::size_t>(problem.n))};
    for_each_tile(tile_count(problem.n), problem.threads, poll, [&] { return Worker<T>(problem, out); });
    if (!problem.debiased) add_diagonal(problem, out);
    return out;
}

template <class T>
void pack_centred(const CandidateProblem<T>& problem, const Poll& poll, T* out) {
    for_each_tile(tile_count(problem.n), problem.threads, poll, [&] { return PackWorker<T>{problem, out}; });
}

template CandidateSums candidate_sums<float>(const CandidateProblem<float>&, const Poll&);
template CandidateSums candidate_sums<double>(const CandidateProblem<double>&, const Poll&);
template void pack_centred<float>(const CandidateProblem<float>&, const Poll&, float*);
template void pack_centred<double>(const CandidateProblem<double>&, const Poll&, double*);

}  // namespace simkit
