// A machine (csrc/cuda/machine.hpp) that runs programs on the host, one thread after another, in any order.
//
// Nothing is done before `fetch` needs it: what a copy reads, and what a program's memory belongs to, must stay as long
// as on a device. Of the two queues either may be ahead of the other, as far as events let it (Pace): where a wait is
// missing, a program reads what is not there yet, or a copy overwrites what is still needed.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <typeinfo>
#include <utility>
#include <vector>

#include "cuda/machine.hpp"
#include "threads.hpp"

namespace emulator {

using simkit::cuda::Queue;

struct Event {
    Queue queue = Queue::work;
    std::size_t place = 0;  // so many tasks of the queue come before it
};

// Which queue runs ahead: none before it must, one as soon as it may, or either by chance.
enum class Pace { late, copies, work, chance };

// What a test says to all machines of one library, and what they did.
struct Trial {
    Index memory = std::numeric_limits<Index>::max();  // bytes that one machine has
    Index refused = 0;                                 // the allocation of this number fails, from 1 on
    Index machines = 0, allocations = 0;
    bool spoiled = false;  // what lay around memory that outlived its machine
};
namespace {
Trial trial;
Index fetched_bytes = 0;            // by all machines of a library, whatever other libraries fetch
std::set<std::string> ran_by_name;  // the programs that they ran
}  // namespace

class Machine {
  public:
    explicit Machine(Order order, Pace pace = Pace::late, Index memory = std::numeric_limits<Index>::max())
        : order_(order), pace_(pace), memory_(memory) {}
    ~Machine() noexcept(false) {
        if (!std::uncaught_exceptions()) finish();
    }
    Machine(const Machine&) = delete;
    Machine& operator=(const Machine&) = delete;

    simkit::cuda::Kept kept;
    std::function<void()> poll;
    Index most = 0, copied = 0;  // bytes: of arrays at any time, through the second queue

    template <class T>
    class Array {
      public:
        Array(Machine& machine, Index count) : machine_(&machine), count_(count) {
            const Index bytes = count * static_cast<Index>(sizeof(T));
            machine.take(bytes);
            held_ = std::make_shared<Held>(bytes);
            machine.put(work, [held = held_] { held->there = true; });
        }
        T* data() const { return reinterpret_cast<T*>(held_->bytes.data()); }
        Index count() const { return count_; }
        Array(Array&&) = default;
        // Freed in the order of the work, and looked at when its turn comes.
        ~Array() {
            if (!held_) return;
            machine_->used_ -= count_ * static_cast<Index>(sizeof(T));
            machine_->line(work).tasks.push_back({[held = std::move(held_)] {
                                                      held->there = false;
                                                      if (!held->bytes.intact()) throw std::runtime_error(kSpoiled);
                                                  },
                                                  {}});
        }

      private:
        friend class Machine;
        struct Held {
            explicit Held(Index size) : bytes(size) {}
            Guarded bytes;
            bool there = false;  // allocated, in the order of the work, and not freed
        };

        Machine* machine_;
        Index count_;
        std::shared_ptr<Held> held_;
    };

    using Event = emulator::Event;

    // Overwritten at its end, when copies from it are done as on a device.
    class Pinned {
      public:
        Pinned(Machine& machine, Index bytes) : machine_(&machine), bytes_(bytes, 0xff) {}
        Pinned(Pinned&&) = default;
        ~Pinned() {
            if (bytes_.empty() || std::uncaught_exceptions()) return;
            machine_->reach(copies, machine_->line(copies).end());
            std::fill(bytes_.begin(), bytes_.end(), 0xff);
        }
        std::byte* data() const { return reinterpret_cast<std::byte*>(const_cast<unsigned char*>(bytes_.data())); }

      private:
        Machine* machine_;
        std::vector<unsigned char> bytes_;
    };

    Event event() { return {}; }
    Pinned pinned(Index bytes) { return Pinned(*this, bytes); }
    void record(Event& event, Queue queue) { event = {queue, line(queue).end()}; }
    void wait(Queue queue, const Event& event) { put(queue, {}, event); }
    void wait(const Event& event) { reach(event.queue, event.place); }
    void copy(Array<std::byte>& to, Index at, const Pinned& from, Index start, Index bytes) {
        if (at < 0 || at + bytes > to.count()) throw std::runtime_error("a copy leaves the array");
        copied += bytes;
        put(copies, [held = to.held_, to = to.data() + at, from = from.data() + start, bytes] {
            if (!held->there) throw std::runtime_error("a copy to memory that is not there yet, or no longer");
            std::copy_n(from, bytes, to);
        });
    }
    void pause() {
        if (poll) poll();
    }

