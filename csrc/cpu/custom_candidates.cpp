#include "cpu/custom_candidates.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "core/clones.hpp"
#include "cpu/candidate_pass.hpp"
#include "cpu/candidate_tiles.hpp"
#include "cpu/gram_tile.hpp"
#include "ops/hsic.hpp"

namespace simkit {
namespace {

constexpr std::int64_t kTile = kCandidateTile, kRows = kCandidateRows;
constexpr double kCancelled = 1e-4;  // of a distance, or of what products can be: less has lost four digits
constexpr double kSign = 1e-8;       // of what products can be: more is far beyond rounding, so that its sign is right

using Problem = CandidateProblem<double>;
using Indices = std::vector<std::int64_t>;

SIMKIT_CLONES void take_off(double own, const double* column, double* products, double* distances, std::int64_t count) {
    for (std::int64_t j = 0; j < count; ++j) {
        const double d = own - column[j];
        products[j] -= own * column[j];
        distances[j] -= d * d;
    }
}

SIMKIT_CLONES void add_squares(double sign, const double* row, double* squares, std::int64_t count) {
    for (std::int64_t j = 0; j < count; ++j) squares[j] += sign * row[j] * row[j];
}

// Square roots; what rounding leaves below 0 is none.
SIMKIT_CLONES void to_norms(double* squares, std::int64_t count) {
    for (std::int64_t j = 0; j < count; ++j) squares[j] = squares[j] > 0.0 ? std::sqrt(squares[j]) : 0.0;
}

SIMKIT_CLONES void add_sizes(const double* row, double* sizes, std::int64_t count) {
    for (std::int64_t j = 0; j < count; ++j) sizes[j] += std::fabs(row[j]);
}

// One sample and the samples of a row of a strip: norms of all kept rows of z, and without the candidate's, and the sum
// of sizes of the candidate's, which is 0 exactly where nothing is taken off a product.
struct Norms {
    double own, own_rest, own_part;
    const double *column, *column_rest, *column_part;
    [[gnu::always_inline]] bool lost(std::int64_t j, double product) const {
        const double most = own * column[j];
        return (cancelled(own_rest * column_rest[j], most, kCancelled) | !(std::fabs(product) >= kSign * most)) &
               (column_part[j] > 0.0);
    }
};

SIMKIT_CLONES bool any_lost(const Norms& norms, const double* products, const double* distances, const double* before,
                            std::int64_t count) {
    std::int64_t lost = 0;
    if (norms.own_part > 0.0)
        for (std::int64_t j = 0; j < count; ++j) lost |= norms.lost(j, products[j]);
    for (std::int64_t j = 0; j < count; ++j) lost |= cancelled(distances[j], before[j], kCancelled);
    return lost != 0;
}

// The kernel of some rows of z, or of all but one unit's, over a strip of a tile.
class Kernels {
  public:
    explicit Kernels(const Problem& problem) : p_(problem), arguments_(strips()), rest_(strips()) {}

    // The arguments of the rows of z given, between samples i0 <= i < i1 and `count` samples from j0 on.
    void base(const Indices& rows, std::int64_t i0, std::int64_t i1, std::int64_t j0, std::int64_t count) {
        const PairFeatures<double> pairs{p_.z, p_.n, rows, i0, i1 - i0, j0};
        feature_sums(false, pairs, count, arguments_.products.data());
        feature_sums(true, pairs, count, arguments_.distances.data());
    }

    // values [count] of row i, number r of the strip, as `base` left it.
    std::optional<KernelOutOfRange> values(std::int64_t r, std::int64_t count, double* values) {
        copy(r, count);
        return call(count, values);
    }

