// Greedy elimination, of several matrices at once, without a word to the host between steps. See ops/greedy.hpp.
//
// One block of threads searches one matrix; what is summed over a whole matrix is summed by all multiprocessors, in
// launches between (cuda/kept_sums.hpp): the search stops where it needs them, and the next launch goes on.
//
// Counted for an H200, one matrix of u = 8192 units (64 KiB a row, 16 units a thread), for one removal: the row, 0.7 us
// until it begins to arrive and 0.6 us for 64 bytes a clock; 8192 scores of about 14 float64 instructions each at 64 a
// clock, 1 us, half of it while the row arrives; four barriers with a sum of 16 to 32 terms each between them, 0.5 us:
// 2.3 us, so 19 ms for all of them. The sums: u^2 / 3 numbers in all after the first u^2, 0.15 ms, and 17 rounds of
// three launches, 0.1 ms. One launch a removal over all multiprocessors instead: the scores cost nothing, but a launch
// waits 1 to 2 us for the one before and 2 us for its chain of three reads (the best of each block, the units of the
// best block, the row), 4 us at any u: faster from about 16,000 units on, and 35 ms for 8192. And then several matrices
// wait for one another, where here each has a multiprocessor to itself.
#pragma once

#include <cmath>
#include <limits>

#include "cuda/kept_sums.hpp"

namespace simkit::cuda {

SIMKIT_BOTH inline double inverse_root(double x) {
#ifdef __CUDA_ARCH__
    return rsqrt(x);  // a division and a root less, and right to the last bit or two as well
#else
    return 1.0 / std::sqrt(x);
#endif
}

// What is known of a removal.
struct Removal {
    Index unit;
    double cka, gap;  // gap: to the best score of another unit
};
static_assert(kSentAs<Removal, 24> && offsetof(Removal, gap) == 16);

// Left over between two launches, or too much for a thread's registers; [units] of all matrices. score: the ranks of a
// one-shot order.
struct UnitArrays {
    double *h, *r, *score;
};

// With h = 2 q - diag(A): CKA(all, kept without i) = (R - r_i) / sqrt(T (Q - h_i)); then R -= r_i, Q -= h_i and
// h -= 2 A[i]. A thread's units are thread, thread + kThreads, ...: E of them stay in its registers or, InMemory, E at
// a time come there. Best and lowest over all units: each thread its own, kGroups threads join kMembers each, and then
// every thread joins those, all in a fixed order. One removal is the phases join_best .. strike. Program blocks: one a
// matrix.
template <int E, bool InMemory>
struct Eliminate {
    static constexpr int kThreads = 512, kResident = 1, kMembers = 32, kGroups = kThreads / kMembers;
    static constexpr double kTie = 1e-12, kNone = -std::numeric_limits<double>::infinity();
    static constexpr double kStale = 0.25;  // share of Q that is left when q is formed again
    static constexpr double kLost = 1e-4;   // and below which a score without a unit is off by more than kTie

    enum class Phase { enter, join_totals, begin, join_best, choose, join_picks, strike };

    struct Shared {
        double value[kThreads], other[kThreads];           // sums or maxima of each thread's units
        double h[kThreads], r[kThreads], score[kThreads];  // of the unit that it would take
        std::int32_t unit[kThreads], joined_unit[kGroups];
        double joined[kGroups], joined_other[kGroups];
    };
    struct Page {
        double h[E], r[E], score[E];
        std::uint32_t kept;  // a bit each
    };
    struct Registers {  // `page` and `most` apart, alike in all threads
        Page page;
        double most;  // the best score of this thread's units
        Phase phase;
        double linear, quadratic, fresh, factor, found;
        std::int32_t pick, removed;
        bool struck, leaving;
    };

    const SquareTask* tasks;
    const double* q;  // [units], of the kept ones
    UnitArrays held;
    unsigned char* gone;  // [units]
    Progress* progress;
    Removal* removals;
    bool greedy;
    double min_cka;  // NaN: none

