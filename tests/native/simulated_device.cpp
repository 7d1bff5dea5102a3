// Devices that are none: the runtime that simulated/cuda_runtime_api.h declares, and what tests ask of the driver.
//
// What is put on a stream is done when somebody waits for it, at once, or by chance (Pace), as far as the order of
// streams, events and the legacy default stream allow. Memory holds NaN until the stream that it was allocated on comes
// to it, and again from when it is freed on, when nobody may write to it; its ends are watched. Threads of a block run
// as emulator::run_threads says. What a device refuses is an error here: handles that are gone, a launch on a stream or
// an event recorded on one of another device than the current, copies beyond an allocation, empty allocations, memory
// freed twice. An error while something runs ends all that follows, as there. Not simulated: speed, rounding of pools,
// kernels at the same time.
//
// Environment: SIMULATED_PACE, SIMULATED_ORDER by number (Pace, Order), SIMULATED_CAPABILITY (80), SIMULATED_POOLS (1).

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

using emulator::Index;
using emulator::Order;

struct CUstream_st;

namespace {

// So many tasks of a stream.
struct Place {
    CUstream_st* stream = nullptr;
    std::size_t count = 0;
};

struct Task {
    std::function<void()> run;
    std::vector<Place> after;  // what must be done before
};

}  // namespace

struct CUstream_st {
    int device;
    bool blocking;  // waits for the legacy default stream, which waits for it
    std::deque<Task> tasks = {};
    std::size_t done = 0;
    Place end() { return {this, done + tasks.size()}; }
};

struct CUevent_st {
    int device;
    Place recorded = {};
};

struct CUmemPool_st {
    int device;
    Index kept = 0, used = 0, idle = 0;  // bytes: that may stay idle, in allocations, idle
};

