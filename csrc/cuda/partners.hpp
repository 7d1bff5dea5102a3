// The k nearest rows, on any machine (cuda/machine.hpp): tiles leave each row a few candidates, which are scored again
// in float64; rows with more of them than a list holds are compared with all others. See ops/partners.hpp.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "cuda/machine.hpp"
#include "cuda/near_rows.hpp"
#include "ops/partners.hpp"

namespace simkit::cuda {

constexpr int kMostParts = 64;

// [rows, k] of the whole problem.
struct Found {
    static constexpr Index kNone = -1, kTooMany = -2;

    Index* row;
    double *cosine, *score;
    Index k;

    SIMKIT_BOTH void set(Index place, Index nth, Index of_row, double of_cosine, double of_score) const {
        row[place * k + nth] = of_row;
        cosine[place * k + nth] = of_cosine;
        score[place * k + nth] = of_score;
    }
    SIMKIT_BOTH void set_none(Index place, Index nth) const { set(place, nth, kNone, kUndefined, kUndefined); }
};

// The parts' lists of a row -> its k nearest: the candidates within the window of the k-th over all parts, scored
// again, kLanes threads a cosine. Program blocks: a row of the group each.
template <class T>
struct ChooseNearest {
    static constexpr int kLanes = PairScore::kLanes, kTeams = 4, kThreads = kTeams * kLanes, kResident = 8;
    static constexpr int kCandidates = static_cast<int>(kMostNearest) + 64;
    struct Shared {
        T heads[kMostParts];
        int counts[kMostParts], taken[kMostParts];
        int candidates;  // -1: too many
        std::int32_t places[kCandidates];
        double lanes[kTeams][kLanes + 1], cosines[kCandidates], scores[kCandidates];
    };
    struct Registers {};

    PairScore of;
    NearLists<T> lists;
    Index first_row;
    int parts;
    Found found;

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers&) const {
        if (k == 0) {
            for (int part = thread; part < parts; part += kThreads) {
                shared.counts[part] = lists.counts[part * lists.rows + number];
                shared.taken[part] = 0;
                shared.heads[part] = head(number, part, 0, shared.counts[part]);
            }
            return true;
        }
        if (k == 1) {
            if (thread == 0) shared.candidates = gather(number, shared);
            return true;
        }
        const Index place = first_row + number;
        if (shared.candidates < 0) {
            if (thread == 0) found.set(place, 0, Found::kTooMany, kUndefined, kUndefined);
            return false;
        }
        const int round = (k - 2) / 2, team = thread / kLanes, lane = thread % kLanes, at = round * kTeams + team;
        if (round * kTeams >= shared.candidates) {
            if (thread == 0) choose(place, shared);
            return false;
        }
        if (at >= shared.candidates) return true;
        const Index i = of.rows[place], j = of.others[shared.places[at]];
        if (k % 2 == 0) {
            shared.lanes[team][lane] = of.share(i, j, lane);
        } else if (lane == 0) {
            double cosine = 0.0;
            for (int other = 0; other < kLanes; ++other) cosine += shared.lanes[team][other];
            shared.cosines[at] = cosine;
            shared.scores[at] = of.score(cosine, of.residue(i, j), place);
        }
        return true;
    }

  private:
    SIMKIT_BOTH T head(Index number, int part, int taken, int count) const {
        return taken < count ? lists.values[lists.begin(part, number) + taken] : static_cast<T>(kInfinite);
    }

    // Takes the part's next one.
    SIMKIT_BOTH bool take(Index number, int part, Shared& shared, int& candidates) const {
        if (candidates == kCandidates) return false;
        int& taken = shared.taken[part];
        shared.places[candidates++] = lists.places[lists.begin(part, number) + taken++];
        shared.heads[part] = head(number, part, taken, shared.counts[part]);
        return true;
    }

