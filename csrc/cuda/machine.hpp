// What runs programs (cuda/program.hpp): a device (cuda/device.cuh), or the host in tests (tests/native/emulator.hpp).
//
// A machine M offers
//   M::Array<T> with data(), [count] elements that start out as anything
//   array<T>(count), zero(array, count), run(program, blocks)
//   send(array, values, count)   the values are read at some time before the next `fetch` returns: they stay until then
//   fetch(values, array, count)  the values are there, and all work is done, when it returns
//   memory(bytes)                memory there that outlives the machine, freed with its last owner
//   send and fetch of a pointer instead of an array: such memory
//   settle()                     all work is done when it returns
//   kept                         host memory that is kept until then
//   pause()                      between launches of a long walk: asks whether to stop, and lets the host run a few
//                                pauses ahead at most
// all in the order of the calls. An array or memory for which there is no room is an OutOfMemory, and nothing else is.
//
// Beside that order, which is `Queue::work`, there is a second one, for copies that go on meanwhile:
//   pinned(bytes)                host memory with data() that such copies read; it stays as it is until they are done
//   copy(array, at, pinned, from, bytes)    puts a copy into an array of bytes on `Queue::copies`
//   event()                      a place in one of the two orders, none at first
//   record(event, queue)         what was put on the queue so far
//   wait(queue, event)           what follows on the queue waits for what was recorded before this call
//   wait(event)                  so does the host
// Nothing else orders the two: arrays come and go in the order of `work`.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/place.hpp"
#include "cuda/program.hpp"

namespace simkit::cuda {

enum class Queue { work, copies };

// compute(machine, room), and all that it began, on a machine that make() gives; where its memory is full once more, on
// a fresh one, with the smallest room, and then an error that says so. The only place that knows what to do about it.
// What outlives a machine must bear that compute begins again: it is changed only after the last allocation, or
// overwritten whatever it held.
template <class Make, class Room, class Compute>
auto with_memory(const Make& make, const Room& room, const Compute& compute) {
    const auto once = [&](const Room& fit) {
        auto&& machine = make();
        if constexpr (std::is_void_v<decltype(compute(machine, fit))>) {
            compute(machine, fit);
            machine.settle();
        } else {
            auto found = compute(machine, fit);
            machine.settle();
            return found;
        }
    };
    try {
        return once(room);
    } catch (const OutOfMemory&) {  // all that was allocated is free again
    }
    try {
        return once(Room{});
    } catch (const OutOfMemory& error) {
        throw OutOfMemory(std::string(error.what()) + " even with the smallest workspace");
    }
}

// compute(), whose errors about full memory say what takes how much of it.
template <class Compute>
auto explained(const std::string& what, const Compute& compute) {
    try {
        return compute();
    } catch (const OutOfMemory& error) {
        throw OutOfMemory(std::string(error.what()) + "; " + what);
    }
}

// Refuses what no device launches.
template <class P>
void check_launch(Index blocks) {
    static_assert(std::is_trivially_copyable_v<P>, "a program goes to the device byte by byte");
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

// A copy of bytes that lie on the host, which stay as they are until the machine has settled.
template <class M>
DeviceMemory copied(M& machine, const std::byte* from, Index bytes) {
    auto memory = machine.memory(bytes);
    machine.send(memory.get(), from, bytes);
    return memory;
}

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