namespace {

enum class Pace { late, eager, chance };

struct Allocation {
    Allocation(int device_, Index bytes_, cudaMemPool_t pool_)
        : device(device_), bytes(bytes_), pool(pool_), memory(bytes_) {}
    void fill() { std::memset(memory.data(), 0xff, static_cast<std::size_t>(bytes)); }
    // Another NaN, a signalling one: who adds to it leaves a quiet one.
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
thread_local int current = 0;
thread_local cudaError_t last = cudaSuccess;

int said(const char* name, int otherwise) {
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
            failure = error.what();
            std::fprintf(stderr, "simulated device: %s\n", error.what());
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

    Held find(const void* at, std::size_t bytes) {
        const auto* first = static_cast<const std::byte*>(at);
        auto found = allocated.upper_bound(first);
        if (found == allocated.begin()) return nullptr;
        --found;
        const Held& held = found->second;
        return first + bytes <= held->memory.data() + held->bytes ? held : nullptr;
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
            if (!held->untouched() && failure.empty()) failure = "memory was written to after it was freed";
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

World& world() {
    static World* const only = [] {  // never destroyed: Python's last objects may come after it
        std::atexit([] {
            world().close();
            if (world().failure.empty()) return;
            std::fprintf(stderr, "simulated device: %s\n", world().failure.c_str());
            std::_Exit(99);
        });
        return new World;
    }();
    return *only;
}

cudaError_t told(cudaError_t error) {
    if (error != cudaSuccess) last = error;
    return error;
}

// act(world), alone, unless what ran before has failed.
template <class Act>
cudaError_t alone(const Act& act) {
    World& of = world();
    const std::lock_guard<std::recursive_mutex> lock(of.mutex);
    if (!of.failure.empty()) return told(cudaErrorLaunchFailure);
    const cudaError_t error = act(of);
    return told(of.failure.empty() ? error : cudaErrorLaunchFailure);
}

bool is_device(int device) { return device >= 0 && device < kDevices; }

}  // namespace

const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess:
            return "no error";
        case cudaErrorInvalidValue:
            return "invalid argument";
        case cudaErrorMemoryAllocation:
            return "out of memory";
        case cudaErrorInsufficientDriver:
            return "CUDA driver version is insufficient for CUDA runtime version";
        case cudaErrorNoDevice:
            return "no CUDA-capable device is detected";
        case cudaErrorInvalidDevice:
            return "invalid device ordinal";
        case cudaErrorInvalidResourceHandle:
            return "invalid resource handle";
        case cudaErrorNotReady:
            return "device not ready";
        case cudaErrorLaunchFailure:
            return world().failure.c_str();
    }
    return "unknown error";
}

cudaError_t cudaGetLastError() { return std::exchange(last, cudaSuccess); }

cudaError_t cudaDriverGetVersion(int* version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
    *count = kDevices;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
    *device = current;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
    if (!is_device(device)) return told(cudaErrorInvalidDevice);
    current = device;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
    if (!is_device(device)) return told(cudaErrorInvalidDevice);
    const World& of = world();
    *value = attribute == cudaDevAttrMemoryPoolsSupported     ? of.pools
             : attribute == cudaDevAttrComputeCapabilityMajor ? of.capability / 10
                                                              : of.capability % 10;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
    if (!is_device(device)) return told(cudaErrorInvalidDevice);
    *properties = {"a simulated device", world().capability / 10, world().capability % 10,
                   static_cast<std::size_t>(world().total)};
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
    return alone([&](World& of) {
        *total = static_cast<std::size_t>(of.total);
        *free = static_cast<std::size_t>(of.total - of.devices[current].used);
        return cudaSuccess;
    });
}
cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps* properties) {
    return alone([&](World& of) {
        if (!of.pools || properties->allocType != cudaMemAllocationTypePinned ||
            properties->location.type != cudaMemLocationTypeDevice || !is_device(properties->location.id))
            return cudaErrorInvalidValue;
        *pool = new CUmemPool_st{properties->location.id};
        return cudaSuccess;
    });
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void* value) {
    return alone([&](World&) {
        if (attribute != cudaMemPoolAttrReleaseThreshold) return cudaErrorInvalidValue;
        pool->kept = static_cast<Index>(*static_cast<std::uint64_t*>(value));
        return cudaSuccess;
    });
}
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void* value) {
    return alone([&](World&) {
        const bool used = attribute == cudaMemPoolAttrUsedMemCurrent;
        *static_cast<std::uint64_t*>(value) = static_cast<std::uint64_t>(pool->used + (used ? 0 : pool->idle));
        return cudaSuccess;
    });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
    return alone([&](World& of) {
        *stream = new CUstream_st{current, !(flags & cudaStreamNonBlocking)};
        of.streams.insert(*stream);
        of.made.push_back(*stream);
        return cudaSuccess;
    });
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    return alone([&](World& of) { return of.streams.erase(stream) ? cudaSuccess : cudaErrorInvalidResourceHandle; });
}
cudaError_t cudaStreamGetFlags(cudaStream_t handle, unsigned* flags) {
    return alone([&](World& of) {
        const CUstream_st* stream = of.stream_of(handle);
        if (!stream) return cudaErrorInvalidResourceHandle;
        *flags = stream->blocking ? 0 : cudaStreamNonBlocking;
        return cudaSuccess;
    });
}
cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
    return alone([&](World& of) {
        CUstream_st* stream = of.stream_of(handle);
        if (!stream) return cudaErrorInvalidResourceHandle;
        of.reach(stream->end());
        return cudaSuccess;
    });
}
cudaError_t cudaStreamQuery(cudaStream_t handle) {
    return alone([&](World& of) {
        CUstream_st* stream = of.stream_of(handle);
        if (!stream) return cudaErrorInvalidResourceHandle;
        return of.peek(stream->end()) ? cudaSuccess : cudaErrorNotReady;
    });
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
    return alone([&](World& of) {
        if (!of.events.contains(event)) return cudaErrorInvalidResourceHandle;
        return flags ? cudaErrorInvalidValue : of.put(stream, {}, event->recorded);
    });
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    return alone([&](World& of) {
        *event = new CUevent_st{current};
        of.events.insert(*event);
        return cudaSuccess;
    });
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    return alone([&](World& of) {
        if (!of.events.erase(event)) return cudaErrorInvalidResourceHandle;
        delete event;
        return cudaSuccess;
    });
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
    return alone([&](World& of) {
        CUstream_st* stream = of.stream_of(handle);
        if (!stream || !of.events.contains(event) || event->device != stream->device)
            return cudaErrorInvalidResourceHandle;
        const cudaError_t error = of.put(handle, {});  // a task of its own, so that the default stream waits
        event->recorded = stream->end();
        return error;
    });
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
    return alone([&](World& of) {
        if (!of.events.contains(event)) return cudaErrorInvalidResourceHandle;
        return of.peek(event->recorded) ? cudaSuccess : cudaErrorNotReady;
    });
}

