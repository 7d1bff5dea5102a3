// Greedy elimination in one block, without a word to the host between steps. See ops/greedy.hpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cuda/machine.hpp"
#include "ops/greedy.hpp"

namespace simkit::cuda {

// r [u] = A 1, of a symmetric A: its columns are read for its rows. Program blocks: pieces(u, kThreads).
struct SumRows {
    static constexpr int kThreads = 64, kResident = 1;
    struct Shared {};
    struct Registers {};

    const double* a;
    Index u;
    double* r;

    SIMKIT_BOTH bool step(Index number, int thread, int, Shared&, Registers&) const {
        const Index i = number * kThreads + thread;
        if (i >= u) return false;
        double sum = 0.0;
        for (Index j = 0; j < u; ++j) sum += a[j * u + i];
        r[i] = sum;
        return false;
    }
};

// A thread's units are thread, thread + kThreads, ... . Sums and maxima over all units: each thread its own, 32 threads
// join 32 neighbours each, and then every thread joins those, all in a fixed order. One removal is the phases
// score .. join_seconds; `refresh` and `join_totals` come first and whenever a quarter of Q is left. Program blocks: 1.
struct Eliminate {
    static constexpr int kThreads = 1024, kResident = 1, kGroup = 32, kGroups = kThreads / kGroup;
    static constexpr double kTie = 1e-12, kNone = -std::numeric_limits<double>::infinity();
    static constexpr double kStale = 0.25;  // share of Q that is left when q is formed again

    enum class Phase { refresh, join_totals, score, join_best, pick, join_picks, strike, join_seconds };

    struct Shared {
        double value[kThreads], other[kThreads], joined[kGroups], joined_other[kGroups];
        Index unit[kThreads], joined_unit[kGroups];
    };
    struct Registers {  // alike in all threads
        Phase phase;
        double linear, quadratic, fresh, factor, found;
        Index pick, removed;
        bool refreshed;
    };

    const double* a;  // [u, u], symmetric
    const double* r;  // [u]
    Index u, count;
    bool greedy;
    double min_cka;              // NaN: none
    double *q, *scores, *ranks;  // [u]; picks are made by `ranks`: the scores, or those of the first step
    unsigned char* gone;         // [u]
    Index *order, *done;         // [count], [1]: the number of removals
    double *cka, *gaps;          // [count]

    SIMKIT_BOTH bool step(Index, int thread, int k, Shared& shared, Registers& at) const {
        if (k == 0) {
            at.phase = Phase::refresh;
            at.removed = 0;
        }
        switch (at.phase) {
            case Phase::refresh:
                refresh(thread, shared, at);
                break;
            case Phase::join_totals:
                join_totals(thread, shared);
                at.refreshed = true;
                break;
            case Phase::score:
                if (!at.refreshed) record(thread, shared, at);
                if (at.removed == count) return false;
                score(thread, shared, at);
                break;
            case Phase::join_best:
            case Phase::join_seconds:
                join_largest(thread, shared);
                break;
            case Phase::pick:
                pick(thread, shared, at);
                break;
            case Phase::join_picks:
                join_picks(thread, shared);
                break;
            case Phase::strike:
                if (!strike(thread, shared, at)) return false;
                break;
        }
        at.phase = after(at);
        return true;
    }

  private:
    SIMKIT_BOTH static Phase after(const Registers& at) {
        if (at.phase != Phase::join_seconds) return static_cast<Phase>(static_cast<int>(at.phase) + 1);
        return at.quadratic > kStale * at.fresh ? Phase::score : Phase::refresh;
    }

    // q, and this thread's share of R and Q.
    SIMKIT_BOTH void refresh(int thread, Shared& shared, Registers& at) const {
        if (at.removed > 0) record(thread, shared, at);
        double linear = 0.0, quadratic = 0.0;
        for (Index i = thread; i < u; i += kThreads) {
            if (at.removed == 0) gone[i] = 0;
            if (gone[i]) continue;
            double sum = at.removed == 0 ? r[i] : 0.0;
            for (Index j = 0; at.removed > 0 && j < u; ++j)
                if (!gone[j]) sum += a[j * u + i];
            q[i] = sum;
            linear += r[i];
            quadratic += sum;
        }
        shared.value[thread] = linear;
        shared.other[thread] = quadratic;
    }

    SIMKIT_BOTH static void join_totals(int thread, Shared& shared) {
        if (thread >= kGroups) return;
        double value = 0.0, other = 0.0;
        for (int k = thread * kGroup; k < (thread + 1) * kGroup; ++k) {
            value += shared.value[k];
            other += shared.other[k];
        }
        shared.joined[thread] = value;
        shared.joined_other[thread] = other;
    }

    SIMKIT_BOTH static void join_largest(int thread, Shared& shared) {
        if (thread >= kGroups) return;
        double most = kNone;
        for (int k = thread * kGroup; k < (thread + 1) * kGroup; ++k) most = larger(most, shared.value[k]);
        shared.joined[thread] = most;
    }

    SIMKIT_BOTH static double largest(const Shared& shared) {
        double most = kNone;
        for (int k = 0; k < kGroups; ++k) most = larger(most, shared.joined[k]);
        return most;
    }

