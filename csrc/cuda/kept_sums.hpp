// Sums of the columns of square matrices over the rows that are still kept, by all multiprocessors.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/machine.hpp"
#include "ops/greedy.hpp"

namespace simkit::cuda {

// A matrix and its places in the arrays that several of them share.
struct SquareTask {
    const double* a;         // [u, u], symmetric
    Index u, count;          // removals
    Index unit, part, done;  // its first unit, part of a sum, and removal
};
static_assert(kSentAs<SquareTask, 48> && offsetof(SquareTask, done) == 40);

// What a launch leaves for the next one, of one matrix.
struct Progress {
    Index removed;
    double factor;        // 1 / sqrt(T)
    bool finished, lost;  // lost: a unit left next to nothing of Q, of which rounding has taken digits
};
static_assert(kSentAs<Progress, 24> && offsetof(Progress, finished) == 16);

// kWidth columns of one matrix, over one group of its rows.
struct KeptStrip {
    std::int32_t matrix, strip, group;
};
static_assert(kSentAs<KeptStrip, 12>);

// parts [groups, u] of every matrix that is not finished: its columns over the kept rows of a group, in their order.
// Columns that are gone are left as they are. Program blocks: one strip each.
struct SumKept {
    static constexpr int kThreads = 128, kResident = 8, kAtOnce = 8;  // loads on their way at once
    static constexpr Index kRows = 256;
    struct Shared {};
    struct Registers {};

    const SquareTask* tasks;
    const Progress* progress;
    const KeptStrip* strips;
    const unsigned char* gone;  // [units]
    double* parts;

    SIMKIT_BOTH bool step(Index number, int thread, int, Shared&, Registers&) const {
        const KeptStrip& place = strips[number];
        const SquareTask& task = tasks[place.matrix];
        const unsigned char* out = gone + task.unit;
        const Index i = static_cast<Index>(place.strip) * kThreads + thread, first = place.group * kRows;
        if (progress[place.matrix].finished || i >= task.u || out[i]) return false;
        const Index end = smaller(task.u, first + kRows);
        double sum = 0.0;
        for (Index j = first; j < end; j += kAtOnce) {
            double values[kAtOnce];
            SIMKIT_UNROLL
            for (int e = 0; e < kAtOnce; ++e)
                values[e] = j + e < end && !out[j + e] ? task.a[(j + e) * task.u + i] : 0.0;
            SIMKIT_UNROLL
            for (int e = 0; e < kAtOnce; ++e) sum += values[e];
        }
        parts[task.part + place.group * task.u + i] = sum;
        return false;
    }
};

// q [units] = the parts in their order. Program blocks: the strips of the first groups.
struct JoinKept {
    static constexpr int kThreads = SumKept::kThreads, kResident = 1;
    struct Shared {};
    struct Registers {};

    SumKept sums;
    double* q;

    SIMKIT_BOTH bool step(Index number, int thread, int, Shared&, Registers&) const {
        const KeptStrip& place = sums.strips[number];
        const SquareTask& task = sums.tasks[place.matrix];
        const Index i = static_cast<Index>(place.strip) * kThreads + thread, groups = pieces(task.u, SumKept::kRows);
        if (sums.progress[place.matrix].finished || i >= task.u || sums.gone[task.unit + i]) return false;
        double sum = 0.0;
        for (Index group = 0; group < groups; ++group) sum += sums.parts[task.part + group * task.u + i];
        q[task.unit + i] = sum;
        return false;
    }
};

// The matrices on a machine, with everything kept to begin with.
template <class M>
class KeptSums {
  public:
    KeptSums(M& machine, const std::vector<SquareProblem>& problems)
        : machine_(machine),
          strips_(sent(machine, listed(problems))),
          tasks_(sent(machine, places_)),
          progress_(machine.template array<Progress>(static_cast<Index>(problems.size()))),
          gone_(machine.template array<unsigned char>(units_)),
          parts_(machine.template array<double>(part_)),
          q_(machine.template array<double>(units_)) {
        machine.zero(progress_, static_cast<Index>(problems.size()));
        machine.zero(gone_, units_);
    }

    void form() {
        const SumKept sums{tasks_.data(), progress_.data(), strips_.data(), gone_.data(), parts_.data()};
        machine_.run(sums, all_);
        machine_.run(JoinKept{sums, q_.data()}, first_);
    }

    Index units() const { return units_; }
    Index removals() const { return removals_; }
    const std::vector<SquareTask>& places() const { return places_; }
    const SquareTask* tasks() const { return tasks_.data(); }
    Progress* progress() const { return progress_.data(); }
    unsigned char* gone() const { return gone_.data(); }
    const double* q() const { return q_.data(); }
    std::vector<Progress> fetched_progress() {
        return fetched<M, Progress>(machine_, progress_, static_cast<Index>(places_.size()));
    }
    std::vector<double> fetched_sums() { return fetched<M, double>(machine_, q_, units_); }

  private:
    // Places the matrices in the arrays that they share; the first groups of all strips come first.
    std::vector<KeptStrip> listed(const std::vector<SquareProblem>& problems) {
        std::vector<KeptStrip> strips, others;
        for (const SquareProblem& problem : problems) {
            const auto matrix = static_cast<std::int32_t>(places_.size());
            const auto groups = static_cast<std::int32_t>(pieces(problem.u, SumKept::kRows));
            for (std::int32_t strip = 0; strip < pieces(problem.u, SumKept::kThreads); ++strip)
                for (std::int32_t group = 0; group < groups; ++group)
                    (group ? others : strips).push_back({matrix, strip, group});
            places_.push_back({problem.a, problem.u, problem.count, units_, part_, removals_});
            units_ += problem.u;
            part_ += groups * problem.u;
            removals_ += problem.count;
        }
        first_ = static_cast<Index>(strips.size());
        strips.insert(strips.end(), others.begin(), others.end());
        all_ = static_cast<Index>(strips.size());
        return strips;
    }

    M& machine_;
    std::vector<SquareTask> places_;
    Index units_ = 0, part_ = 0, removals_ = 0, first_ = 0, all_ = 0;
    typename M::template Array<KeptStrip> strips_;
    typename M::template Array<SquareTask> tasks_;
    typename M::template Array<Progress> progress_;
    typename M::template Array<unsigned char> gone_;
    typename M::template Array<double> parts_, q_;
};

// 1^T A 1 of a matrix on the machine.
template <class M>
double total(M& machine, const double* a, Index u) {
    KeptSums<M> sums(machine, {{a, u, 0}});
    sums.form();
    double out = 0.0;
    for (double sum : sums.fetched_sums()) out += sum;
    return out;
}

}  // namespace simkit::cuda