    SIMKIT_BOTH int gather(Index number, Shared& shared) const {
        int candidates = 0;
        T limit = static_cast<T>(kInfinite);
        for (int nth = 0; nth < lists.k; ++nth) {
            int best = 0;
            for (int part = 1; part < parts; ++part)
                if (shared.heads[part] < shared.heads[best]) best = part;
            const T value = shared.heads[best];
            if (!(value < static_cast<T>(kInfinite))) return candidates;
            limit = value + lists.window;
            take(number, best, shared, candidates);
        }
        for (int part = 0; part < parts; ++part) {
            if (!lists.complete(lists.begin(part, number), shared.counts[part], limit)) return -1;
            while (shared.heads[part] <= limit && shared.heads[part] < static_cast<T>(kInfinite))
                if (!take(number, part, shared, candidates)) return -1;
        }
        return candidates;
    }

    SIMKIT_BOTH void choose(Index place, Shared& shared) const {
        for (Index nth = 0; nth < found.k; ++nth) {
            double least = kInfinite;
            for (int at = 0; at < shared.candidates; ++at)
                if (shared.scores[at] < least) least = shared.scores[at];
            if (!(least < kInfinite)) {
                found.set_none(place, nth);
                continue;
            }
            int best = -1;
            for (int at = 0; at < shared.candidates; ++at)
                if (shared.scores[at] <= least + kTie && (best < 0 || shared.places[at] < shared.places[best]))
                    best = at;
            found.set(place, nth, of.others[shared.places[best]], shared.cosines[best], shared.scores[best]);
            shared.scores[best] = kInfinite;
        }
    }
};

// As ChooseNearest, of all others. Program blocks: the rows at `places` each; cosines and scores [blocks, others].
struct ChooseFromAll {
    static constexpr int kThreads = 256, kResident = 2, kPhases = 3;
    struct Shared {
        double least[kThreads];
        Index lowest[kThreads];
    };
    struct Registers {};

    PairScore of;
    const Index* places;
    double *cosines, *scores;
    Found found;

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers&) const {
        const Index place = places[number], all = of.count_others;
        double *cosine = cosines + number * all, *score = scores + number * all;
        if (k == 0) {
            for (Index j = thread; j < all; j += kThreads) evaluate(place, j, cosine[j], score[j]);
            return true;
        }
        const Index nth = (k - 1) / kPhases;
        const int phase = (k - 1) % kPhases;
        if (phase == 0) {
            double least = kInfinite;
            for (Index j = thread; j < all; j += kThreads)
                if (score[j] < least) least = score[j];
            shared.least[thread] = least;
            return true;
        }
        if (phase == 1) {
            double least = kInfinite;
            for (int other = 0; other < kThreads; ++other)
                if (shared.least[other] < least) least = shared.least[other];
            Index lowest = all;
            if (least < kInfinite)
                for (Index j = thread; j < all && lowest == all; j += kThreads)
                    if (score[j] <= least + kTie) lowest = j;
            shared.lowest[thread] = lowest;
            return true;
        }
        if (thread == 0) {
            Index best = all;
            for (int other = 0; other < kThreads; ++other) best = smaller(best, shared.lowest[other]);
            if (best == all) {
                found.set_none(place, nth);
            } else {
                found.set(place, nth, of.others[best], cosine[best], score[best]);
                score[best] = kInfinite;
            }
        }
        return nth + 1 < found.k;
    }

  private:
    SIMKIT_BOTH void evaluate(Index place, Index other, double& cosine, double& score) const {
        constexpr int lanes = PairScore::kLanes;
        const Index i = of.rows[place], j = of.others[other];
        const double r = of.residue(i, j);
        score = kInfinite;
        if (!(r == r)) return;
        double part[lanes] = {};
        for (Index k = 0; k < of.depth(); k += lanes) {
            SIMKIT_UNROLL
            for (int lane = 0; lane < lanes; ++lane)
                if (k + lane < of.depth()) part[lane] += rounded_product(of.entry(i, k + lane), of.entry(j, k + lane));
        }
        cosine = 0.0;
        SIMKIT_UNROLL
        for (int lane = 0; lane < lanes; ++lane) cosine += part[lane];
        score = of.score(cosine, r, place);
    }
};

