// What simulated devices are made of: streams of tasks, allocations, and what was done when.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cuda_runtime_api.h"

namespace simulated {

using emulator::Index;
using emulator::Order;

// So many tasks of a stream.
struct Place {
    CUstream_st* stream = nullptr;
    std::size_t count = 0;
};

struct Task {
    std::function<void()> run;
    std::vector<Place> after;  // what must be done before
};

}  // namespace simulated

struct CUstream_st {
    int device;
    bool blocking;  // waits for the legacy default stream, which waits for it
    std::deque<simulated::Task> tasks = {};
    std::size_t done = 0;
    simulated::Place end() { return {this, done + tasks.size()}; }
};

struct CUevent_st {
    int device;
    simulated::Place recorded = {};
};

struct CUmemPool_st {
    int device;
    simulated::Index kept = 0, used = 0, idle = 0;  // bytes: that may stay idle, in allocations, idle
};

namespace simulated {

enum class Pace { late, eager, chance };

struct Allocation {
    Allocation(int device_, Index bytes_, cudaMemPool_t pool_)
        : device(device_), bytes(bytes_), pool(pool_), memory(bytes_) {}
    void fill() { std::memset(memory.data(), 0xff, static_cast<std::size_t>(bytes)); }
    // NaN in float64, signalling: who adds to it leaves a quiet one. Of other types it is at least no likely number.
    void spoil() {
        for (Index at = 0; at < bytes; ++at) memory.data()[at] = spoilt(at);
    }
    bool untouched() const {
        for (Index at = 0; at < bytes; ++at)
            if (memory.data()[at] != spoilt(at)) return false;
        return true;
    }
    static std::byte spoilt(Index at) { return static_cast<std::byte>(0x7ff4a5a57fa5a5a5 >> (at % 8 * 8)); }

    static constexpr int kPinned = -1;
    int device;
    Index bytes;
    cudaMemPool_t pool;
    emulator::Guarded memory;
    bool there = false;  // allocated, in the order of a stream, and not freed
};
using Held = std::shared_ptr<Allocation>;

struct Device {
    Index used = 0;
    CUstream_st legacy{0, false}, per_thread{0, true};
};

constexpr int kDevices = 2;
inline thread_local int current = 0;
inline thread_local cudaError_t last = cudaSuccess;

inline int said(const char* name, int otherwise) {
    const char* value = std::getenv((std::string("SIMULATED_") + name).c_str());
    return value ? std::atoi(value) : otherwise;
}

class World {
  public:
    World()
        : order(static_cast<Order>(said("ORDER", 0))),
          pace(static_cast<Pace>(said("PACE", 0))),
          capability(said("CAPABILITY", 80)),
          pools(said("POOLS", 1)) {
        for (int d = 0; d < kDevices; ++d) devices[d].legacy.device = devices[d].per_thread.device = d;
    }

    std::recursive_mutex mutex;
    const Order order;
    const Pace pace;
    const int capability;
    const bool pools;
    const Index total = Index{1} << 33;
    std::string failure;  // of what ran: nothing works from there on
    Device devices[kDevices];
    std::vector<CUstream_st*> made;  // all streams: what was put on one is done though its handle is gone
    std::set<CUstream_st*> streams;  // those that are there
    std::set<CUevent_st*> events;
    std::mt19937 random{0};
    std::map<const std::byte*, Held> allocated;  // by their first address, freed ones not among them

    // Null: no such stream.
    CUstream_st* stream_of(cudaStream_t handle) {
        const auto number = reinterpret_cast<std::uintptr_t>(handle);
        if (number <= 1) return &devices[current].legacy;
        if (number == 2) return &devices[current].per_thread;
        return streams.contains(handle) ? handle : nullptr;
    }

    cudaError_t put(cudaStream_t handle, std::function<void()> run, const Place& event = {}) {
        CUstream_st* stream = stream_of(handle);
        if (!stream) return cudaErrorInvalidResourceHandle;
        Task task{std::move(run), {}};
        if (event.stream) task.after.push_back(event);
        Device& device = devices[stream->device];
        if (stream == &device.legacy)
            of_device(stream->device, [&](CUstream_st& other) {
                if (other.blocking) task.after.push_back(other.end());
            });
        else if (stream->blocking)
            task.after.push_back(device.legacy.end());
        stream->tasks.push_back(std::move(task));
        hurry();
        return cudaSuccess;
    }

    // Does the stream's next task, if it has one whose time has come.
    bool advance(CUstream_st& stream) {
        if (stream.tasks.empty()) return false;
        for (const Place& place : stream.tasks.front().after)
            if (place.stream->done < place.count) return false;
        const Task task = std::move(stream.tasks.front());
        stream.tasks.pop_front();
        try {
            if (task.run && failure.empty()) task.run();
        } catch (const std::exception& error) {
            fail(error.what());
        }
        ++stream.done;
        return true;
    }

