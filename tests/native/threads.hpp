// The threads of a program (csrc/cuda/program.hpp) on the host, one after another, in any order, and the memory that
// they read and write: it starts out as NaN, and what lies before and behind it is watched. Every thread of a block
// must agree on whether another step follows. A program that lets one thread read what another writes in the same step
// gives another answer in another order.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(at, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(at, bytes)
#endif

#include "cuda/program.hpp"

namespace emulator {

using simkit::cuda::Index;

enum class Order { ascending, descending, shuffled };

// Bytes that start out as NaN, between ends that nobody may touch.
class Guarded {
  public:
    explicit Guarded(Index bytes) : whole_(kGuard + bytes + kGuard, 0xff) {
        ASAN_POISON_MEMORY_REGION(whole_.data(), kGuard);
        ASAN_POISON_MEMORY_REGION(end(), kGuard);
    }
    Guarded(const Guarded&) = delete;
    Guarded& operator=(const Guarded&) = delete;
    ~Guarded() { ASAN_UNPOISON_MEMORY_REGION(whole_.data(), whole_.size()); }

    std::byte* data() const { return reinterpret_cast<std::byte*>(const_cast<unsigned char*>(whole_.data())) + kGuard; }
    bool intact() const {
        ASAN_UNPOISON_MEMORY_REGION(whole_.data(), whole_.size());
        const auto untouched = [](const unsigned char* at) {
            return std::all_of(at, at + kGuard, [](unsigned char byte) { return byte == 0xff; });
        };
        return untouched(whole_.data()) && untouched(end());
    }

  private:
    static constexpr std::size_t kGuard = 256;
    const unsigned char* end() const { return whole_.data() + whole_.size() - kGuard; }

    std::vector<unsigned char> whole_;
};

template <class T>
struct Memory {
    alignas(16) unsigned char bytes[sizeof(T)];
    void forget() { std::memset(bytes, 0xff, sizeof bytes); }
    T& value() { return *reinterpret_cast<T*>(bytes); }
};

template <class P>
void run_threads(const P& program, Index blocks, Order order, std::mt19937& random) {
    std::vector<int> threads(P::kThreads);
    std::iota(threads.begin(), threads.end(), 0);
    if (order == Order::descending) std::reverse(threads.begin(), threads.end());
    auto shared = std::make_unique<Memory<typename P::Shared>>();
    std::vector<Memory<typename P::Registers>> registers(P::kThreads);
    for (Index b = 0; b < blocks; ++b) {
        const Index block = order == Order::ascending ? b : blocks - 1 - b;
        shared->forget();
        for (auto& own : registers) own.forget();
        bool more = true;
        for (int k = 0; more; ++k) {
            if (order == Order::shuffled) std::shuffle(threads.begin(), threads.end(), random);
            int staying = 0;
            for (const int thread : threads)
                staying += program.step(block, thread, k, shared->value(), registers[thread].value());
            if (staying && staying != P::kThreads) throw std::runtime_error("threads disagree about the next step");
            more = staying > 0;
        }
    }
}

}  // namespace emulator
