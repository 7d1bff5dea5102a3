// A machine (csrc/cuda/machine.hpp) that runs programs on the host, one thread after another, in any order.
//
// Nothing is done before `fetch` needs it: what a copy reads, and what a program's memory belongs to, must stay as long
// as on a device. Arrays and shared memory start out as NaN; what lies before and behind an array is watched; every
// thread of a block must agree on whether another step follows. A program that lets one thread read what another writes
// in the same step gives another answer in another order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

#include "cuda/machine.hpp"

namespace emulator {

using simkit::cuda::Index;

enum class Order { ascending, descending, shuffled };

namespace {
Index fetched_bytes = 0;  // by all machines of a library, whatever other libraries fetch
}

class Machine {
  public:
    explicit Machine(Order order) : order_(order) {}
    ~Machine() noexcept(false) {
        if (!std::uncaught_exceptions()) finish();
    }
    Machine(const Machine&) = delete;
    Machine& operator=(const Machine&) = delete;

    simkit::cuda::Kept kept;

    template <class T>
    class Array {
      public:
        Array(Machine& machine, Index count)
            : machine_(&machine),
              count_(count),
              bytes_(std::make_shared<Bytes>(kGuard + count * sizeof(T) + kGuard, Bytes::value_type{0xff})) {}
        T* data() const { return reinterpret_cast<T*>(bytes_->data() + kGuard); }
        Index count() const { return count_; }
        Array(Array&&) = default;
        // Freed in the order of the work, and looked at when its turn comes.
        ~Array() {
            if (bytes_) machine_->work_.push_back([bytes = std::move(bytes_)] { check_ends(*bytes); });
        }

      private:
        using Bytes = std::vector<unsigned char>;
        static constexpr std::size_t kGuard = 256;

        static void check_ends(const Bytes& bytes) {
            const auto intact = [](const unsigned char* at) {
                return std::all_of(at, at + kGuard, [](unsigned char byte) { return byte == 0xff; });
            };
            if (!intact(bytes.data()) || !intact(bytes.data() + bytes.size() - kGuard))
                throw std::runtime_error("a program wrote outside of its array");
        }

        Machine* machine_;
        Index count_;
        std::shared_ptr<Bytes> bytes_;
    };

    template <class T>
    Array<T> array(Index count) {
        if (count < 1) throw std::runtime_error("an array needs an element");
        return Array<T>(*this, count);
    }
    template <class T>
    void send(Array<T>& array, const T* values, Index count) {
        if (count > array.count()) throw std::runtime_error("more is sent than the array holds");
        work_.push_back([to = array.data(), values, count] { std::copy_n(values, count, to); });
    }
    template <class T>
    void fetch(T* values, const Array<T>& array, Index count) {
        if (count > array.count()) throw std::runtime_error("more is fetched than the array holds");
        finish();
        std::copy_n(array.data(), count, values);
        fetched_bytes += count * static_cast<Index>(sizeof(T));
    }
    template <class T>
    void zero(Array<T>& array, Index count) {
        if (count > array.count()) throw std::runtime_error("more is cleared than the array holds");
        work_.push_back([to = array.data(), count] { std::memset(to, 0, count * sizeof(T)); });
    }

    template <class P>
    void run(const P& program, Index blocks) {
        simkit::cuda::check_launch<P>(blocks);
        work_.push_back([this, program, blocks] { execute(program, blocks); });
    }

  private:
    template <class T>
    struct Memory {
        alignas(16) unsigned char bytes[sizeof(T)];
        void forget() { std::memset(bytes, 0xff, sizeof bytes); }
        T& value() { return *reinterpret_cast<T*>(bytes); }
    };

    void finish() {
        for (const auto& work : std::exchange(work_, {})) work();
        kept.release();
    }

    template <class P>
    void execute(const P& program, Index blocks) {
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

    Order order_;
    std::mt19937 random_{0};
    std::vector<std::function<void()>> work_;
};

}  // namespace emulator