    void reach(const Place& place) {
        while (place.stream && place.stream->done < place.count)
            if (!advance(*place.stream)) {
                const std::vector<Place> after = place.stream->tasks.front().after;
                for (const Place& before : after) reach(before);
            }
    }
    void reach_all(int device) {
        of_device(device, [&](CUstream_st& stream) { reach(stream.end()); });
        reach(devices[device].legacy.end());
    }

    // A little of what comes before a place; whether all of it is done.
    bool peek(const Place& place) {
        if (!place.stream || place.stream->done >= place.count) return true;
        reach({place.stream, std::min(place.count, place.stream->done + 64)});
        return place.stream->done >= place.count;
    }

    // Whose memory begins with this byte; null: nobody's.
    Held find(const void* at) {
        const auto* first = static_cast<const std::byte*>(at);
        auto found = allocated.upper_bound(first);
        if (found == allocated.begin()) return nullptr;
        --found;
        const Held& held = found->second;
        return first < held->memory.data() + held->bytes ? held : nullptr;
    }
    static bool holds(const Held& held, const void* at, std::size_t bytes) {
        return !held || static_cast<const std::byte*>(at) + bytes <= held->memory.data() + held->bytes;
    }

    cudaError_t allocate(int device, std::size_t bytes, void** at, Held& held, cudaMemPool_t pool = nullptr) {
        if (bytes == 0) return cudaErrorInvalidValue;
        const auto size = static_cast<Index>(bytes);
        const Index idle = pool ? std::min(pool->idle, size) : 0;
        if (device >= 0 && size - idle > total - devices[device].used) return cudaErrorMemoryAllocation;
        held = std::make_shared<Allocation>(device, size, pool);
        if (device >= 0) devices[device].used += size - idle;
        if (pool) {
            pool->used += size;
            pool->idle -= idle;
        }
        *at = held->memory.data();
        allocated[held->memory.data()] = held;
        return cudaSuccess;
    }

    // From here on its address is nobody's; null: it was not.
    Held release(void* at) {
        const auto found = allocated.find(static_cast<std::byte*>(at));
        if (found == allocated.end()) return nullptr;
        Held held = std::move(found->second);
        allocated.erase(found);
        Index stays = 0;
        if (cudaMemPool_t pool = held->pool) {
            stays = std::min(held->bytes, pool->kept - pool->idle);
            pool->used -= held->bytes;
            pool->idle += stays;
        }
        if (held->device >= 0) devices[held->device].used -= held->bytes - stays;
        return held;
    }

    // When its turn has come. Its memory stays for a while: who still reads it finds NaN, who writes it is found out.
    void forget(const Held& held) {
        if (!held->there) throw std::runtime_error("memory is freed before it was allocated");
        held->there = false;
        if (!held->memory.intact()) throw std::runtime_error("a kernel wrote outside of its array");
        held->spoil();
        gone_.push_back(held);
        gone_bytes_ += held->bytes;
        while (gone_bytes_ > kGone) {
            const Held oldest = std::move(gone_.front());
            gone_.pop_front();
            gone_bytes_ -= oldest->bytes;
            if (!oldest->untouched()) throw std::runtime_error("memory was written to after it was freed");
        }
    }

    // At the end of the process, all streams done: what was left to find.
    void close() {
        for (int device = 0; device < kDevices; ++device) reach_all(device);
        for (const Held& held : gone_)
            if (!held->untouched()) return fail("memory was written to after it was freed");
    }

    // Nothing works from here on. SIMULATED_FAILURES names a file that says so, for nobody may be left to ask.
    void fail(const std::string& what) {
        failure = what;
        std::fprintf(stderr, "simulated device: %s\n", what.c_str());
        const char* name = std::getenv("SIMULATED_FAILURES");
        if (std::FILE* file = name ? std::fopen(name, "a") : nullptr) {
            std::fprintf(file, "%s\n", what.c_str());
            std::fclose(file);
        }
    }
    // What a program that is right never does, and whose error it may not look at.
    cudaError_t misuse(const std::string& what) {
        fail(what);
        return cudaErrorInvalidValue;
    }

  private:
    static constexpr Index kGone = Index{1} << 28;

    template <class Use>
    void of_device(int device, const Use& use) {
        use(devices[device].per_thread);
        for (CUstream_st* stream : made)
            if (stream->device == device) use(*stream);
    }

    // What is done sooner than anything asks for it.
    void hurry() {
        std::vector<CUstream_st*> all = made;
        for (Device& device : devices) all.insert(all.end(), {&device.legacy, &device.per_thread});
        if (pace == Pace::chance)
            for (int turns = static_cast<int>(random() % 4); turns > 0; --turns) advance(*all[random() % all.size()]);
        for (bool more = pace == Pace::eager; more;) {
            more = false;
            for (CUstream_st* stream : all) more = advance(*stream) || more;
        }
    }

    std::deque<Held> gone_;
    Index gone_bytes_ = 0;
};

inline World& world() {
    static World* const only = [] {  // never destroyed: Python's last objects may come after it
        std::atexit([] { world().close(); });
        return new World;
    }();
    return *only;
}

}  // namespace simulated
