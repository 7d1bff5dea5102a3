// What the .cu files share: errors as sentences, memory in the order of a stream, and the machine that runs programs
// (cuda/program.hpp) on a device.
#pragma once

#include <cuda_runtime_api.h>

#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>

#include "core/place.hpp"
#include "cuda/launch.cuh"
#include "cuda/machine.hpp"

namespace simkit::cuda {

[[noreturn]] inline void fail(cudaError_t error, const std::string& what) {
    cudaGetLastError();  // this one is reported: it must not be found again by the next call
    throw std::runtime_error("CUDA cannot " + what + ": " + cudaGetErrorString(error));
}

inline void check(cudaError_t error, const char* what) {
    if (error != cudaSuccess) fail(error, what);
}

inline void check_allocation(cudaError_t error, std::size_t bytes, const std::string& where) {
    if (error == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        throw OutOfMemory(bytes, where);
    }
    if (error != cudaSuccess) fail(error, "allocate " + std::to_string(bytes) + " bytes " + where);
}

// The pool that the ops' memory on a device comes from, in the order of streams; null where devices have none. It keeps
// a share of the device's memory for the next op, which would otherwise map it again: the default pool gives everything
// back whenever a stream has been waited for.
cudaMemPool_t own_pool(int device);

// Refuses a stream that the driver no longer knows, before anything is put on it: nothing runs, no memory is taken.
// CUDA promises nothing of the handle of a destroyed stream and has no list of those that live: the answer is the
// driver's, which looks the handle up, and a handle that went to a newer stream since then is that stream's. Only who
// owns the array can keep its stream alive; this says what happened where that can still be said.
inline void check_stream(cudaStream_t stream) {
    if (reinterpret_cast<std::uintptr_t>(stream) <= 2) return;  // a default stream
    unsigned flags = 0;
    const cudaError_t error = cudaStreamGetFlags(stream, &flags);
    if (error != cudaSuccess) fail(error, "use the stream that an array came with (was it destroyed?)");
}

// The caller's device, while the calling thread uses another.
class Visit {
  public:
    explicit Visit(int device) {
        check(cudaGetDevice(&before_), "tell the current device");
        if (device != before_) check(cudaSetDevice(device), ("use device " + std::to_string(device)).c_str());
        changed_ = device != before_;
    }
    ~Visit() {
        if (changed_) cudaSetDevice(before_);
    }
    Visit(const Visit&) = delete;
    Visit& operator=(const Visit&) = delete;

  private:
    int before_ = 0;
    bool changed_ = false;
};

// Memory of a pool, or where that is null memory for which the whole device waits, here and when it is freed.
inline cudaError_t allocate(void** at, std::size_t bytes, cudaMemPool_t pool, cudaStream_t stream) {
    return pool ? cudaMallocFromPoolAsync(at, bytes, pool, stream) : cudaMalloc(at, bytes);
}
inline void give_back(void* at, cudaMemPool_t pool, cudaStream_t stream) {
    if (pool)
        cudaFreeAsync(at, stream);
    else
        cudaFree(at);
}

// Memory that outlives what is done on `stream`, where it is allocated in that order; freed on the device's own stream
// (own_stream), for a caller may destroy his.
DeviceMemory lasting_memory(int device, cudaStream_t stream, cudaMemPool_t pool, std::size_t bytes);

// Runs programs in the order of the caller's stream; its arrays come and go in that order too. Only `fetch` waits, and
// `wait` and `pause`, and the end of a machine whose work was not fetched: an error must not leave kernels that read
// the caller's arrays. Copies go to a stream of their own, made when it is first used.
class Machine {
  public:
    explicit Machine(const Place& place)
        : visit_(place.device),
          device_(place.device),
          stream_(static_cast<cudaStream_t>(place.stream)),
          poll_(place.poll) {
        pool_ = own_pool(place.device);
        check_stream(stream_);
        for (void* other : place.before) follow(other);
    }
    ~Machine() {
        if (busy_) cudaStreamSynchronize(stream_);
        if (!copies_) return;
        cudaStreamSynchronize(copies_);
        cudaStreamDestroy(copies_);
    }
    Machine(const Machine&) = delete;
    Machine& operator=(const Machine&) = delete;

    Kept kept;

