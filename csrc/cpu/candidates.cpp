#include "ops/candidates.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <type_traits>

#include "core/clones.hpp"
#include "cpu/candidate_pass.hpp"
#include "cpu/candidate_tiles.hpp"
#include "cpu/custom_candidates.hpp"
#include "cpu/power.hpp"

namespace simkit {
namespace {

constexpr std::int64_t kTile = kCandidateTile, kRows = kCandidateRows;
constexpr double kLog2 = 0.69314718055994531;

// out [count] +-= (own_c - column_c)^2 or own_c column_c for one row of z, or the kernel's function.
template <class T>
[[gnu::always_inline]] inline void add_one(bool distance, T sign, T own, const T* column, T* out, std::int64_t count) {
    if (distance)
        for (std::int64_t j = 0; j < count; ++j) out[j] += sign * (own - column[j]) * (own - column[j]);
    else
        for (std::int64_t j = 0; j < count; ++j) out[j] += sign * own * column[j];
}
SIMKIT_CLONES void add_row(bool distance, float sign, float own, const float* column, float* out, std::int64_t count) {
    add_one(distance, sign, own, column, out, count);
}
SIMKIT_CLONES void add_row(bool distance, double sign, double own, const double* column, double* out,
                           std::int64_t count) {
    add_one(distance, sign, own, column, out, count);
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

// Sixteen at a time: the compiler keeps the order of comparisons.
template <class T, class Better>
[[gnu::always_inline]] inline T best_of(const T* v, std::int64_t count, Better better) {
    constexpr std::int64_t lanes = 16;
    T best[lanes];
    std::fill_n(best, lanes, v[0]);
    std::int64_t j = 0;
    for (; j + lanes <= count; j += lanes)
        for (std::int64_t l = 0; l < lanes; ++l) best[l] = better(v[j + l], best[l]) ? v[j + l] : best[l];
    for (; j < count; ++j) best[0] = better(v[j], best[0]) ? v[j] : best[0];
    for (std::int64_t l = 1; l < lanes; ++l) best[0] = better(best[l], best[0]) ? best[l] : best[0];
    return best[0];
}
SIMKIT_CLONES float smallest(const float* v, std::int64_t count) { return best_of(v, count, std::less<>()); }
SIMKIT_CLONES double smallest(const double* v, std::int64_t count) { return best_of(v, count, std::less<>()); }
SIMKIT_CLONES float largest(const float* v, std::int64_t count) { return best_of(v, count, std::greater<>()); }
SIMKIT_CLONES double largest(const double* v, std::int64_t count) { return best_of(v, count, std::greater<>()); }

template <class T>
class Features {
  public:
    explicit Features(const CandidateProblem<T>& problem)
        : p_(problem), distance_(problem.kernel == Kernel::rbf || problem.kernel == Kernel::laplacian) {}

    bool distance() const { return distance_; }

    // q of the given rows of z, between samples i0 <= i < i1 and `count` samples from j0 on; leading dimension kTile.
    void base(const std::vector<std::int64_t>& rows, std::int64_t i0, std::int64_t i1, std::int64_t j0,
              std::int64_t count, T* q) const {
        feature_sums(distance_, PairFeatures<T>{p_.z, p_.n, rows, i0, i1 - i0, j0}, count, q);
    }

    void take(T sign, std::int64_t row, std::int64_t i, std::int64_t j0, std::int64_t count, T* q) const {
        add_row(distance_, sign, p_.z[row * p_.n + i], p_.z + row * p_.n + j0, q, count);
    }

    // Distances that have cancelled are formed again from the rows that are left, [first, last) aside: what rounding
    // leaves of them may be larger than they are, and a root makes much of it.
    void mend(const std::vector<std::int64_t>& rows, std::int64_t first, std::int64_t last, std::int64_t i,
              std::int64_t j0, std::int64_t count, const T* before, T* q) const {
        constexpr T share = sizeof(T) == 4 ? T(0.1) : T(1e-4);
        for (std::int64_t j = 0; j < count; ++j) {
            if (!cancelled(q[j], before[j], share)) continue;
            double sum = 0.0;  // of many rows that are alike, which round alike
            for (std::int64_t row : rows) {
                const double d = double(p_.z[row * p_.n + i] - p_.z[row * p_.n + j0 + j]);
                if (row < first || row >= last) sum += d * d;
            }
            q[j] = T(sum);
        }
    }

    // q -> what the pass expects: the square root, or the kernel's value.
    void shape(T* q, std::int64_t count) const {
        if (p_.kernel == Kernel::laplacian) to_root(q, count);
        if (p_.kernel == Kernel::polynomial) to_power(T(p_.length), T(p_.coef0), p_.degree, q, count);
    }

    // f, or f - 1, of what was shaped.
    double value(T shaped, bool small) const {
        const auto q = static_cast<double>(shaped);
        if (!distance_) return q;
        return small ? std::exp2(-q) : std::expm1(-q * kLog2);
    }

    // The same of (q_ii) of the rows given.
    double diagonal(const std::vector<std::int64_t>& rows, std::int64_t i, bool small) const {
        if (distance_) return small ? 1.0 : 0.0;
        double q = 0.0;
        for (std::int64_t row : rows) q += double(p_.z[row * p_.n + i]) * double(p_.z[row * p_.n + i]);
        return std::pow(p_.length * q + p_.coef0, p_.degree);
    }

  private:
    const CandidateProblem<T>& p_;
    bool distance_;
};

// L below the diagonal of a tile.
template <class T>
class Centred {
  public:
    explicit Centred(const CandidateProblem<T>& problem)
        : p_(problem), features_(problem), rows_(all_rows(problem.offsets)) {}

    // Rows i0 <= i < i1, at most kRows; leading dimension kTile.
    void rows(const CandidateTile& tile, std::int64_t i0, std::int64_t i1, T* out) const {
        features_.base(rows_, i0, i1, tile.j0, tile.count(i1 - 1), out);
        for (std::int64_t i = i0; i < i1; ++i, out += kTile) {
            const std::int64_t count = tile.count(i);
            features_.shape(out, count);
            for (std::int64_t j = 0; j < count; ++j) {
                const double value = features_.value(out[j], p_.small_centre);
                out[j] = static_cast<T>(value - p_.centre[i] - p_.centre[tile.j0 + j]);
            }
        }
    }

    double diagonal(std::int64_t i) const { return features_.diagonal(rows_, i, p_.small_centre) - 2.0 * p_.centre[i]; }

  private:
    const CandidateProblem<T>& p_;
    Features<T> features_;
    std::vector<std::int64_t> rows_;
};

// In T, what a pass takes off.
template <class T>
struct Levels {
    std::int64_t n;
    bool each;
    std::vector<T> values;  // [n], or, each, [candidates, n]

    explicit Levels(const CandidateProblem<T>& problem) : n(problem.n), each(problem.levels_each) {
        const std::int64_t count = each ? n * static_cast<std::int64_t>(problem.candidates.size()) : n;
        values.assign(problem.levels, problem.levels + count);
    }

    const T* of(std::size_t candidate) const {
        return values.data() + (each ? static_cast<std::int64_t>(candidate) * n : 0);
    }
};

template <class T>
class Worker {
  public:
    Worker(const CandidateProblem<T>& problem, const Levels<T>& levels, CandidateSums& out)
        : p_(problem),
          levels_(levels),
          out_(out),
          features_(problem),
          centred_(problem),
          kept_(rows_of(problem.offsets, problem.kept)),
          base_(kRows * kTile),
          rest_(kRows * kTile),
          power_(kRows * kTile),
          less_(kRows * kTile),
          off_(kRows * kTile),
          l_(problem.packed ? 0 : kRows * kTile),
          low_(problem.candidates.size()),
          high_(problem.candidates.size()),
          sums_(problem.candidates.size()) {}

    void work(std::int64_t t) {
        tile_ = tile_at(t, p_.n);
        sums_.clear();
        if (p_.kernel == Kernel::rbf) find_ranges();
        for (std::int64_t i0 = tile_.i0; i0 < tile_.i1; i0 += kRows) {
            const std::int64_t i1 = std::min(tile_.i1, i0 + kRows);
            features_.base(kept_, i0, i1, tile_.j0, tile_.count(i1 - 1), base_.data());
            if (!p_.packed && p_.centre) centred_.rows(tile_, i0, i1, l_.data());
            if (levels_.each)
                std::fill(off_.begin(), off_.end(), T(0));  // each candidate's own are taken off when its turn comes
            else
                level_rows(levels_.of(0), i0, i1, tile_.j0, tile_.j1 - tile_.j0, off_.data());
            if (p_.kernel == Kernel::rbf) {
                least_ = kMost;
                for (std::int64_t i = i0; i < i1; ++i)
                    if (tile_.count(i) > 0)
                        least_ = std::min(least_, smallest(base_.data() + (i - i0) * kTile, tile_.count(i)));
                std::copy(base_.begin(), base_.end(), power_.begin());
                for (std::int64_t i = i0; i < i1; ++i)
                    powers(p_.small, off_.data() + (i - i0) * kTile, power_.data() + (i - i0) * kTile,
                           less_.data() + (i - i0) * kTile, tile_.count(i));
            }
            for (std::size_t k = 0; k < p_.candidates.size(); ++k) add(k, i0, i1);
        }
    }

    void commit(std::int64_t) { sums_.commit(tile_, p_.n, out_); }

  private:
    static constexpr T kMost = std::numeric_limits<T>::max();

    void add(std::size_t k, std::int64_t i0, std::int64_t i1) {
        const std::int64_t unit = p_.candidates[k], width = tile_.j1 - tile_.j0;
        Strip<T> s{};
        s.rows = i1 - i0;
        s.count = tile_.count(i0);
        s.longer = tile_.diagonal();
        s.width = width;
        s.centred = p_.packed ? p_.packed + tile_.at + (i0 - tile_.i0) * width : l_.data();
        s.ld = p_.packed ? width : kTile;
        sums_.begin(k, i0 - tile_.i0, s);
        if (levels_.each) level_rows(levels_.of(k), i0, i1, tile_.j0, width, off_.data());
        const Form form = leave_out(unit, k, i0, i1, s);
        candidate_pass(form, s);
        sums_.end(k, s);
    }

    // What the pass reads for one unit's absence, and in which form. The only feature of an RBF kernel's unit is taken
    // off by the pass itself, as a factor where it is small, or off the distances where they do not cancel.
    Form leave_out(std::int64_t unit, std::size_t k, std::int64_t i0, std::int64_t i1, Strip<T>& s) {
        const std::int64_t first = unit < 0 ? 0 : p_.offsets[unit], last = unit < 0 ? 0 : p_.offsets[unit + 1];
        s.base = base_.data();
        s.less = off_.data();
        if (p_.kernel == Kernel::rbf && last == first + 1) {
            s.own = p_.z + first * p_.n + i0;
            s.column = p_.z + first * p_.n + tile_.j0;
            T low = s.own[0], high = s.own[0];
            for (std::int64_t r = 1; r < s.rows; ++r) {
                low = std::min(low, s.own[r]);
                high = std::max(high, s.own[r]);
            }
            const T away = std::max(high - low_[k], high_[k] - low);
            if (away <= T(1)) {
                s.base = power_.data();
                s.less = levels_.each ? lessened(i0, i1) : less_.data();
                return away <= T(0.5) ? Form::near : away * away <= T(0.5) ? Form::middle : Form::far;
            }
            if (away * away <= T(0.9) * least_) return p_.small ? Form::fused_small : Form::fused;
        }
        if (first < last || p_.kernel != Kernel::rbf) {
            for (std::int64_t i = i0; i < i1; ++i) {
                T* rest = rest_.data() + (i - i0) * kTile;
                std::copy_n(base_.data() + (i - i0) * kTile, tile_.count(i), rest);
                for (std::int64_t row = first; row < last; ++row)
                    features_.take(T(-1), row, i, tile_.j0, tile_.count(i), rest);
                if (features_.distance() && first < last)
                    features_.mend(kept_, first, last, i, tile_.j0, tile_.count(i), base_.data() + (i - i0) * kTile,
                                   rest);
                features_.shape(rest, tile_.count(i));
            }
            s.base = rest_.data();
        }
        if (!features_.distance()) return Form::ready;
        return p_.small ? Form::scaled_small : Form::scaled;
    }

    // Of levels of the candidate's own.
    const T* lessened(std::int64_t i0, std::int64_t i1) {
        for (std::int64_t i = i0; i < i1; ++i)
            for (std::int64_t at = (i - i0) * kTile, j = 0; j < tile_.count(i); ++j, ++at)
                rest_[at] = less_[at] - off_[at];
        return rest_.data();
    }

    // The range of each candidate's last feature over the tile's columns.
    void find_ranges() {
        for (std::size_t k = 0; k < p_.candidates.size(); ++k) {
            if (p_.candidates[k] < 0) continue;
            const T* row = p_.z + (p_.offsets[p_.candidates[k] + 1] - 1) * p_.n;
            low_[k] = smallest(row + tile_.j0, tile_.j1 - tile_.j0);
            high_[k] = largest(row + tile_.j0, tile_.j1 - tile_.j0);
        }
    }

    const CandidateProblem<T>& p_;
    const Levels<T>& levels_;
    CandidateSums& out_;
    Features<T> features_;
    Centred<T> centred_;
    std::vector<std::int64_t> kept_;
    std::vector<T> base_, rest_, power_, less_, off_, l_, low_, high_;
    TileSums<T> sums_;
    T least_ = 0;  // of all distances in the rows at hand
    CandidateTile tile_{};
};

template <class T>
struct PackWorker {
    const CandidateProblem<T>& problem;
    T* out;
    Centred<T> centred{problem};
    std::vector<T> rows = std::vector<T>(kRows * kTile);
    void work(std::int64_t t) {
        const CandidateTile tile = tile_at(t, problem.n);
        for (std::int64_t i0 = tile.i0; i0 < tile.i1; i0 += kRows) {
            const std::int64_t i1 = std::min(tile.i1, i0 + kRows);
            centred.rows(tile, i0, i1, rows.data());
            for (std::int64_t i = i0; i < i1; ++i)
                std::copy_n(rows.data() + (i - i0) * kTile, tile.count(i),
                            out + tile.at + (i - tile.i0) * (tile.j1 - tile.j0));
        }
    }
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
        const double* levels =
            problem.levels + (problem.levels_each ? static_cast<std::int64_t>(k) * problem.n : std::int64_t{0});
        for (std::int64_t i = 0; i < problem.n; ++i) {
            const double value = features.diagonal(rows, i, problem.small) - 2.0 * levels[i];
            if (problem.centre) out.cross[k] += value * centred.diagonal(i);
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
    if constexpr (std::is_same_v<T, double>)
        if (problem.kernel == Kernel::custom) return custom_sums(problem, poll);
    const std::size_t count = problem.candidates.size();
    CandidateSums out{std::vector<double>(count), std::vector<double>(count),
                      std::vector<double>(count * static_cast<std::size_t>(problem.n))};
    const Levels<T> levels(problem);
    for_each_tile(tile_count(problem.n), problem.threads, poll, [&] { return Worker<T>(problem, levels, out); });
    if (!problem.debiased) add_diagonal(problem, out);
    return out;
}

template <class T>
void pack_centred(const CandidateProblem<T>& problem, const Poll& poll, T* out) {
    if constexpr (std::is_same_v<T, double>)
        if (problem.kernel == Kernel::custom) return pack_custom(problem, poll, out);
    for_each_tile(tile_count(problem.n), problem.threads, poll, [&] { return PackWorker<T>{problem, out}; });
}

template CandidateSums candidate_sums<float>(const CandidateProblem<float>&, const Poll&);
template CandidateSums candidate_sums<double>(const CandidateProblem<double>&, const Poll&);
template void pack_centred<float>(const CandidateProblem<float>&, const Poll&, float*);
template void pack_centred<double>(const CandidateProblem<double>&, const Poll&, double*);

}  // namespace simkit