    SIMKIT_BOTH bool step(Index matrix, int thread, int k, Shared& shared, Registers& at) const {
        const SquareTask& task = tasks[matrix];
        if (k == 0) at.phase = Phase::enter;
        switch (at.phase) {
            case Phase::enter:
                if (progress[matrix].finished) return false;
                enter(task, progress[matrix], thread, shared, at);
                break;
            case Phase::join_totals:
                join_totals(thread, shared);
                break;
            case Phase::begin:
                begin(task, progress[matrix], thread, shared, at);
                at.phase = Phase::join_best;
                return true;
            case Phase::join_best:
                join_best(thread, shared);
                break;
            case Phase::choose:
                if (at.struck) record(task, thread, shared, at);
                if (at.leaving) return leave(task, progress[matrix], thread, at);
                choose(task, thread, shared, at);
                break;
            case Phase::join_picks:
                join_picks(thread, shared);
                break;
            case Phase::strike:
                if (!strike(task, progress[matrix], thread, shared, at)) return false;
                at.phase = Phase::join_best;
                return true;
        }
        at.phase = static_cast<Phase>(static_cast<int>(at.phase) + 1);
        return true;
    }

  private:
    SIMKIT_BOTH static Index pages(const SquareTask& task) { return InMemory ? pieces(task.u, kThreads * E) : 1; }
    SIMKIT_BOTH static Index unit_of(Index page, int thread, int e) { return (page * E + e) * kThreads + thread; }
    SIMKIT_BOTH static bool kept(const Page& page, int e) { return page.kept >> e & 1u; }

    // Which of a page's units are kept, and, InMemory, what is known of them.
    SIMKIT_BOTH void find_kept(const SquareTask& task, Index number, int thread, Page& page) const {
        page.kept = 0;
        SIMKIT_UNROLL
        for (int e = 0; e < E; ++e) {
            const Index i = unit_of(number, thread, e);
            if (i < task.u && !gone[task.unit + i]) page.kept |= 1u << e;
        }
    }
    SIMKIT_BOTH void turn_to(const SquareTask& task, Index number, int thread, Page& page) const {
        if constexpr (InMemory) {
            find_kept(task, number, thread, page);
            SIMKIT_UNROLL
            for (int e = 0; e < E; ++e)
                if (kept(page, e)) {
                    const Index i = task.unit + unit_of(number, thread, e);
                    page.h[e] = held.h[i];
                    page.r[e] = held.r[i];
                    page.score[e] = held.score[i];
                }
        }
    }
    SIMKIT_BOTH void put_back(const SquareTask& task, Index number, int thread, const Page& page) const {
        if constexpr (InMemory) {
            SIMKIT_UNROLL
            for (int e = 0; e < E; ++e)
                if (kept(page, e)) {
                    held.h[task.unit + unit_of(number, thread, e)] = page.h[e];
                    held.score[task.unit + unit_of(number, thread, e)] = page.score[e];
                }
        }
    }

    SIMKIT_BOTH double score(const SquareTask& task, const Registers& at, double h, double r) const {
        const double left = at.quadratic - h, value = (at.linear - r) * (at.factor * inverse_root(left));
        const bool defined = left > 0.0 && task.u - at.removed > 1 && value == value;  // a pick is a unit
        return defined ? value : kNone;
    }

    // Whether next to nothing of Q is left without a unit, so that rounding has taken digits of the score.
    SIMKIT_BOTH static bool lost(const SquareTask& task, const Registers& at, double h) {
        return task.u - at.removed > 1 && at.quadratic - h < kLost * at.quadratic;
    }

    SIMKIT_BOTH static double best_of(const Page& page) {
        double most = kNone;
        SIMKIT_UNROLL
        for (int e = 0; e < E; ++e)
            if (kept(page, e)) most = larger(most, page.score[e]);
        return most;
    }

    // Scores of a page's units, or what they were in the first place.
    SIMKIT_BOTH void rate(const SquareTask& task, Progress& own, Registers& at) const {
        if (greedy || at.removed == 0) {
            bool any = false;
            SIMKIT_UNROLL
            for (int e = 0; e < E; ++e) {
                at.page.score[e] = score(task, at, at.page.h[e], at.page.r[e]);
                any = any || (kept(at.page, e) && lost(task, at, at.page.h[e]));
            }
            if (any) own.lost = true;  // as every thread would write it
        }
        at.most = larger(at.most, best_of(at.page));
    }