    template <class T>
    class Array {
      public:
        Array(const Machine& machine, Index count) : pool_(machine.pool_), stream_(machine.stream_) {
            const auto bytes = static_cast<std::size_t>(count) * sizeof(T);
            check_allocation(allocate(&data_, bytes, pool_, stream_), bytes, "on the device");
        }
        Array(Array&& other) noexcept : data_(other.data_), pool_(other.pool_), stream_(other.stream_) {
            other.data_ = nullptr;
        }
        Array& operator=(Array&&) = delete;
        ~Array() {
            if (data_) give_back(data_, pool_, stream_);
        }
        T* data() const { return static_cast<T*>(data_); }

      private:
        void* data_ = nullptr;
        cudaMemPool_t pool_;
        cudaStream_t stream_;
    };

    template <class T>
    Array<T> array(Index count) {
        return Array<T>(*this, count);
    }
    // Its last owner waited for what reads and writes it. Held until this machine's work is done, whatever its owners
    // do when an error takes them.
    DeviceMemory memory(Index bytes) {
        busy_ = true;  // another stream frees it: not before this one has allocated it
        return lasting_.emplace_back(lasting_memory(device_, stream_, pool_, static_cast<std::size_t>(bytes)));
    }
    template <class T>
    void send(Array<T>& array, const T* values, Index count) {
        static_assert(std::is_trivially_copyable_v<T>, "values go to the device byte by byte");
        const auto bytes = static_cast<std::size_t>(count) * sizeof(T);
        busy_ = true;
        check(cudaMemcpyAsync(array.data(), values, bytes, cudaMemcpyHostToDevice, stream_), "copy to the device");
    }
    template <class T>
    void fetch(T* values, const Array<T>& array, Index count) {
        static_assert(std::is_trivially_copyable_v<T>, "values come from the device byte by byte");
        const auto bytes = static_cast<std::size_t>(count) * sizeof(T);
        if (poll_ && busy_) finish([&] { return cudaStreamQuery(stream_); });  // a copy to pageable memory waits deaf
        check(cudaMemcpyAsync(values, array.data(), bytes, cudaMemcpyDeviceToHost, stream_), "copy from the device");
        check(cudaStreamSynchronize(stream_), "finish");
        busy_ = false;
        kept.release();
    }
    // The same for memory that outlives the machine.
    template <class T>
    void send(T* to, const T* values, Index count) {
        static_assert(std::is_trivially_copyable_v<T>, "values go to the device byte by byte");
        busy_ = true;
        const auto bytes = static_cast<std::size_t>(count) * sizeof(T);
        check(cudaMemcpyAsync(to, values, bytes, cudaMemcpyHostToDevice, stream_), "copy to the device");
    }
    template <class T>
    void fetch(T* values, const T* from, Index count) {
        static_assert(std::is_trivially_copyable_v<T>, "values come from the device byte by byte");
        const auto bytes = static_cast<std::size_t>(count) * sizeof(T);
        check(cudaMemcpyAsync(values, from, bytes, cudaMemcpyDeviceToHost, stream_), "copy from the device");
        check(cudaStreamSynchronize(stream_), "finish");
        busy_ = false;
        kept.release();
    }
    // What was begun is done, and went well.
    void settle() {
        if (!busy_) return;
        if (poll_) finish([&] { return cudaStreamQuery(stream_); });
        check(cudaStreamSynchronize(stream_), "finish");
        busy_ = false;
        kept.release();
    }
    // Nobody waits for the work so far: it uses memory that outlives the machine, and what it was sent is on its way.
    void leave() { busy_ = false; }
    cudaStream_t stream() const { return stream_; }

    template <class T>
    void zero(Array<T>& array, Index count) {
        busy_ = true;
        check(cudaMemsetAsync(array.data(), 0, static_cast<std::size_t>(count) * sizeof(T), stream_), "clear memory");
    }

    template <class P>
    void run(const P& program, Index blocks) {
        check_launch<P>(blocks);
        busy_ = true;
        check(launch(program, static_cast<unsigned>(blocks), stream_), "start a kernel");
    }

    class Event {
      public:
        Event() { check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "make an event"); }
        Event(Event&& other) noexcept : event_(other.event_) { other.event_ = nullptr; }
        Event& operator=(Event&&) = delete;
        ~Event() {
            if (event_) cudaEventDestroy(event_);
        }
        cudaEvent_t get() const { return event_; }