// The error of a score of type T, from unit rows rounded to T.
template <class T>
T window_of(Index depth, double balance) {
    constexpr double rounding = 0.5 * std::numeric_limits<T>::epsilon(), chunk = NearTiles<T, 4>::kChunk;
    const double length = static_cast<double>(depth), sum = std::fmin(length, chunk) + length / chunk + 8.0;
    return static_cast<T>(balance * 2.0 * sum * rounding + kTie + 8.0 * rounding);
}

template <class M>
class NearestSearch {
  public:
    // problem.x lies on the machine, everything else on the host.
    NearestSearch(M& machine, const NearestProblem& problem)
        : machine_(machine),
          a_(static_cast<Index>(problem.rows.size())),
          b_(static_cast<Index>(problem.others.size())),
          double_(problem.x.dtype == Dtype::f64),
          floats_(sent(machine, of_every_row(problem))),
          rows_(sent(machine, problem.rows)),
          others_(sent(machine, problem.others)),
          ranges_(machine.template array<double>(problem.residues ? 2 * a_ : 1)),
          found_row_(machine.template array<Index>(a_ * problem.k)),
          found_cosine_(machine.template array<double>(a_ * problem.k)),
          found_score_(machine.template array<double>(a_ * problem.k)),
          found_{found_row_.data(), found_cosine_.data(), found_score_.data(), problem.k} {
        const Index n = problem.x.rows;
        const double* at = floats_.data();
        const auto next = [&](bool there) { return there ? std::exchange(at, at + n) : nullptr; };
        of_ = {problem.x,
               nullptr,
               nullptr,
               nullptr,
               nullptr,
               nullptr,
               nullptr,
               nullptr,
               nullptr,
               problem.same_sign,
               problem.balance,
               rows_.data(),
               others_.data(),
               a_,
               b_,
               ranges_.data(),
               ranges_.data() + a_};
        of_.first = next(true);
        of_.second = next(true);
        of_.last = next(problem.last);
        for (const double** each : {&of_.sign, &of_.a, &of_.b, &of_.c, &of_.d}) *each = next(problem.residues);
        if (problem.residues) machine.run(ResidueRanges{of_}, a_);
    }

    // room: bytes of workspace, about; no bit depends on it.
    NearestRows find(Index room) {
        constexpr Index wide = NearTiles<float, 8>::kWidth;
        if (double_)
            walk<double, 4>(room);
        else if (pieces(a_, wide) * pieces(b_, wide) >= kMany)
            walk<float, 8>(room);
        else
            walk<float, 4>(room);
        NearestRows out = fetch();
        std::vector<Index> places;
        for (Index i = 0; i < a_; ++i)
            if (out.row[i * found_.k] == Found::kTooMany) places.push_back(i);
        undecided_ = static_cast<Index>(places.size());
        if (places.empty()) return out;
        from_all(places, room);
        return fetch();
    }

    // Rows of the last find whose lists were too short, and that were compared with all others.
    Index undecided() const { return undecided_; }

  private:
    static constexpr Index kMany = 132, kBusy = 528;  // blocks for every multiprocessor; for a few rounds of them
    static constexpr int kNear = 33;                  // near ties that a list holds, and one more

    // 2^-h and 2^h / norm, the last entries, the residues.
    static std::vector<double> of_every_row(const NearestProblem& problem) {
        const Index n = problem.x.rows;
        std::vector<double> values(2 * n);
        for (Index i = 0; i < n; ++i) {
            int exponent;
            const double mantissa = std::frexp(problem.norms[i], &exponent);  // of a zero row, which is not read, 0
            values[i] = std::ldexp(1.0, -(exponent / 2));
            values[n + i] = std::ldexp(1.0 / mantissa, exponent / 2 - exponent);
        }
        if (problem.last) values.insert(values.end(), problem.last, problem.last + n);
        if (problem.residues) values.insert(values.end(), problem.residues, problem.residues + 5 * n);
        return values;
    }