    // h, r and this thread's share of R and Q, from the sums that were formed before this launch.
    SIMKIT_BOTH void enter(const SquareTask& task, const Progress& before, int thread, Shared& shared,
                           Registers& at) const {
        at.removed = static_cast<std::int32_t>(before.removed);
        at.factor = before.factor;
        double linear = 0.0, quadratic = 0.0;
        for (Index number = 0; number < pages(task); ++number) {
            Page& page = at.page;
            find_kept(task, number, thread, page);
            SIMKIT_UNROLL
            for (int e = 0; e < E; ++e) {
                const Index i = unit_of(number, thread, e), place = task.unit + i;
                page.h[e] = page.r[e] = page.score[e] = 0.0;
                if (!kept(page, e)) continue;
                page.h[e] = 2.0 * q[place] - task.a[i * task.u + i];
                page.r[e] = at.removed == 0 ? q[place] : held.r[place];
                if (!greedy && at.removed > 0) page.score[e] = held.score[place];
                if (at.removed == 0) held.r[place] = q[place];
                linear += page.r[e];
                quadratic += q[place];
            }
            put_back(task, number, thread, page);
        }
        shared.value[thread] = linear;
        shared.other[thread] = quadratic;
    }

    // Four chains of sums (or of maxima), so that one does not wait for the other.
    template <class Join>
    SIMKIT_BOTH static double joined(const double* values, int thread, Join join) {
        double chains[4];
        SIMKIT_UNROLL
        for (int k = 0; k < 4; ++k) chains[k] = values[thread + k * kGroups];
        SIMKIT_UNROLL
        for (int k = 4; k < kMembers; ++k) chains[k % 4] = join(chains[k % 4], values[thread + k * kGroups]);
        return join(join(chains[0], chains[1]), join(chains[2], chains[3]));
    }
    struct Add {
        SIMKIT_BOTH double operator()(double a, double b) const { return a + b; }
    };
    struct Larger {
        SIMKIT_BOTH double operator()(double a, double b) const { return larger(a, b); }
    };

    SIMKIT_BOTH static void join_totals(int thread, Shared& shared) {
        if (thread >= kGroups) return;
        shared.joined[thread] = joined(shared.value, thread, Add{});
        shared.joined_other[thread] = joined(shared.other, thread, Add{});
    }

    // Two warps, one for the best scores and one for those of others than the last pick.
    SIMKIT_BOTH static void join_best(int thread, Shared& shared) {
        if (thread < kGroups) shared.joined[thread] = joined(shared.value, thread, Larger{});
        if (thread >= 32 && thread < 32 + kGroups)
            shared.joined_other[thread - 32] = joined(shared.other, thread - 32, Larger{});
    }

    SIMKIT_BOTH static double largest(const double* joined) {
        double pairs[2] = {joined[0], joined[1]};
        SIMKIT_UNROLL
        for (int k = 2; k < kGroups; ++k) pairs[k % 2] = larger(pairs[k % 2], joined[k]);
        return larger(pairs[0], pairs[1]);
    }

    SIMKIT_BOTH static void join_picks(int thread, Shared& shared) {
        if (thread >= kGroups) return;
        std::int32_t least = shared.unit[thread];
        SIMKIT_UNROLL
        for (int k = 1; k < kMembers; ++k) {
            const std::int32_t other = shared.unit[thread + k * kGroups];
            least = other < least ? other : least;
        }
        shared.joined_unit[thread] = least;
    }

    // The first scores after sums were formed.
    SIMKIT_BOTH void begin(const SquareTask& task, Progress& own, int thread, Shared& shared, Registers& at) const {
        at.linear = at.quadratic = 0.0;
        SIMKIT_UNROLL
        for (int k = 0; k < kGroups; ++k) {
            at.linear += shared.joined[k];
            at.quadratic += shared.joined_other[k];
        }
        at.fresh = size(at.quadratic);
        at.struck = at.leaving = false;
        at.most = kNone;
        if (at.removed == 0) {
            at.factor = inverse_root(at.linear);  // R of all units is T
            if (thread == 0) own.factor = at.factor;
        }
        for (Index number = 0; number < pages(task); ++number) {
            turn_to(task, number, thread, at.page);
            rate(task, own, at);
            put_back(task, number, thread, at.page);
            if (!InMemory && !greedy && at.removed == 0) keep_ranks(task, thread, at.page);
        }
        shared.value[thread] = at.most;
    }

    SIMKIT_BOTH void keep_ranks(const SquareTask& task, int thread, const Page& page) const {
        SIMKIT_UNROLL
        for (int e = 0; e < E; ++e)
            if (kept(page, e)) held.score[task.unit + unit_of(0, thread, e)] = page.score[e];
    }

