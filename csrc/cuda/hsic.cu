#include "cuda/device.cuh"
#include "cuda/sent_block.cuh"
#include "cuda/strip_pairs.hpp"
#include "cuda/unit_sums.hpp"

namespace simkit::cuda {
namespace {

template <class Compute>
PairSums with_placed(const Place& place, const PairProblem& problem, std::int64_t bytes, const std::vector<bool>& apart,
                     const Compute& compute) {
    return at_place(place, bytes, [&](Machine& machine, std::int64_t room) {
        PlacedProblem placed{{}, problem.left, problem.debiased, room, problem.tensor, problem.halves, apart};
        std::vector<Sent> sent;
        sent.reserve(problem.blocks.size());
        for (const BlockView& block : problem.blocks)
            placed.blocks.push_back(sent.emplace_back(machine, block).block());
        return compute(machine, placed);
    });
}

}  // namespace

PairSums pair_sums_sample(const Place& place, const PairProblem& problem, std::int64_t bytes) {
    return with_placed(place, problem, bytes, {}, [&](Machine& machine, const PlacedProblem& placed) {
        return pair_sums_sample(machine, placed, problem.double_products);
    });
}

PairSums pair_sums_feature(const Place& place, const PairProblem& problem, std::int64_t bytes,
                           const std::vector<bool>& apart) {
    return with_placed(place, problem, bytes, apart, [](Machine& machine, const PlacedProblem& placed) {
        return pair_sums_feature(machine, placed);
    });
}

PairSums pair_sums_sample(const Place& place, const PairProblem& problem, const Strips& strips) {
    return at_place(place, strips,
                    [&](Machine& machine, const Strips& fit) { return pair_sums_sample(machine, problem, fit); });
}

PairSums pair_sums_feature(const Place& place, const PairProblem& problem, const Strips& strips) {
    return at_place(place, strips,
                    [&](Machine& machine, const Strips& fit) { return pair_sums_feature(machine, problem, fit); });
}

OwnSums unit_sums(const Place& place, const BlockView& block, const std::vector<std::int64_t>& offsets, bool debiased,
                  bool sample_space, bool double_products, bool tensor, std::int64_t bytes) {
    return at_place(place, bytes, [&](Machine& machine, std::int64_t room) {
        const Sent sent(machine, block);
        return unit_sums(machine, sent.block(), offsets, debiased, sample_space, double_products, tensor, room);
    });
}

DeviceMemory gather_columns(const Place& place, const MatrixView& x, const std::vector<std::int64_t>& index) {
    return at_place(place, Index{0}, [&](Machine& machine, Index) { return gather_columns(machine, x, index); });
}

std::vector<double> row_norms(const Place& place, const BlockView& block) {
    return at_place(place, Index{0}, [&](Machine& machine, Index) {
        const Sent sent(machine, block);
        return row_norms(machine, samples_of(sent.block(), false));
    });
}

std::vector<double> row_norms(const Place& place, const BlockView& block, const Strips& strips) {
    return at_place(place, strips, [&](Machine& machine, const Strips& fit) { return row_norms(machine, block, fit); });
}

}  // namespace simkit::cuda