    // The same without the candidate's rows of z, first <= row < last. What has cancelled is formed again from the rows
    // that are left, so that equal ones are at distance 0 exactly, and products keep their sign.
    std::optional<KernelOutOfRange> values_without(const Indices& rows, std::int64_t first, std::int64_t last,
                                                   std::int64_t i, std::int64_t r, std::int64_t j0, std::int64_t count,
                                                   const Norms& norms, double* values) {
        copy(r, count);
        double *products = rest_.products.data(), *distances = rest_.distances.data();
        for (std::int64_t row = first; row < last; ++row)
            take_off(p_.z[row * p_.n + i], p_.z + row * p_.n + j0, products, distances, count);
        const double* before = arguments_.distances.data() + r * kTile;
        if (any_lost(norms, products, distances, before, count))
            for (std::int64_t j = 0; j < count; ++j) {
                const bool product = norms.own_part > 0.0 && norms.lost(j, products[j]),
                           distance = cancelled(distances[j], before[j], kCancelled);
                if (!product && !distance) continue;
                double sum = 0.0, squares = 0.0;
                for (std::int64_t row : rows) {
                    if (row >= first && row < last) continue;
                    const double a = p_.z[row * p_.n + i], b = p_.z[row * p_.n + j0 + j];
                    sum += a * b;
                    squares += (a - b) * (a - b);
                }
                if (product) products[j] = sum;
                if (distance) distances[j] = squares;
            }
        return call(count, values);
    }

    // values [count], at most kTile, of samples with themselves, whose squared norms are given.
    std::optional<KernelOutOfRange> diagonal(const double* squares, std::int64_t count, double* values) {
        std::copy_n(squares, count, rest_.products.data());
        std::fill_n(rest_.distances.data(), count, 0.0);
        return call(count, values);
    }

  private:
    static Arguments strips() { return {std::vector<double>(kRows * kTile), std::vector<double>(kRows * kTile)}; }

    // The function may write to what it is given.
    void copy(std::int64_t r, std::int64_t count) {
        std::copy_n(arguments_.products.data() + r * kTile, count, rest_.products.data());
        std::copy_n(arguments_.distances.data() + r * kTile, count, rest_.distances.data());
    }

    std::optional<KernelOutOfRange> call(std::int64_t count, double* values) {
        std::fill_n(values, count, std::numeric_limits<double>::quiet_NaN());  // what stays so where f gives up
        p_.function(rest_.products.data(), rest_.distances.data(), values, count);
        const double* bad = std::find_if(values, values + count, [](double v) { return !(std::fabs(v) < kLargest); });
        if (bad == values + count) return std::nullopt;
        const std::int64_t k = bad - values;
        return KernelOutOfRange{0, rest_.products[k], rest_.distances[k], *bad};
    }

    const Problem& p_;
    Arguments arguments_, rest_;
};

// L below the diagonal of a tile, rows i0 <= i < i1, at most kRows; leading dimension kTile.
std::optional<KernelOutOfRange> centred_rows(const Problem& problem, const Indices& rows, const CandidateTile& tile,
                                             std::int64_t i0, std::int64_t i1, Kernels& kernels, double* out) {
    kernels.base(rows, i0, i1, tile.j0, tile.count(i1 - 1));
    for (std::int64_t i = i0; i < i1; ++i, out += kTile) {
        const std::int64_t count = tile.count(i);
        if (const auto bad = kernels.values(i - i0, count, out)) return bad;
        for (std::int64_t j = 0; j < count; ++j) out[j] = out[j] - problem.centre[i] - problem.centre[tile.j0 + j];
    }
    return std::nullopt;
}

// What all workers read.
struct Shared {
    const Problem& problem;
    Indices all, kept;
    std::vector<double> squares, norms;  // [n] of the kept rows of z
    explicit Shared(const Problem& of)
        : problem(of), all(all_rows(of.offsets)), kept(rows_of(of.offsets, of.kept)), squares(of.n) {
        for (std::int64_t row : kept) add_squares(1.0, of.z + row * of.n, squares.data(), of.n);
        norms = squares;
        to_norms(norms.data(), of.n);
    }

    const double* levels(std::size_t candidate) const {
        return problem.levels + (problem.levels_each ? static_cast<std::int64_t>(candidate) * problem.n : 0);
    }
};

class Worker {
  public:
    Worker(const Shared& shared, CandidateSums& out)
        : s_(shared),
          p_(shared.problem),
          out_(out),
          kernels_(shared.problem),
          sums_(shared.problem.candidates.size()),
          values_(kRows * kTile),
          off_(kRows * kTile),
          l_(shared.problem.packed ? 0 : kRows * kTile),
          rest_(kTile),
          part_(kTile) {}

