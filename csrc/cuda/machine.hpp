// What runs programs (cuda/program.hpp): a device (cuda/device.cuh), or the host in tests (tests/native/emulator.hpp).
//
// A machine M offers
//   M::Array<T> with data(), [count] elements that start out as anything
//   array<T>(count), zero(array, count), run(program, blocks)
//   send(array, values, count)   the values are read at some time before the next `fetch` returns: they stay until then
//   fetch(values, array, count)  the values are there, and all work is done, when it returns
//   send and fetch of a pointer instead of an array: memory there that outlives the machine
//   kept                         host memory that is kept until then
// all in the order of the calls.
#pragma once

#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

#include "cuda/program.hpp"

namespace simkit::cuda {

// Refuses what no device launches.
template <class P>
void check_launch(Index blocks) {
    static_assert(P::kThreads % 32 == 0 && P::kThreads <= 1024, "a block is whole warps, 1024 threads at most");
    static_assert(P::kThreads * P::kResident <= 1536, "a multiprocessor holds 1536 threads, or more");
    static_assert(sizeof(typename P::Shared) <= 48 * 1024, "more shared memory must be asked for");
    static_assert(sizeof(typename P::Shared) * P::kResident <= 96 * 1024, "shared memory for the blocks it is to hold");
    static_assert(alignof(typename P::Shared) <= 16, "shared memory begins at a multiple of 16");
    static_assert(sizeof(P) <= 4096, "a kernel takes 4 KiB of arguments");
    if (blocks < 1) throw std::invalid_argument("a launch needs a block");
    if (blocks > 2147483647) throw std::invalid_argument("the problem has more tiles than one launch holds");
}

// Host memory that copies in flight read.
class Kept {
  public:
    template <class T>
    const T* keep(std::vector<T>&& values) {
        const auto held = std::make_shared<const std::vector<T>>(std::move(values));
        held_.push_back(held);
        return held->data();
    }
    void release() { held_.clear(); }

  private:
    std::vector<std::shared_ptr<const void>> held_;
};

template <class M, class T>
typename M::template Array<T> sent(M& machine, std::vector<T> values) {
    const auto count = static_cast<Index>(values.size());
    auto array = machine.template array<T>(count);
    machine.send(array, machine.kept.keep(std::move(values)), count);
    return array;
}

template <class M, class T>
std::vector<T> fetched(M& machine, const typename M::template Array<T>& array, Index count) {
    std::vector<T> values(static_cast<std::size_t>(count));
    machine.fetch(values.data(), array, count);
    return values;
}

}  // namespace simkit::cuda
