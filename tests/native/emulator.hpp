// A machine that runs programs (csrc/cuda/program.hpp) on the host, one thread after another, in any order.
//
// Arrays and shared memory start out as NaN; what lies before and behind an array is watched; every thread of a block
// must agree on whether another step follows. A program that lets one thread read what another writes in the same step
// gives another answer in another order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#include "cuda/program.hpp"

namespace emulator {

using simkit::cuda::Index;

enum class Order { ascending, descending, shuffled };

class Machine {
  public:
    explicit Machine(Order order) : order_(order) {}

    template <class T>
    class Array {
      public:
        explicit Array(Index count) : count_(count), bytes_(kGuard + count * sizeof(T) + kGuard, 0xff) {}
        T* data() const { return reinterpret_cast<T*>(const_cast<unsigned char*>(bytes_.data()) + kGuard); }
        Index count() const { return count_; }
        Array(Array&&) = default;
        ~Array() noexcept(false) {
            const auto intact = [](const unsigned char* at) {
                return std::all_of(at, at + kGuard, [](unsigned char byte) { return byte == 0xff; });
            };
            if (!bytes_.empty() && !(intact(bytes_.data()) && intact(bytes_.data() + bytes_.size() - kGuard)))
                throw std::runtime_error("a program wrote outside of its array");
        }

      private:
        static constexpr std::size_t kGuard = 256;
        Index count_;
        std::vector<unsigned char> bytes_;
    };

    template <class T>
    Array<T> array(Index count) {
        return Array<T>(count);
    }
    template <class T>
    void send(Array<T>& array, const T* values, Index count) {
        if (count > array.count()) throw std::runtime_error("more is sent than the array holds");
        std::copy_n(values, count, array.data());
    }
    template <class T>
    void fetch(T* values, const Array<T>& array, Index count) {
        if (count > array.count()) throw std::runtime_error("more is fetched than the array holds");
        std::copy_n(array.data(), count, values);
    }
    template <class T>
    void zero(Array<T>& array, Index count) {
        if (count > array.count()) throw std::runtime_error("more is cleared than the array holds");
        std::memset(array.data(), 0, count * sizeof(T));
    }

    template <class P>
    void run(const P& program, Index blocks) {
        std::vector<int> threads(P::kThreads);
        std::iota(threads.begin(), threads.end(), 0);
        if (order_ == Order::descending) std::reverse(threads.begin(), threads.end());
        auto shared = std::make_unique<Memory<typename P::Shared>>();
        std::vector<Memory<typename P::Registers>> registers(P::kThreads);
        for (Index b = 0; b < blocks; ++b) {
            const Index block = order_ == Order::ascending ? b : blocks - 1 - b;
            shared->forget();
            for (auto& own : registers) own.forget();
            bool more = true;
            for (int k = 0; more; ++k) {
                if (order_ == Order::shuffled) std::shuffle(threads.begin(), threads.end(), random_);
                int staying = 0;
                for (const int thread : threads)
                    staying += program.step(block, thread, k, shared->value(), registers[thread].value());
                if (staying && staying != P::kThreads) throw std::runtime_error("threads disagree about the next step");
                more = staying > 0;
            }
        }
    }

  private:
    template <class T>
    struct Memory {
        alignas(16) unsigned char bytes[sizeof(T)];
        void forget() { std::memset(bytes, 0xff, sizeof bytes); }
        T& value() { return *reinterpret_cast<T*>(bytes); }
    };

    Order order_;
    std::mt19937 random_{0};
};

}  // namespace emulator