    template <class Pause>
    void work(std::int64_t t, const Pause& pause) {
        tile_ = tile_at(t, p_.n);
        sums_.clear();
        for (std::int64_t i0 = tile_.i0; i0 < tile_.i1 && !bad_; i0 += kRows) {
            const std::int64_t i1 = std::min(tile_.i1, i0 + kRows);
            if (!p_.packed && p_.centre) bad_ = centred_rows(p_, s_.all, tile_, i0, i1, kernels_, l_.data());
            kernels_.base(s_.kept, i0, i1, tile_.j0, tile_.count(i1 - 1));
            for (std::size_t k = 0; k < p_.candidates.size() && !bad_; ++k) {
                pause();
                add(k, i0, i1);
            }
        }
    }

    void commit(std::int64_t) {
        if (bad_) throw *bad_;
        sums_.commit(tile_, p_.n, out_);
    }

  private:
    void add(std::size_t k, std::int64_t i0, std::int64_t i1) {
        const std::int64_t unit = p_.candidates[k], width = tile_.j1 - tile_.j0;
        const std::int64_t first = unit < 0 ? 0 : p_.offsets[unit], last = unit < 0 ? 0 : p_.offsets[unit + 1];
        if (unit >= 0) sizes(first, last, tile_.j0, width, rest_.data(), part_.data());
        for (std::int64_t i = i0; i < i1 && !bad_; ++i) {
            double* values = values_.data() + (i - i0) * kTile;
            if (unit < 0) {
                bad_ = kernels_.values(i - i0, tile_.count(i), values);
                continue;
            }
            double rest, part;
            sizes(first, last, i, 1, &rest, &part);
            const Norms norms{s_.norms[i], rest, part, s_.norms.data() + tile_.j0, rest_.data(), part_.data()};
            bad_ = kernels_.values_without(s_.kept, first, last, i, i - i0, tile_.j0, tile_.count(i), norms, values);
        }
        if (bad_) return;
        Strip<double> s{};
        s.rows = i1 - i0;
        s.count = tile_.count(i0);
        s.longer = tile_.diagonal();
        s.width = width;
        s.base = values_.data();
        s.centred = p_.packed ? p_.packed + tile_.at + (i0 - tile_.i0) * width : l_.data();
        s.ld = p_.packed ? width : kTile;
        level_rows(s_.levels(k), i0, i1, tile_.j0, width, off_.data());
        s.less = off_.data();
        sums_.begin(k, i0 - tile_.i0, s);
        candidate_pass(Form::ready, s);
        sums_.end(k, s);
    }

    // Of samples from j0 on: norms without some rows of z, and the sums of these rows' sizes.
    void sizes(std::int64_t first, std::int64_t last, std::int64_t j0, std::int64_t count, double* rest,
               double* part) const {
        std::copy_n(s_.squares.data() + j0, count, rest);
        std::fill_n(part, count, 0.0);
        for (std::int64_t row = first; row < last; ++row) {
            add_squares(-1.0, p_.z + row * p_.n + j0, rest, count);
            add_sizes(p_.z + row * p_.n + j0, part, count);
        }
        to_norms(rest, count);
    }

    const Shared& s_;
    const Problem& p_;
    CandidateSums& out_;
    Kernels kernels_;
    TileSums<double> sums_;
    std::vector<double> values_, off_, l_, rest_, part_;
    std::optional<KernelOutOfRange> bad_{};
    CandidateTile tile_{};
};

class PackWorker {
  public:
    PackWorker(const Problem& problem, const Indices& all, double* out)
        : p_(problem), all_(all), out_(out), kernels_(problem), rows_(kRows * kTile) {}

    template <class Pause>
    void work(std::int64_t t, const Pause& pause) {
        const CandidateTile tile = tile_at(t, p_.n);
        for (std::int64_t i0 = tile.i0; i0 < tile.i1; i0 += kRows) {
            pause();
            const std::int64_t i1 = std::min(tile.i1, i0 + kRows);
            bad_ = centred_rows(p_, all_, tile, i0, i1, kernels_, rows_.data());
            if (bad_) return;
            for (std::int64_t i = i0; i < i1; ++i)
                std::copy_n(rows_.data() + (i - i0) * kTile, tile.count(i),
                            out_ + tile.at + (i - tile.i0) * (tile.j1 - tile.j0));
        }
    }

    // In the order of the tiles: the pair that is told does not depend on the threads.
    void commit(std::int64_t) {
        if (bad_) throw *bad_;
    }

