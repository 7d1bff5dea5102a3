#include "ops/greedy.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <map>
#include <numeric>
#include <utility>

#include "core/clones.hpp"

namespace simkit {
namespace {

constexpr double kTie = 1e-12;
constexpr double kStale = 0.25;       // share of Q that is left when q is formed again
constexpr double kDominated = 0.125;  // and when it is formed without a unit, not by taking the unit off
constexpr std::size_t kFollowed = 2;  // such units whose others are followed at once
constexpr double kNone = -std::numeric_limits<double>::infinity();

// (linear - r_i) / sqrt(quadratic - 2 q_i + d_i) * factor, -inf where the root is not of a positive number, or where
// the total, of which the factor holds the root, is none: a pick is always a unit. True: a unit leaves less than
// `least`.
SIMKIT_CLONES bool score_all(double linear, double quadratic, double factor, double least, const double* r,
                             const double* q, const double* d, double* scores, std::int64_t count) {
    std::int64_t less = 0;
    for (std::int64_t i = 0; i < count; ++i) {
        const double left = quadratic - 2.0 * q[i] + d[i];
        const double value = (linear - r[i]) / std::sqrt(left) * factor;
        scores[i] = left > 0.0 && value == value ? value : kNone;
        less |= left < least;
    }
    return less != 0;
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

// Units of A, ascending, with what their scores are made of: r_i over all units, q_i over these, A_ii; R, Q their sums.
class Subset {
  public:
    Subset(const double* a, std::int64_t u, const std::vector<double>& r, std::vector<std::int64_t> units)
        : a_(a), u_(u), units_(std::move(units)), q_(units_.size()) {
        for (std::int64_t i : units_) {
            r_.push_back(r[i]);
            d_.push_back(a[i * u + i]);
        }
        refresh();
    }

    const std::vector<std::int64_t>& units() const { return units_; }
    double quadratic() const { return quadratic_; }
    double left(std::size_t place) const { return quadratic_ - 2.0 * q_[place] + d_[place]; }

    // Of these units; -inf where it is undefined.
    double score(double factor) const {
        const double value = linear_ / std::sqrt(quadratic_) * factor;
        return quadratic_ > 0.0 && value == value ? value : kNone;
    }

    // Without each of them. True: one of them leaves less than `least` of Q.
    bool scores_without(double factor, double least, std::vector<double>& scores) const {
        return score_all(linear_, quadratic_, factor, least, r_.data(), q_.data(), d_.data(), scores.data(),
                         static_cast<std::int64_t>(units_.size()));
    }

    void remove(std::int64_t unit) {
        const auto at = std::lower_bound(units_.begin(), units_.end(), unit) - units_.begin();
        const double* row = a_ + unit * u_;
        linear_ -= r_[at];
        quadratic_ -= 2.0 * q_[at] - d_[at];
        units_.erase(units_.begin() + at);
        for (auto* values : {&r_, &q_, &d_}) values->erase(values->begin() + at);
        for (std::size_t i = 0; i < units_.size(); ++i) q_[i] -= row[units_[i]];
        if (!(quadratic_ > kStale * fresh_)) refresh();
    }

  private:
    void refresh() {
        linear_ = quadratic_ = 0.0;
        std::vector<double> sums(u_, 0.0);
        for (std::int64_t i : units_) add_row(a_ + i * u_, sums.data(), u_);
        for (std::size_t i = 0; i < units_.size(); ++i) {
            q_[i] = sums[units_[i]];
            linear_ += r_[i];
            quadratic_ += q_[i];
        }
        fresh_ = quadratic_;
    }

    const double* a_;
    std::int64_t u_;
    std::vector<std::int64_t> units_;
    std::vector<double> r_, q_, d_;
    double linear_ = 0.0, quadratic_ = 0.0, fresh_ = 0.0;
};

std::vector<double> row_sums(const double* a, std::int64_t u) {
    std::vector<double> sums(u, 0.0);
    for (std::int64_t i = 0; i < u; ++i) add_row(a + i * u, sums.data(), u);
    return sums;
}

std::vector<std::int64_t> first_units(std::int64_t u) {
    std::vector<std::int64_t> units(u);
    std::iota(units.begin(), units.end(), std::int64_t{0});
    return units;
}

// The units still kept. What a unit leaves of Q is lost in the rounding of Q where it makes up nearly all of it; the
// others, without it, are then followed by themselves. (Of a biased A, whose elements are none below 0, that is one
// unit at a time. Where others cancel it may be many, and little is left of the sums whatever is done: the two that
// leave least are followed, at O(u^2) when they are first met.)
class Kept {
  public:
    Kept(const double* a, std::int64_t u)
        : a_(a),
          u_(u),
          r_(row_sums(a, u)),
          kept_(a, u, r_, first_units(u)),
          factor_(1.0 / std::sqrt(kept_.quadratic())) {}

    const std::vector<std::int64_t>& alive() const { return kept_.units(); }

    // CKA(all, kept without alive()[i]) for every i; -inf where it is undefined.
    void score(std::vector<double>& scores) {
        scores.assign(alive().size(), kNone);
        if (alive().size() < 2) return;
        const double least = kDominated * kept_.quadratic();
        const bool dominated = kept_.scores_without(factor_, least, scores);
        if (!dominated) rests_.clear();
        if (!dominated) return;
        std::vector<std::size_t> places;
        for (std::size_t i = 0; i < scores.size(); ++i)
            if (kept_.left(i) < least) places.push_back(i);
        std::stable_sort(places.begin(), places.end(),
                         [&](std::size_t i, std::size_t j) { return kept_.left(i) < kept_.left(j); });
        if (places.size() > kFollowed) places.resize(kFollowed);
        for (auto held = rests_.begin(); held != rests_.end();) {
            const bool stays =
                std::any_of(places.begin(), places.end(), [&](std::size_t i) { return alive()[i] == held->first; });
            held = stays ? std::next(held) : rests_.erase(held);
        }
        for (std::size_t i : places) scores[i] = rest(i).score(factor_);
    }

    void remove(std::size_t place) {
        const std::int64_t unit = alive()[place];
        kept_.remove(unit);
        rests_.erase(unit);
        for (auto& [without, rest] : rests_) rest.remove(unit);
    }

  private:
    const Subset& rest(std::size_t place) {
        const std::int64_t unit = alive()[place];
        auto found = rests_.find(unit);
        if (found == rests_.end()) {
            std::vector<std::int64_t> others = alive();
            others.erase(others.begin() + static_cast<std::ptrdiff_t>(place));
            found = rests_.emplace(unit, Subset(a_, u_, r_, std::move(others))).first;
        }
        return found->second;
    }

    const double* a_;
    std::int64_t u_;
    std::vector<double> r_;
    Subset kept_;
    double factor_;
    std::map<std::int64_t, Subset> rests_;
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
    std::vector<std::int64_t> units = first_units(static_cast<std::int64_t>(scores.size()));
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
