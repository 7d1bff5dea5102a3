// What a non-linear kernel needs before its tiles: the norms of the rows, and an estimate of the row means of K, on any
// machine (cuda/machine.hpp).
#pragma once

#include <numeric>
#include <vector>

#include "cuda/columns.hpp"
#include "cuda/kernel_value.hpp"
#include "cuda/machine.hpp"
#include "cuda/placed.hpp"

namespace simkit::cuda {

struct PilotBlock {
    Operand rows;
    KernelOfRows kernel;
    double* means;  // [n]
};

// means [n] of every block: of K(i, j) over `count` rows j, every `each`-th; where debiased without i itself, whose own
// value may drown the rest. Program blocks [blocks, pieces(n, kWidth)]. All float64.
struct KernelMeans {
    static constexpr int R = 4;
    static constexpr Index kPilot = 256;  // rows, at most
    using Tile = Product<double, R, false>;
    static constexpr int kThreads = Tile::kThreads, kResident = 2, kWidth = Tile::kWidth;
    union Shared {
        typename Tile::Slices slices;
        double values[kWidth][kWidth];  // a thread's own
        double parts[kSide][kWidth];
    };
    struct Registers {
        typename Tile::Registers product;
        double sums[R];
    };

    const PilotBlock* blocks;
    Index n, count, each;
    bool debiased;

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers& registers) const {
        const auto strips = static_cast<std::uint32_t>(pieces(n, kWidth));
        const auto order = static_cast<std::uint32_t>(number) / strips;
        const Index i0 = (number - static_cast<Index>(order) * strips) * kWidth;
        const PilotBlock& block = blocks[order];
        const int slices = static_cast<int>(pieces(block.rows.depth, kSlice)), steps = slices + 2;
        const int turn = k / steps, within = k % steps, turns = static_cast<int>(pieces(count, kWidth));
        if (k == 0) {
            SIMKIT_UNROLL
            for (int r = 0; r < R; ++r) registers.sums[r] = 0.0;
        }
        if (turn < turns && within <= slices) {
            Operand pilots = block.rows;
            pilots.rows = count;
            pilots.row_stride *= each;
            const Tile tile{block.rows, pilots, i0, turn * kWidth, 0, block.rows.depth};
            tile.step(within, thread, shared.slices, registers.product);
            return true;
        }
        if (turn < turns) {
            add_values(block, i0, turn * kWidth, thread, shared, registers);
            return true;
        }
        if (within == 0) {
            SIMKIT_UNROLL
            for (int r = 0; r < R; ++r) shared.parts[thread % kSide][Tile::row(thread, r)] = registers.sums[r];
            return true;
        }
        if (thread < kWidth && i0 + thread < n) {
            double sum = 0.0;
            for (int part = 0; part < kSide; ++part) sum += shared.parts[part][thread];
            block.means[i0 + thread] = sum / static_cast<double>(count - drops(i0 + thread));
        }
        return false;
    }

  private:
    SIMKIT_BOTH bool drops(Index i) const { return debiased && i % each == 0 && i / each < count; }

    // The values one by one, so that the code of a kernel stands there once.
    SIMKIT_BOTH void add_values(const PilotBlock& block, Index i0, Index j0, int thread, Shared& shared,
                                Registers& registers) const {
        SIMKIT_UNROLL
        for (int r = 0; r < R; ++r) {
            SIMKIT_UNROLL
            for (int s = 0; s < R; ++s)
                shared.values[Tile::row(thread, r)][Tile::column(thread, s)] = registers.product.c[r][s];
        }
        SIMKIT_NO_UNROLL
        for (int q = 0; q < R * R; ++q) {
            const int row = Tile::row(thread, q / R), column = Tile::column(thread, q % R);
            const Index i = i0 + row, j = j0 + column, other = j * each;
            double& value = shared.values[row][column];
            const bool counts = i < n && j < count && !(debiased && i == other);
            value = counts ? block.kernel(value, block.rows, i, other) : 0.0;
        }
        SIMKIT_UNROLL
        for (int r = 0; r < R; ++r) {
            SIMKIT_UNROLL
            for (int s = 0; s < R; ++s)
                registers.sums[r] += shared.values[Tile::row(thread, r)][Tile::column(thread, s)];
        }
    }
};

// Row means of K, by an estimate or by sums that a pass has found; empty: K is not centred.
struct RowMeans {
    std::vector<double> values;  // [n]
    double mean = 0.0;

    // Takes the row sums [n] of what the means left of K.
    void absorb(const double* sums, Index n, bool debiased) {
        const double dn = static_cast<double>(n), each = debiased ? dn - 2.0 : dn, all = debiased ? dn - 1.0 : dn;
        values.resize(static_cast<std::size_t>(n), 0.0);
        for (Index i = 0; i < n; ++i) values[i] += sums[i] / each;
        mean += std::accumulate(sums, sums + n, 0.0) / (each * all);
    }
};

// The kernels of a problem's blocks, ready for rows on the machine.
template <class M>
class Kernels {
  public:
    Kernels(M& machine, const PlacedProblem& problem) : machine_(machine), problem_(problem) {
        for (const PlacedBlock& block : problem.blocks) {
            const double* norms = nullptr;
            if (needs_norms(block.view.kernel)) {
                norms = norms_.emplace_back(machine.template array<double>(problem.n())).data();
                machine.run(RowNorms{samples_of(block, false), norms_.back().data()},
                            pieces(problem.n(), RowNorms::kRows));
            }
            const BlockView& view = block.view;
            kernels_.push_back({view.kernel, view.length, view.coef0, view.degree, norms});
        }
    }

    const KernelOfRows& of(Index block) const { return kernels_[static_cast<std::size_t>(block)]; }

    // Estimates for the non-linear kernels; a linear one's features are centred.
    std::vector<RowMeans> row_means() const {
        const Index n = problem_.n(), count = smaller(n, KernelMeans::kPilot);
        std::vector<RowMeans> means(problem_.blocks.size());
        std::vector<Index> which;
        for (Index b = 0; b < problem_.m(); ++b)
            if (!problem_.blocks[b].linear()) which.push_back(b);
        const Index many = static_cast<Index>(which.size());
        if (many == 0) return means;
        auto found = machine_.template array<double>(many * n);
        std::vector<PilotBlock> blocks;
        for (Index k = 0; k < many; ++k)
            blocks.push_back({samples_of(problem_.blocks[which[k]], false), of(which[k]), found.data() + k * n});
        const auto held = sent(machine_, std::move(blocks));
        machine_.run(KernelMeans{held.data(), n, count, n / count, problem_.debiased},
                     many * pieces(n, KernelMeans::kWidth));
        const auto values = fetched<M, double>(machine_, found, many * n);
        for (Index k = 0; k < many; ++k) {
            RowMeans& of = means[which[k]];
            of.values.assign(values.begin() + k * n, values.begin() + (k + 1) * n);
            of.mean = std::accumulate(of.values.begin(), of.values.end(), 0.0) / static_cast<double>(n);
        }
        return means;
    }

  private:
    M& machine_;
    const PlacedProblem& problem_;
    std::vector<typename M::template Array<double>> norms_;
    std::vector<KernelOfRows> kernels_;
};

}  // namespace simkit::cuda
