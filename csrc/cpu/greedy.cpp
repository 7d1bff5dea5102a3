#include "ops/greedy.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "core/clones.hpp"

namespace simkit {
namespace {

constexpr double kTie = 1e-12;
constexpr double kStale = 0.25;  // share of Q that is left when q is formed again
constexpr double kNone = -std::numeric_limits<double>::infinity();

// (linear - r_i) / sqrt(quadratic - 2 q_i + d_i) * factor, -inf where the root is not of a positive number, or where
// the total, of which the factor holds the root, is none: a pick is always a unit.
SIMKIT_CLONES void score_all(double linear, double quadratic, double factor, const double* r, const double* q,
                             const double* d, double* scores, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
        const double left = quadratic - 2.0 * q[i] + d[i];
        const double value = (linear - r[i]) / std::sqrt(left) * factor;
        scores[i] = left > 0.0 && value == value ? value : kNone;
    }
}

// A is symmetric, so its rows may be added up where the sums of rows are wanted.
SIMKIT_CLONES void add_row(const double* row, double* sums, std::int64_t count) {
    for (std::int64_t j = 0; j < count; ++j) sums[j] += row[j];
}

// Eight maxima at once.
SIMKIT_CLONES double largest(const double* values, std::int64_t count) {
    constexpr std::int64_t lanes = 8;
    double most[lanes];
    std::fill_n(most, lanes, kNone);
    std::int64_t j = 0;
    for (; j + lanes <= count; j += lanes)
        for (std::int64_t l = 0; l < lanes; ++l) most[l] = values[j + l] > most[l] ? values[j + l] : most[l];
    for (; j < count; ++j) most[0] = values[j] > most[0] ? values[j] : most[0];
    return *std::max_element(most, most + lanes);
}

// The units still kept, ascending, with their r, q and A_kk side by side.
class Kept {
  public:
    Kept(const double* a, std::int64_t u) : a_(a), u_(u), alive_(u), r_(u, 0.0), q_(u), d_(u) {
        std::iota(alive_.begin(), alive_.end(), std::int64_t{0});
        double total = 0.0;
        for (std::int64_t i = 0; i < u; ++i) {
            add_row(a + i * u, r_.data(), u);
            d_[i] = a[i * u + i];
        }
        for (double r : r_) total += r;
        factor_ = 1.0 / std::sqrt(total);
        q_ = r_;
        linear_ = quadratic_ = fresh_ = total;
    }

    const std::vector<std::int64_t>& alive() const { return alive_; }

    // CKA(all, kept without alive()[i]) for every i; -inf where it is undefined.
    void score(std::vector<double>& scores) const {
        scores.assign(alive_.size(), kNone);
        if (alive_.size() > 1)
            score_all(linear_, quadratic_, factor_, r_.data(), q_.data(), d_.data(), scores.data(),
                      static_cast<std::int64_t>(alive_.size()));
    }

    void remove(std::size_t place) {
        const double* row = a_ + alive_[place] * u_;
        linear_ -= r_[place];
        quadratic_ -= 2.0 * q_[place] - d_[place];
        const auto at = static_cast<std::ptrdiff_t>(place);
        alive_.erase(alive_.begin() + at);
        for (auto* values : {&r_, &q_, &d_}) values->erase(values->begin() + at);
        for (std::size_t i = 0; i < alive_.size(); ++i) q_[i] -= row[alive_[i]];
        if (!(quadratic_ > kStale * fresh_)) refresh();
    }

  private:
    void refresh() {
        linear_ = quadratic_ = 0.0;
        std::vector<double> sums(u_, 0.0);
        for (std::int64_t i : alive_) add_row(a_ + i * u_, sums.data(), u_);
        for (std::size_t i = 0; i < alive_.size(); ++i) {
            q_[i] = sums[alive_[i]];
            linear_ += r_[i];
            quadratic_ += q_[i];
        }
        fresh_ = quadratic_;
    }

    const double* a_;
    std::int64_t u_;
    std::vector<std::int64_t> alive_;
    std::vector<double> r_, q_, d_;
    double factor_ = 0.0, linear_ = 0.0, quadratic_ = 0.0, fresh_ = 0.0;
};

std::size_t pick_best(const std::vector<double>& scores) {
    const double best = largest(scores.data(), static_cast<std::int64_t>(scores.size()));
    return static_cast<std::size_t>(
        std::find_if(scores.begin(), scores.end(), [&](double s) { return s >= best - kTie || s == best; }) -
        scores.begin());
}

// Units by falling first-step score, ties to the lowest index.
std::vector<std::int64_t> rank(std::vector<double> scores) {
    std::vector<std::int64_t> ranking;
    std::vector<std::int64_t> units(scores.size());
    std::iota(units.begin(), units.end(), std::int64_t{0});
    while (!units.empty()) {
        const std::size_t i = pick_best(scores);
        ranking.push_back(units[i]);
        units.erase(units.begin() + static_cast<std::ptrdiff_t>(i));
        scores.erase(scores.begin() + static_cast<std::ptrdiff_t>(i));
    }
    return ranking;
}

double gap(std::vector<double>& scores, std::size_t pick) {
    const double best = std::exchange(scores[pick], kNone);
    const double second = largest(scores.data(), static_cast<std::int64_t>(scores.size()));
    scores[pick] = best;
    return best - second;
}

}  // namespace

Elimination eliminate(const double* a, std::int64_t u, bool greedy, std::int64_t count, double min_cka) {
    Kept kept(a, u);
    Elimination out{{}, {}, std::numeric_limits<double>::infinity()};
    std::vector<double> scores;
    std::vector<std::int64_t> ranking;
    if (!greedy) {
        kept.score(scores);
        ranking = rank(scores);
    }
    while (static_cast<std::int64_t>(out.order.size()) < count) {
        kept.score(scores);
        std::size_t pick;
        if (greedy) {
            pick = pick_best(scores);
        } else {
            const auto& alive = kept.alive();
            pick = static_cast<std::size_t>(std::lower_bound(alive.begin(), alive.end(), ranking[out.order.size()]) -
                                            alive.begin());
        }
        if (!std::isnan(min_cka) && !(scores[pick] >= min_cka)) break;
        if (scores.size() > 1 && greedy) out.smallest_gap = std::min(out.smallest_gap, std::fabs(gap(scores, pick)));
        out.order.push_back(kept.alive()[pick]);
        out.cka.push_back(scores[pick] == kNone ? std::numeric_limits<double>::quiet_NaN() : scores[pick]);
        kept.remove(pick);
    }
    return out;
}

}  // namespace simkit