    template <class T, int R>
    void walk(Index room) {
        using Tiles = NearTiles<T, R>;
        constexpr Index width = Tiles::kWidth, item = sizeof(T);
        const Index depth = of_.depth(), half = room / 2;
        const Index most_a = pieces(a_, width) * width, most_b = pieces(b_, width) * width;
        const Index group_b = group(half, depth * item, width, most_b);
        const Index parts = smaller(smaller(kMostParts, group_b / width), pieces(kBusy, most_a / width));
        const bool waits = depth > Tiles::kChunk;
        const int entries = static_cast<int>(found_.k) + kNear;
        const Index list = entries * (item + 4) + 4, of_parts = parts * (list + waits * width * item);
        const Index group_a = group(half, depth * item + of_parts, width, most_a);
        const Index here_a = smaller(group_a, a_), here_b = smaller(group_b, b_);

        auto left = machine_.template array<T>(here_a * depth);
        auto right = machine_.template array<T>(here_b * depth);
        auto values = machine_.template array<T>(parts * here_a * entries);
        auto places = machine_.template array<std::int32_t>(parts * here_a * entries);
        auto counts = machine_.template array<int>(parts * here_a);
        auto waiting = machine_.template array<T>(waits ? group_a * parts * width : 1);
        for (Index i = 0; i < a_; i += group_a) {
            const Index rows = smaller(group_a, a_ - i);
            const NearLists<T> lists{values.data(),
                                     places.data(),
                                     counts.data(),
                                     rows,
                                     entries,
                                     static_cast<int>(found_.k),
                                     window_of<T>(depth, of_.balance)};
            machine_.zero(counts, parts * rows);
            unit_rows(of_.rows + i, rows, left.data());
            for (Index j = 0; j < b_; j += group_b) {
                const Index others = smaller(group_b, b_ - j), used = smaller(parts, pieces(others, width));
                if (i == 0 || group_b < b_) unit_rows(of_.others + j, others, right.data());
                machine_.run(Tiles{of_, left.data(), right.data(), i, rows, j, others, used, lists, waiting.data()},
                             pieces(rows, width) * used);
            }
            machine_.run(ChooseNearest<T>{of_, lists, i, static_cast<int>(parts), found_}, rows);
        }
    }

    // Rows of a group: whole tiles, as many as there is room for.
    static Index group(Index room, Index bytes, Index width, Index most) {
        return larger(width, smaller(most, room / bytes / width * width));
    }

    template <class T>
    void unit_rows(const Index* numbers, Index count, T* out) {
        using Rows = NearUnitRows<T>;
        machine_.run(Rows{of_, numbers, count, out}, pieces(count, Rows::kRows) * pieces(of_.depth(), Rows::kColumns));
    }

    void from_all(const std::vector<Index>& places, Index room) {
        const Index all = static_cast<Index>(places.size());
        const Index each = smaller(all, larger(1, room / (16 * b_)));
        const auto held = sent(machine_, places);
        auto cosines = machine_.template array<double>(each * b_);
        auto scores = machine_.template array<double>(each * b_);
        for (Index first = 0; first < all; first += each)
            machine_.run(ChooseFromAll{of_, held.data() + first, cosines.data(), scores.data(), found_},
                         smaller(each, all - first));
    }

    NearestRows fetch() {
        const Index count = a_ * found_.k;
        return {fetched<M, Index>(machine_, found_row_, count), fetched<M, double>(machine_, found_cosine_, count),
                fetched<M, double>(machine_, found_score_, count)};
    }

    M& machine_;
    Index a_, b_;
    bool double_;
    Index undecided_ = 0;
    typename M::template Array<double> floats_;
    typename M::template Array<Index> rows_, others_;
    typename M::template Array<double> ranges_;
    typename M::template Array<Index> found_row_;
    typename M::template Array<double> found_cosine_, found_score_;
    Found found_;
    PairScore of_;
};

}  // namespace simkit::cuda
