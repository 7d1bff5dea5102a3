// Launches a greedy elimination and what it needs in between, until every matrix is searched. See ops/greedy.hpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cuda/elimination.hpp"

namespace simkit::cuda {

// Matrices of up to this many units have them in registers.
constexpr Index kInRegisters = 8192;

template <class M>
class EliminationRun {
  public:
    EliminationRun(M& machine, const std::vector<SquareProblem>& problems, bool greedy, double min_cka)
        : machine_(machine),
          sums_(machine, problems),
          h_(machine.template array<double>(sums_.units())),
          r_(machine.template array<double>(sums_.units())),
          score_(machine.template array<double>(sums_.units())),
          removals_(machine.template array<Removal>(sums_.removals())),
          greedy_(greedy),
          min_cka_(min_cka) {
        for (const SquareProblem& problem : problems) widest_ = larger(widest_, problem.u);
    }

    // Q falls to a quarter when half of the units are gone: about so many launches are queued before anyone asks
    // whether they were enough.
    std::vector<Progress> run(Index in_registers) {
        int rounds = 4;
        for (Index u = widest_; u; u /= 2) ++rounds;
        for (;;) {
            for (int round = 0; round < rounds; ++round) {
                sums_.form();
                go_on(in_registers);
            }
            auto progress = sums_.fetched_progress();
            if (std::all_of(progress.begin(), progress.end(), [](const Progress& of) { return of.finished; }))
                return progress;
        }
    }

    std::vector<Elimination> found(const std::vector<Progress>& progress) {
        const auto removals = fetched<M, Removal>(machine_, removals_, sums_.removals());
        std::vector<Elimination> out;
        for (std::size_t k = 0; k < progress.size(); ++k) {
            const SquareTask& task = sums_.places()[k];
            out.push_back({{}, {}, std::numeric_limits<double>::infinity(), progress[k].lost});
            for (Index step = 0; step < progress[k].removed; ++step) {
                const Removal& removal = removals[task.done + step];
                const bool known = removal.cka != -std::numeric_limits<double>::infinity();
                out[k].order.push_back(removal.unit);
                out[k].cka.push_back(known ? removal.cka : std::numeric_limits<double>::quiet_NaN());
                if (greedy_ && task.u - step > 1)
                    out[k].smallest_gap = std::min(out[k].smallest_gap, std::fabs(removal.gap));
            }
        }
        return out;
    }

  private:
    void go_on(Index in_registers) {
        if (widest_ > in_registers) return launch<8, true>();
        if (widest_ <= 512) return launch<1, false>();
        if (widest_ <= 2048) return launch<4, false>();
        launch<16, false>();
    }

    template <int E, bool InMemory>
    void launch() {
        machine_.run(Eliminate<E, InMemory>{sums_.tasks(),
                                            sums_.q(),
                                            {h_.data(), r_.data(), score_.data()},
                                            sums_.gone(),
                                            sums_.progress(),
                                            removals_.data(),
                                            greedy_,
                                            min_cka_},
                     static_cast<Index>(sums_.places().size()));
    }

    M& machine_;
    KeptSums<M> sums_;
    typename M::template Array<double> h_, r_, score_;
    typename M::template Array<Removal> removals_;
    bool greedy_;
    double min_cka_;
    Index widest_ = 1;
};

// The matrices lie on the machine, and every count is positive. in_registers: kInRegisters at most.
template <class M>
std::vector<Elimination> eliminate(M& machine, const std::vector<SquareProblem>& problems, bool greedy, double min_cka,
                                   Index in_registers = kInRegisters) {
    EliminationRun<M> run(machine, problems, greedy, min_cka);
    return run.found(run.run(in_registers));
}

}  // namespace simkit::cuda