  private:
    const Problem& p_;
    const Indices& all_;
    double* out_;
    Kernels kernels_;
    std::vector<double> rows_;
    std::optional<KernelOutOfRange> bad_{};
};

// The diagonal of kTile samples, which must be in range even where the debiased form does not count it.
class DiagonalWorker {
  public:
    DiagonalWorker(const Shared& shared, CandidateSums& out)
        : s_(shared),
          p_(shared.problem),
          out_(out),
          kernels_(shared.problem),
          cross_(shared.problem.candidates.size()),
          squares_(shared.problem.candidates.size()),
          centred_(kTile),
          values_(kTile),
          rest_(kTile) {}

    template <class Pause>
    void work(std::int64_t t, const Pause& pause) {
        j0_ = t * kTile;
        count_ = std::min(kTile, p_.n - j0_);
        std::fill(rest_.begin(), rest_.end(), 0.0);
        for (std::int64_t row : s_.all) add_squares(1.0, p_.z + row * p_.n + j0_, rest_.data(), count_);
        bad_ = kernels_.diagonal(rest_.data(), count_, centred_.data());
        for (std::int64_t j = 0; p_.centre && j < count_; ++j) centred_[j] -= 2.0 * p_.centre[j0_ + j];
        for (std::size_t k = 0; k < p_.candidates.size() && !bad_; ++k) {
            pause();
            add(k);
        }
    }

    void commit(std::int64_t) {
        if (bad_) throw *bad_;
        if (p_.debiased) return;
        for (std::size_t k = 0; k < cross_.size(); ++k) {
            out_.cross[k] += cross_[k];
            out_.squares[k] += squares_[k];
        }
    }

  private:
    void add(std::size_t k) {
        std::copy_n(s_.squares.data() + j0_, count_, rest_.data());
        if (const std::int64_t unit = p_.candidates[k]; unit >= 0) leave_out(p_.offsets[unit], p_.offsets[unit + 1]);
        bad_ = kernels_.diagonal(rest_.data(), count_, values_.data());
        if (bad_ || p_.debiased) return;
        cross_[k] = squares_[k] = 0.0;
        double* rows = out_.rows.data() + static_cast<std::int64_t>(k) * p_.n + j0_;  // which no other worker writes to
        for (std::int64_t j = 0; j < count_; ++j) {
            const double value = values_[j] - 2.0 * s_.levels(k)[j0_ + j];
            cross_[k] += value * centred_[j];
            squares_[k] += value * value;
            rows[j] += value;
        }
    }

    // What has cancelled is formed again, as products of two samples are.
    void leave_out(std::int64_t first, std::int64_t last) {
        for (std::int64_t row = first; row < last; ++row)
            add_squares(-1.0, p_.z + row * p_.n + j0_, rest_.data(), count_);
        for (std::int64_t j = 0; j < count_; ++j) {
            if (!cancelled(rest_[j], s_.squares[j0_ + j], kCancelled)) continue;
            rest_[j] = 0.0;
            for (std::int64_t row : s_.kept)
                if (row < first || row >= last) add_squares(1.0, p_.z + row * p_.n + j0_ + j, rest_.data() + j, 1);
        }
    }

    const Shared& s_;
    const Problem& p_;
    CandidateSums& out_;
    Kernels kernels_;
    std::vector<double> cross_, squares_, centred_, values_, rest_;
    std::optional<KernelOutOfRange> bad_{};
    std::int64_t j0_ = 0, count_ = 0;
};

}  // namespace

CandidateSums custom_sums(const Problem& problem, const Poll& poll) {
    const std::size_t count = problem.candidates.size();
    CandidateSums out{std::vector<double>(count), std::vector<double>(count),
                      std::vector<double>(count * static_cast<std::size_t>(problem.n))};
    const Shared shared(problem);
    for_each_tile(tile_count(problem.n), problem.threads, poll, [&] { return Worker(shared, out); });
    for_each_tile((problem.n + kTile - 1) / kTile, problem.threads, poll, [&] { return DiagonalWorker(shared, out); });
    return out;
}

void pack_custom(const Problem& problem, const Poll& poll, double* out) {
    const Indices all = all_rows(problem.offsets);
    for_each_tile(tile_count(problem.n), problem.threads, poll, [&] { return PackWorker(problem, all, out); });
}

}  // namespace simkit