    template <class T>
    Array<T> array(Index count) {
        if (count < 1) throw std::runtime_error("an array needs an element");
        return Array<T>(*this, count);
    }
    // Its ends are looked at when it goes (`trial.spoiled`).
    simkit::cuda::DeviceMemory memory(Index bytes) {
        if (bytes < 1) throw std::runtime_error("memory needs a byte");
        take(bytes);
        const std::shared_ptr<Guarded> held(new Guarded(bytes), [](Guarded* of) {
            trial.spoiled |= !of->intact();
            delete of;
        });
        return {held, held->data()};
    }
    template <class T>
    void send(Array<T>& array, const T* values, Index count) {
        static_assert(std::is_trivially_copyable_v<T>);
        if (count > array.count()) throw std::runtime_error("more is sent than the array holds");
        put(work, [to = array.data(), values, count] { std::copy_n(values, count, to); });
    }
    template <class T>
    void fetch(T* values, const Array<T>& array, Index count) {
        static_assert(std::is_trivially_copyable_v<T>);
        if (count > array.count()) throw std::runtime_error("more is fetched than the array holds");
        finish();
        std::copy_n(array.data(), count, values);
        fetched_bytes += count * static_cast<Index>(sizeof(T));
    }
    // The same for memory that outlives the machine.
    template <class T>
    void send(T* to, const T* values, Index count) {
        static_assert(std::is_trivially_copyable_v<T>);
        put(work, [to, values, count] { std::copy_n(values, count, to); });
    }
    template <class T>
    void fetch(T* values, const T* from, Index count) {
        static_assert(std::is_trivially_copyable_v<T>);
        finish();
        std::copy_n(from, count, values);
        fetched_bytes += count * static_cast<Index>(sizeof(T));
    }
    void settle() { finish(); }

    template <class T>
    void zero(Array<T>& array, Index count) {
        if (count > array.count()) throw std::runtime_error("more is cleared than the array holds");
        put(work, [to = array.data(), count] { std::memset(to, 0, count * sizeof(T)); });
    }

    template <class P>
    void run(const P& program, Index blocks) {
        simkit::cuda::check_launch<P>(blocks);
        ran_by_name.insert(typeid(P).name());
        put(work, [this, program, blocks] { run_threads(program, blocks, order_, random_); });
    }

  private:
    static constexpr Queue work = Queue::work, copies = Queue::copies;
    static constexpr const char* kSpoiled = "a program wrote outside of its array";

    void take(Index bytes) {
        if (++trial.allocations == trial.refused || bytes > memory_ - used_)
            throw simkit::cuda::OutOfMemory(static_cast<std::size_t>(bytes), "on the device");
        used_ += bytes;
        most = std::max(most, used_);
    }

    struct Task {
        std::function<void()> run;
        Event after;  // what must be done before
    };
    struct Line {
        std::deque<Task> tasks;
        std::size_t done = 0;
        std::size_t end() const { return done + tasks.size(); }
    };

    Line& line(Queue queue) { return lines_[queue == copies]; }

    void put(Queue queue, std::function<void()> run, Event after = {}) {
        line(queue).tasks.push_back({std::move(run), after});
        hurry();
    }

    // Does the queue's next task, if it has one whose time has come.
    bool advance(Queue queue) {
        Line& of = line(queue);
        if (of.tasks.empty() || line(of.tasks.front().after.queue).done < of.tasks.front().after.place) return false;
        const Task task = std::move(of.tasks.front());
        of.tasks.pop_front();
        ++of.done;
        if (task.run) task.run();
        return true;
    }

    // What is done sooner than anything asks for it.
    void hurry() {
        if (pace_ == Pace::chance)
            for (int turns = static_cast<int>(random_() % 4); turns > 0; --turns)
                advance(random_() % 2 ? work : copies);
        while (pace_ == Pace::copies && advance(copies)) {
        }
        while (pace_ == Pace::work && advance(work)) {
        }
    }

    // Does what comes before a place of a queue, and what that waits for.
    void reach(Queue queue, std::size_t place) {
        while (line(queue).done < place) {
            if (advance(queue)) {
                hurry();
            } else {
                const Event after = line(queue).tasks.front().after;
                reach(after.queue, after.place);
            }
        }
    }

    void finish() {
        reach(work, line(work).end());
        kept.release();
    }

    Order order_;
    Pace pace_;
    Index memory_, used_ = 0;
    std::mt19937 random_{0};
    std::array<Line, 2> lines_;
};

}  // namespace emulator
