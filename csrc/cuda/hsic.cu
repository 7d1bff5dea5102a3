#include "cuda/columns.hpp"
#include "cuda/device.cuh"
#include "cuda/feature.hpp"
#include "cuda/pair_sums.hpp"
#include "cuda/sent_block.cuh"

namespace simkit::cuda {
namespace {

// Calls `compute` with the problem on the device; where the device's memory is full, again with one tile in flight.
template <class Compute>
PairSums with_placed(const Place& place, const PairProblem& problem, std::int64_t bytes, Compute&& compute) {
    Machine machine(place);
    PlacedProblem placed{{}, problem.left, problem.debiased, bytes};
    std::vector<Sent> sent;
    sent.reserve(problem.blocks.size());
    for (const BlockView& block : problem.blocks) placed.blocks.push_back(sent.emplace_back(machine, block).block());
    try {
        return compute(machine, placed);
    } catch (const OutOfMemory&) {
        placed.bytes = 0;
    }
    return compute(machine, placed);
}

}  // namespace

PairSums pair_sums_sample(const Place& place, const PairProblem& problem, bool tensor, std::int64_t bytes) {
    return with_placed(place, problem, bytes, [&](Machine& machine, const PlacedProblem& placed) {
        return pair_sums_sample(machine, placed, problem.double_products, tensor);
    });
}

PairSums pair_sums_feature(const Place& place, const PairProblem& problem, bool tensor, std::int64_t bytes) {
    return with_placed(place, problem, bytes, [&](Machine& machine, const PlacedProblem& placed) {
        return pair_sums_feature(machine, placed, tensor);
    });
}

std::vector<double> row_norms(const Place& place, const BlockView& block) {
    Machine machine(place);
    const Sent sent(machine, block);
    return row_norms(machine, samples_of(sent.block(), false));
}

}  // namespace simkit::cuda