    // The lowest of this thread's units that ties with the best.
    SIMKIT_BOTH void choose(const SquareTask& task, int thread, Shared& shared, Registers& at) const {
        const double best = largest(shared.joined);
        const auto ties = [best](double value) { return value >= best - kTie || value == best; };
        auto mine = static_cast<std::int32_t>(task.u);
        if (ties(at.most))
            for (Index number = 0; number < pages(task) && mine == task.u; ++number) {
                turn_to(task, number, thread, at.page);
                SIMKIT_UNROLL
                for (int e = E - 1; e >= 0; --e)
                    if (kept(at.page, e) && ties(at.page.score[e])) {
                        mine = static_cast<std::int32_t>(unit_of(number, thread, e));
                        shared.h[thread] = at.page.h[e];
                        shared.r[thread] = at.page.r[e];
                        shared.score[thread] = at.page.score[e];
                    }
            }
        shared.unit[thread] = mine;
    }

    // Takes the picked unit out, and scores what is left. False: nothing more to do here.
    SIMKIT_BOTH bool strike(const SquareTask& task, Progress& own, int thread, Shared& shared, Registers& at) const {
        std::int32_t least = shared.joined_unit[0];
        SIMKIT_UNROLL
        for (int k = 1; k < kGroups; ++k) least = shared.joined_unit[k] < least ? shared.joined_unit[k] : least;
        at.pick = least;
        const int owner = static_cast<int>(least % kThreads);
        const double h = shared.h[owner], r = shared.r[owner];
        at.found = greedy ? shared.score[owner] : score(task, at, h, r);
        if (thread == 0 && lost(task, at, h)) own.lost = true;
        if (min_cka == min_cka && !(at.found >= min_cka)) {
            if (thread == 0) {
                own.removed = at.removed;
                own.finished = true;
            }
            return false;
        }
        if (thread == owner) strike_own(task, thread, at);
        shared.other[thread] = at.most;
        at.linear -= r;
        at.quadratic -= h;
        ++at.removed;
        at.struck = true;
        at.fresh = larger(at.fresh, size(at.quadratic));
        at.leaving = at.removed == task.count || size(at.quadratic) < kStale * at.fresh;
        if (at.leaving) return true;
        at.most = kNone;
        for (Index number = 0; number < pages(task); ++number) {
            turn_to(task, number, thread, at.page);
            subtract(task, number, thread, at);
            rate(task, own, at);
            put_back(task, number, thread, at.page);
        }
        shared.value[thread] = at.most;
        return true;
    }

    // h -= 2 A[pick]: loads first, that none waits for another.
    SIMKIT_BOTH void subtract(const SquareTask& task, Index number, int thread, Registers& at) const {
        const double* row = task.a + static_cast<Index>(at.pick) * task.u;
        constexpr int kAtOnce = E < 8 ? E : 8;
        SIMKIT_UNROLL
        for (int first = 0; first < E; first += kAtOnce) {
            double taken[kAtOnce];
            SIMKIT_UNROLL
            for (int e = 0; e < kAtOnce; ++e)
                taken[e] = kept(at.page, first + e) ? row[unit_of(number, thread, first + e)] : 0.0;
            SIMKIT_UNROLL
            for (int e = 0; e < kAtOnce; ++e) at.page.h[first + e] -= 2.0 * taken[e];
        }
    }

    // The owner's part: its unit is gone, and `most` is the best of its others.
    SIMKIT_BOTH void strike_own(const SquareTask& task, int thread, Registers& at) const {
        gone[task.unit + at.pick] = 1;
        if constexpr (!InMemory) at.page.kept &= ~(1u << at.pick / kThreads);
        at.most = kNone;
        for (Index number = 0; number < pages(task); ++number) {
            turn_to(task, number, thread, at.page);
            at.most = larger(at.most, best_of(at.page));
        }
    }

    // Notes the removal, to whose best rival join_best has come.
    SIMKIT_BOTH void record(const SquareTask& task, int thread, const Shared& shared, const Registers& at) const {
        if (thread == 0)
            removals[task.done + at.removed - 1] = {at.pick, at.found, at.found - largest(shared.joined_other)};
    }

    SIMKIT_BOTH static bool leave(const SquareTask& task, Progress& own, int thread, const Registers& at) {
        if (thread == 0) {
            own.removed = at.removed;
            own.finished = at.removed == task.count;
        }
        return false;
    }

    SIMKIT_BOTH static double size(double value) { return value < 0.0 ? -value : value; }
};

}  // namespace simkit::cuda
