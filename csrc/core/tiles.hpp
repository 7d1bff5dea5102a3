// The only loop that splits work over threads.
//
// Tiles are claimed dynamically and committed in their order, so a sum over tiles has the same bits for any number
// of threads. Workers are plain std::threads, created and joined inside the call: nothing survives to clash with
// another runtime or to hang a forked child.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace simkit {

// Called now and then on the calling thread; throws to stop (a pending Ctrl-C).
using Poll = std::function<void()>;

namespace detail {

// Another worker has failed, so this one ends its tile early; the other's error is the one that is told.
struct Stopped {};

class Turnstile {
  public:
    // Waits for tile t's turn; false when another worker failed.
    bool enter(std::int64_t t) {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return turn_ == t || error_; });
        return !error_;
    }
    void leave() {
        {
            std::lock_guard lock(mutex_);
            ++turn_;
        }
        changed_.notify_all();
    }
    void fail(std::exception_ptr error) {
        {
            std::lock_guard lock(mutex_);
            if (!error_) error_ = error;
        }
        changed_.notify_all();
    }
    bool failed() {
        std::lock_guard lock(mutex_);
        return error_ != nullptr;
    }
    void rethrow() {
        if (error_) std::rethrow_exception(error_);
    }

  private:
    std::mutex mutex_;
    std::condition_variable changed_;
    std::int64_t turn_ = 0;
    std::exception_ptr error_;
};

}  // namespace detail

// make() builds one worker (its private workspace) with work(t), run concurrently, and commit(t), run one at a time
// in the order of t. A worker whose tiles write apart from each other has no commit, and waits for nobody. One whose
// tiles may take seconds has work(t, pause), and calls pause() now and then: it throws when the work is to stop.
template <class Make>
void for_each_tile(std::int64_t count, int threads, const Poll& poll, Make&& make) {
    using Clock = std::chrono::steady_clock;
    detail::Turnstile turnstile;
    std::atomic<std::int64_t> next{0};
    auto run = [&](bool calling) {
        auto last = Clock::now();
        auto pause = [&] {
            if (turnstile.failed()) throw detail::Stopped();
            if (calling && poll && Clock::now() - last > std::chrono::milliseconds(50)) {
                poll();
                last = Clock::now();
            }
        };
        try {
            auto worker = make();
            for (std::int64_t t; (t = next.fetch_add(1)) < count && !turnstile.failed();) {
                if constexpr (requires { worker.work(t, pause); }) {
                    worker.work(t, pause);
                } else {
                    worker.work(t);
                }
                if constexpr (requires { worker.commit(t); }) {
                    if (!turnstile.enter(t)) return;
                    worker.commit(t);
                    turnstile.leave();
                }
                pause();
            }
        } catch (...) {
            turnstile.fail(std::current_exception());
        }
    };
    const auto helpers = static_cast<int>(std::min<std::int64_t>(threads, count)) - 1;
    std::vector<std::thread> team;
    team.reserve(helpers > 0 ? helpers : 0);
    try {
        for (int i = 0; i < helpers; ++i) team.emplace_back(run, false);
    } catch (...) {  // no more threads to be had: fewer workers do the same work
    }
    run(true);
    for (auto& thread : team) thread.join();
    turnstile.rethrow();
}

}  // namespace simkit