cudaError_t cudaMalloc(void** at, std::size_t bytes) {
    return alone([&](World& of) {
        Held held;
        const cudaError_t error = of.allocate(current, bytes, at, held);
        if (held) held->there = true;
        return error;
    });
}
cudaError_t cudaMallocFromPoolAsync(void** at, std::size_t bytes, cudaMemPool_t pool, cudaStream_t handle) {
    return alone([&](World& of) {
        const CUstream_st* stream = of.stream_of(handle);
        if (!stream || stream->device != pool->device) return cudaErrorInvalidResourceHandle;
        Held held;
        const cudaError_t error = of.allocate(pool->device, bytes, at, held, pool);
        if (error != cudaSuccess) return error;
        return of.put(handle, [held] {
            held->there = true;
            held->fill();
        });
    });
}
cudaError_t cudaFree(void* at) {
    return alone([&](World& of) {
        if (!at) return cudaSuccess;
        const Held held = of.release(at);
        if (!held) return cudaErrorInvalidValue;
        of.reach_all(held->device);
        of.forget(held);
        return cudaSuccess;
    });
}
cudaError_t cudaFreeAsync(void* at, cudaStream_t stream) {
    return alone([&](World& of) {
        if (!of.stream_of(stream)) return cudaErrorInvalidResourceHandle;
        const Held held = of.release(at);
        if (held && !held->pool) return cudaErrorInvalidValue;
        return held ? of.put(stream, [&of, held] { of.forget(held); }) : cudaErrorInvalidValue;
    });
}
cudaError_t cudaHostAlloc(void** at, std::size_t bytes, unsigned) {
    return alone([&](World& of) {
        Held held;
        const cudaError_t error = of.allocate(Allocation::kPinned, bytes, at, held);
        if (held) held->there = true;
        return error;
    });
}
cudaError_t cudaFreeHost(void* at) {
    return alone([&](World& of) {
        const Held held = of.release(at);
        if (!held) return cudaErrorInvalidValue;
        of.forget(held);
        return cudaSuccess;
    });
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* at) {
    return alone([&](World& of) {
        const Held held = of.find(at, 1);
        *attributes = {!held              ? cudaMemoryTypeUnregistered
                       : held->device < 0 ? cudaMemoryTypeHost
                                          : cudaMemoryTypeDevice,
                       held ? held->device : -2};
        return cudaSuccess;
    });
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    return alone([&](World& of) {
        const Held target = of.find(to, bytes), source = of.find(from, bytes);
        const bool to_device = kind != cudaMemcpyDeviceToHost, from_device = kind != cudaMemcpyHostToDevice;
        if (to_device != (target && target->device >= 0) || from_device != (source && source->device >= 0))
            return cudaErrorInvalidValue;
        return of.put(stream, [=] {
            for (const Held& held : {target, source})
                if (held && !held->there) throw std::runtime_error("a copy of memory that is not there");
            std::memcpy(to, from, bytes);
        });
    });
}
cudaError_t cudaMemsetAsync(void* at, int value, std::size_t bytes, cudaStream_t stream) {
    return alone([&](World& of) {
        const Held held = of.find(at, bytes);
        if (!held || held->device < 0) return cudaErrorInvalidValue;
        return of.put(stream, [=] {
            if (!held->there) throw std::runtime_error("memory that is not there is cleared");
            std::memset(at, value, bytes);
        });
    });
}

cudaError_t simulated::launch(cudaStream_t handle, Kernel kernel) {
    return alone([&](World& of) {
        const CUstream_st* stream = of.stream_of(handle);
        if (!stream || stream->device != current) return cudaErrorInvalidResourceHandle;
        return of.put(handle, [&of, kernel = std::move(kernel)] { kernel(of.order, of.random); });
    });
}

// The driver's, as tests call them.
#pragma GCC visibility push(default)
extern "C" {

int cuInit(unsigned) { return 0; }
int cuDevicePrimaryCtxRetain(void** context, int device) {
    *context = reinterpret_cast<void*>(static_cast<std::intptr_t>(device + 1));
    return 0;
}
int cuCtxSetCurrent(void* context) {
    return cudaSetDevice(static_cast<int>(reinterpret_cast<std::intptr_t>(context)) - 1);
}
int cuMemAlloc_v2(std::uint64_t* at, std::size_t bytes) {
    void* found = nullptr;
    const int error = cudaMalloc(&found, bytes);
    *at = reinterpret_cast<std::uint64_t>(found);
    return error;
}
int cuMemFree_v2(std::uint64_t at) { return cudaFree(reinterpret_cast<void*>(at)); }
int cuMemcpyHtoD_v2(std::uint64_t to, const void* from, std::size_t bytes) {
    const int error = cudaMemcpyAsync(reinterpret_cast<void*>(to), from, bytes, cudaMemcpyHostToDevice, nullptr);
    return error ? error : cudaStreamSynchronize(nullptr);
}
int cuMemcpyDtoH_v2(void* to, std::uint64_t from, std::size_t bytes) {
    const int error = cudaMemcpyAsync(to, reinterpret_cast<void*>(from), bytes, cudaMemcpyDeviceToHost, nullptr);
    return error ? error : cudaStreamSynchronize(nullptr);
}
int cuMemcpyDtoDAsync_v2(std::uint64_t to, std::uint64_t from, std::size_t bytes, cudaStream_t stream) {
    return cudaMemcpyAsync(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes, cudaMemcpyDeviceToDevice,
                           stream);
}
int cuMemsetD8Async(std::uint64_t at, unsigned char value, std::size_t bytes, cudaStream_t stream) {
    return cudaMemsetAsync(reinterpret_cast<void*>(at), value, bytes, stream);
}
int cuStreamCreate(cudaStream_t* stream, unsigned flags) { return cudaStreamCreateWithFlags(stream, flags); }
int cuStreamDestroy_v2(cudaStream_t stream) { return cudaStreamDestroy(stream); }
int cuStreamQuery(cudaStream_t stream) { return cudaStreamQuery(stream); }
int cuStreamSynchronize(cudaStream_t stream) { return cudaStreamSynchronize(stream); }

}  // extern "C"
#pragma GCC visibility pop
