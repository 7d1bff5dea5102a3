#include "ops/greedy.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace simkit {
namespace {

constexpr double kTie = 1e-12;
constexpr double kNone = -std::numeric_limits<double>::infinity();

class Sums {
  public:
    Sums(const double* a, std::int64_t u) : a_(a), u_(u), r_(u, 0.0), q_(u, 0.0), alive_(u) {
        std::iota(alive_.begin(), alive_.end(), std::int64_t{0});
        for (std::int64_t i = 0; i < u; ++i)
            for (std::int64_t j = 0; j < u; ++j) r_[i] += a[i * u + j];
        for (double value : r_) total_ += value;
        refresh();
    }

    const std::vector<std::int64_t>& alive() const { return alive_; }

    // CKA(all, kept without the unit at place i of alive()); -inf where it is undefined.
    void score(std::vector<double>& scores) const {
        scores.resize(alive_.size());
        const double root = std::sqrt(total_);
        for (std::size_t i = 0; i < alive_.size(); ++i) {
            const std::int64_t k = alive_[i];
            const double left = quadratic_ - 2.0 * q_[k] + a_[k * u_ + k];
            const double value = (linear_ - r_[k]) / (root * std::sqrt(left));
            scores[i] = left > 0.0 && alive_.size() > 1 ? value : kNone;
        }
    }

    void remove(std::size_t place) {
        const std::int64_t k = alive_[place];
        alive_.erase(alive_.begin() + static_cast<std::ptrdiff_t>(place));
        linear_ -= r_[k];
        quadratic_ -= 2.0 * q_[k] - a_[k * u_ + k];
        const double* row = a_ + k * u_;
        for (std::int64_t i = 0; i < u_; ++i) q_[i] -= row[i];
        if (!(quadratic_ > 0.5 * fresh_)) refresh();
    }

  private:
    void refresh() {
        linear_ = quadratic_ = 0.0;
        for (std::int64_t i : alive_) {
            double sum = 0.0;
            for (std::int64_t j : alive_) sum += a_[i * u_ + j];
            q_[i] = sum;
            linear_ += r_[i];
            quadratic_ += sum;
        }
        fresh_ = quadratic_;
    }

    const double* a_;
    std::int64_t u_;
    std::vector<double> r_, q_;
    std::vector<std::int64_t> alive_;  // ascending
    double total_ = 0.0, linear_ = 0.0, quadratic_ = 0.0, fresh_ = 0.0;
};

std::size_t pick_best(const std::vector<double>& scores) {
    const double best = *std::max_element(scores.begin(), scores.end());
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

double gap(const std::vector<double>& scores, std::size_t pick) {
    double second = kNone;
    for (std::size_t i = 0; i < scores.size(); ++i)
        if (i != pick) second = std::max(second, scores[i]);
    return scores[pick] - second;
}

}  // namespace

Elimination eliminate(const double* a, std::int64_t u, bool greedy, std::int64_t count, double min_cka) {
    Sums sums(a, u);
    Elimination out{{}, {}, std::numeric_limits<double>::infinity()};
    std::vector<double> scores;
    std::vector<std::int64_t> ranking;
    if (!greedy) {
        sums.score(scores);
        ranking = rank(scores);
    }
    while (static_cast<std::int64_t>(out.order.size()) < count) {
        sums.score(scores);
        std::size_t pick;
        if (greedy) {
            pick = pick_best(scores);
        } else {
            const auto& alive = sums.alive();
            pick = static_cast<std::size_t>(
                std::lower_bound(alive.begin(), alive.end(), ranking[out.order.size()]) - alive.begin());
        }
        if (!std::isnan(min_cka) && !(scores[pick] >= min_cka)) break;
        if (scores.size() > 1 && greedy) out.smallest_gap = std::min(out.smallest_gap, std::fabs(gap(scores, pick)));
        out.order.push_back(sums.alive()[pick]);
        out.cka.push_back(scores[pick] == kNone ? std::numeric_limits<double>::quiet_NaN() : scores[pick]);
        sums.remove(pick);
    }
    return out;
}

}  // namespace simkit
