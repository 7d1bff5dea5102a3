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
    Operand rows, pilots;  // row i of `rows` is sample i, row j of `pilots` is sample each j
    KernelOfRows kernel;
    double* means;  // [n]
};
static_assert(kSentAs<PilotBlock, 208> && offsetof(PilotBlock, means) == 200);

// means [first, end) of every block: of K(i, j) over `count` samples j, every `each`-th; where debiased without i
// itself, whose own value may drown the rest. Program blocks [blocks, pieces(end - first, kWidth)]. All float64.
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
    Index first, end, count, each;
    bool debiased;

    SIMKIT_BOTH bool step(Index number, int thread, int k, Shared& shared, Registers& registers) const {
        const auto strips = static_cast<std::uint32_t>(pieces(end - first, kWidth));
        const auto order = static_cast<std::uint32_t>(number) / strips;
        const Index i0 = first + (number - static_cast<Index>(order) * strips) * kWidth;
        const PilotBlock& block = blocks[order];
        const int slices = static_cast<int>(pieces(block.rows.depth, kSlice)), steps = slices + 2;
        const int turn = k / steps, within = k % steps, turns = static_cast<int>(pieces(count, kWidth));
        if (k == 0) {
            SIMKIT_UNROLL
            for (int r = 0; r < R; ++r) registers.sums[r] = 0.0;
        }
        if (turn < turns && within <= slices) {
            const Tile tile{block.rows, block.pilots, i0, turn * kWidth, 0, block.rows.depth};
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
        if (thread < kWidth && i0 + thread < end) {
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
            const bool counts = i < end && j < count && !(debiased && i == other);
            const Index across = block.pilots.at(j, 0) - block.rows.at(other, 0);
            value = counts ? block.kernel(value, block.rows, i, other, across) : 0.0;
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

// The kernels of a problem's blocks, which need the norms of rows, and estimates of the row means of K. The rows lie on
// the machine, or come there in strips.
template <class M>
class Kernels {
  public:
    // No row need be there yet.
    Kernels(M& machine, const PlacedProblem& problem)
        : machine_(machine),
          n_(problem.n()),
          pilots_(smaller(n_, KernelMeans::kPilot)),
          each_(n_ / pilots_),
          debiased_(problem.debiased) {
        for (Index b = 0; b < problem.m(); ++b) {
            const BlockView& view = problem.blocks[b].view;
            const bool norms = needs_norms(view.kernel);
            if (norms) norms_.push_back(machine.template array<double>(n_));
            kernels_.push_back(
                {view.kernel, view.length, view.coef0, view.degree, norms ? norms_.back().data() : nullptr});
            if (!problem.blocks[b].linear()) curved_.push_back(b);
        }
    }

    const KernelOfRows& of(Index block) const { return kernels_[static_cast<std::size_t>(block)]; }

    const std::vector<Index>& curved() const { return curved_; }  // the blocks of non-linear kernels
    Index pilots() const { return pilots_; }                      // rows that estimate the means: every each()-th
    Index each() const { return each_; }

    // Norms and estimates of blocks that lie on the machine; a linear kernel's features are centred.
    std::vector<RowMeans> row_means(const PlacedProblem& problem) const {
        std::vector<Operand> rows, pilots;
        for (const Index b : curved_) {
            rows.push_back(samples_of(problem.blocks[b], false));
            pilots.push_back(rows.back());
            pilots.back().rows = pilots_;
            pilots.back().row_stride *= each_;
        }
        return row_means(pilots, [&](const auto& use) { use(rows, 0, n_); });
    }

    // The same of rows that come in strips: pass(use) calls use(rows, first, end) until all samples have come, where
    // row i of each of `rows` is sample first + i of a non-linear kernel. The pilots have their norms.
    template <class Pass>
    std::vector<RowMeans> row_means(const std::vector<Operand>& pilots, const Pass& pass) const {
        const Index many = static_cast<Index>(curved_.size());
        std::vector<RowMeans> means(kernels_.size());
        if (many == 0) return means;
        auto found = machine_.template array<double>(many * n_);
        pass([&](const std::vector<Operand>& rows, Index first, Index end) {
            form_norms(rows, first, 1);
            std::vector<PilotBlock> blocks;
            for (Index k = 0; k < many; ++k) {
                Operand here = rows[k];
                here.data -= first * here.row_stride;
                here.rows = end;
                blocks.push_back({here, pilots[k], of(curved_[k]), found.data() + k * n_});
            }
            const auto held = sent(machine_, std::move(blocks));
            machine_.run(KernelMeans{held.data(), first, end, pilots_, each_, debiased_},
                         many * pieces(end - first, KernelMeans::kWidth));
        });
        const auto values = fetched<M, double>(machine_, found, many * n_);
        for (Index k = 0; k < many; ++k) {
            RowMeans& of = means[curved_[k]];
            of.values.assign(values.begin() + k * n_, values.begin() + (k + 1) * n_);
            of.mean = std::accumulate(of.values.begin(), of.values.end(), 0.0) / static_cast<double>(n_);
        }
        return means;
    }

    // Norms of samples first, first + each, ..., which are the rows of the non-linear kernels' operands.
    void form_norms(const std::vector<Operand>& rows, Index first, Index each) const {
        for (std::size_t k = 0, next = 0; k < curved_.size(); ++k)
            if (needs_norms(of(curved_[k]).kernel))
                machine_.run(RowNorms{rows[k], norms_[next++].data() + first, each},
                             pieces(rows[k].rows, RowNorms::kRows));
    }

  private:
    M& machine_;
    Index n_, pilots_, each_;
    bool debiased_;
    std::vector<typename M::template Array<double>> norms_;  // [n] of each kernel of distances
    std::vector<KernelOfRows> kernels_;
    std::vector<Index> curved_;
};

}  // namespace simkit::cuda