    SIMKIT_BOTH static void join_picks(int thread, Shared& shared) {
        if (thread >= kGroups) return;
        Index least = shared.unit[thread * kGroup];
        for (int k = thread * kGroup + 1; k < (thread + 1) * kGroup; ++k) least = smaller(least, shared.unit[k]);
        shared.joined_unit[thread] = least;
    }

    // CKA(all, kept without i) for every unit of this thread, kNone where it is undefined.
    SIMKIT_BOTH void score(int thread, Shared& shared, Registers& at) const {
        if (at.refreshed) {
            at.linear = at.quadratic = 0.0;
            for (int k = 0; k < kGroups; ++k) {
                at.linear += shared.joined[k];
                at.quadratic += shared.joined_other[k];
            }
            at.fresh = at.quadratic;
            if (at.removed == 0) at.factor = 1.0 / sqrt(at.linear);  // R of all units is T
            at.refreshed = false;
        }
        double most = kNone;
        for (Index i = thread; i < u; i += kThreads) {
            if (gone[i]) continue;
            const double left = at.quadratic - 2.0 * q[i] + a[i * u + i];
            const double value = (at.linear - r[i]) / sqrt(left) * at.factor;
            const bool defined = left > 0.0 && u - at.removed > 1 && value == value;  // a pick is a unit
            scores[i] = defined ? value : kNone;
            if (greedy || at.removed == 0) ranks[i] = scores[i];
            most = larger(most, ranks[i]);
        }
        shared.value[thread] = most;
    }

    // The lowest of this thread's units that ties with the best.
    SIMKIT_BOTH void pick(int thread, Shared& shared, const Registers&) const {
        const double best = largest(shared);
        Index mine = u;
        for (Index i = thread; i < u && mine == u; i += kThreads)
            if (!gone[i] && (ranks[i] >= best - kTie || ranks[i] == best)) mine = i;
        shared.unit[thread] = mine;
    }

    // Takes the picked unit out of R, Q and q, and finds the best of this thread's others. The pick's own q and score
    // are read by all threads and written by none.
    SIMKIT_BOTH bool strike(int thread, Shared& shared, Registers& at) const {
        at.pick = shared.joined_unit[0];
        for (int k = 1; k < kGroups; ++k) at.pick = smaller(at.pick, shared.joined_unit[k]);
        at.found = scores[at.pick];
        if (min_cka == min_cka && !(at.found >= min_cka)) return false;
        const double* row = a + at.pick * u;
        at.linear -= r[at.pick];
        at.quadratic -= 2.0 * q[at.pick] - row[at.pick];
        double most = kNone;
        for (Index i = thread; i < u; i += kThreads) {
            if (i == at.pick)
                gone[i] = 1;
            else if (!gone[i]) {
                q[i] -= row[i];
                most = larger(most, scores[i]);
            }
        }
        shared.value[thread] = most;
        ++at.removed;
        return true;
    }

    // Notes the removal whose best rival join_seconds has found.
    SIMKIT_BOTH void record(int thread, const Shared& shared, const Registers& at) const {
        if (thread) return;
        order[at.removed - 1] = at.pick;
        cka[at.removed - 1] = at.found;
        gaps[at.removed - 1] = at.found - largest(shared);
        done[0] = at.removed;
    }
};

template <class M>
Elimination eliminate(M& machine, const double* a, Index u, bool greedy, Index count, double min_cka) {
    Elimination out{{}, {}, std::numeric_limits<double>::infinity()};
    if (count == 0) return out;
    auto matrix = machine.template array<double>(u * u);
    machine.send(matrix, a, u * u);
    auto r = machine.template array<double>(u), q = machine.template array<double>(u);
    auto scores = machine.template array<double>(u), ranks = machine.template array<double>(u);
    auto gone = machine.template array<unsigned char>(u);
    auto order = machine.template array<Index>(count), done = machine.template array<Index>(1);
    auto cka = machine.template array<double>(count), gaps = machine.template array<double>(count);
    machine.zero(done, 1);
    machine.run(SumRows{matrix.data(), u, r.data()}, pieces(u, SumRows::kThreads));
    machine.run(Eliminate{matrix.data(), r.data(), u, count, greedy, min_cka, q.data(), scores.data(), ranks.data(),
                          gone.data(), order.data(), done.data(), cka.data(), gaps.data()},
                1);
    Index removed = 0;
    machine.fetch(&removed, done, 1);
    if (removed == 0) return out;
    std::vector<double> apart(removed);
    out.order.resize(removed);
    out.cka.resize(removed);
    machine.fetch(out.order.data(), order, removed);
    machine.fetch(out.cka.data(), cka, removed);
    machine.fetch(apart.data(), gaps, removed);
    for (Index k = 0; k < removed; ++k) {
        if (greedy && u - k > 1) out.smallest_gap = std::min(out.smallest_gap, std::fabs(apart[k]));
        if (out.cka[k] == Eliminate::kNone) out.cka[k] = std::numeric_limits<double>::quiet_NaN();
    }
    return out;
}

}  // namespace simkit::cuda