      private:
        cudaEvent_t event_ = nullptr;
    };

    // Gone only when no copy reads it.
    class Pinned {
      public:
        Pinned(cudaStream_t copies, Index bytes) : copies_(copies) {
            const auto size = static_cast<std::size_t>(bytes);
            check_allocation(cudaHostAlloc(&data_, size, cudaHostAllocDefault), size, "of the host's pinned memory");
        }
        Pinned(Pinned&& other) noexcept : data_(other.data_), copies_(other.copies_) { other.data_ = nullptr; }
        Pinned& operator=(Pinned&&) = delete;
        ~Pinned() {
            if (!data_) return;
            cudaStreamSynchronize(copies_);
            cudaFreeHost(data_);
        }
        std::byte* data() const { return static_cast<std::byte*>(data_); }

      private:
        void* data_ = nullptr;
        cudaStream_t copies_;
    };

    Event event() { return {}; }
    Pinned pinned(Index bytes) { return {on(Queue::copies), bytes}; }

    void copy(Array<std::byte>& to, Index at, const Pinned& from, Index start, Index bytes) {
        const auto size = static_cast<std::size_t>(bytes);
        check(cudaMemcpyAsync(to.data() + at, from.data() + start, size, cudaMemcpyHostToDevice, on(Queue::copies)),
              "copy to the device");
    }
    void record(Event& event, Queue queue) { check(cudaEventRecord(event.get(), on(queue)), "record an event"); }
    void wait(Queue queue, const Event& event) {
        busy_ = true;
        check(cudaStreamWaitEvent(on(queue), event.get(), 0), "wait for an event");
    }
    void wait(const Event& event) {
        finish([&] { return cudaEventQuery(event.get()); });
    }

    // The host is at most so many pauses ahead: Ctrl-C waits for what lies between them.
    static constexpr std::size_t kAhead = 8;
    void pause() {
        if (!poll_) return;
        if (pauses_.size() < kAhead) pauses_.emplace_back();
        Event& place = pauses_[paused_++ % kAhead];
        if (paused_ > kAhead) wait(place);
        record(place, Queue::work);
    }

  private:
    using Clock = std::chrono::steady_clock;

    // Waits until the query has an answer, and asks now and then whether to stop.
    template <class Query>
    void finish(const Query& query) {
        constexpr std::chrono::milliseconds eager{1}, between{50};
        const auto began = Clock::now();
        auto asked = began;
        for (cudaError_t error; (error = query()) != cudaSuccess;) {
            if (error != cudaErrorNotReady) fail(error, "finish");
            cudaGetLastError();
            const auto now = Clock::now();
            if (poll_ && now - asked > between) {
                poll_();
                asked = now;
            }
            if (now - began > eager) std::this_thread::sleep_for(std::chrono::microseconds(50));
        }
    }

    cudaStream_t on(Queue queue) {
        if (queue == Queue::work) return stream_;
        // Not one that waits for the legacy default stream: that may be the other.
        if (!copies_) check(cudaStreamCreateWithFlags(&copies_, cudaStreamNonBlocking), "make a stream");
        return copies_;
    }

    // What was put on `other` before now precedes what follows here.
    void follow(void* other) {
        if (other == stream_) return;
        check_stream(static_cast<cudaStream_t>(other));
        cudaEvent_t event;
        check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "make an event");
        const cudaError_t recorded = cudaEventRecord(event, static_cast<cudaStream_t>(other));
        const cudaError_t waiting = recorded == cudaSuccess ? cudaStreamWaitEvent(stream_, event, 0) : recorded;
        cudaEventDestroy(event);
        if (waiting != cudaSuccess) fail(waiting, "wait for the stream that an array came with");
    }

    Visit visit_;
    int device_;
    cudaStream_t stream_, copies_ = nullptr;
    Poll poll_;
    std::vector<Event> pauses_;
    std::vector<DeviceMemory> lasting_;
    std::size_t paused_ = 0;
    cudaMemPool_t pool_ = nullptr;
    bool busy_ = false;  // work was begun that no `fetch` has waited for
};

// compute(machine, room) at a place: see with_memory.
template <class Room, class Compute>
auto at_place(const Place& place, const Room& room, const Compute& compute) {
    return with_memory([&] { return Machine(place); }, room, compute);
}

}  // namespace simkit::cuda
