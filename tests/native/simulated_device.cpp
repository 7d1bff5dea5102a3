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

#include "world.hpp"

using namespace simulated;

namespace {

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
    return alone([&](World& of) {
        return of.streams.erase(stream) ? cudaSuccess
                                        : of.misuse("cudaStreamDestroy of what is no stream, or no longer");
    });
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
        if (!of.events.erase(event)) return of.misuse("cudaEventDestroy of what is no event, or no longer");
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
        if (!held || held->device < 0) return of.misuse("cudaFree of what is no memory of a device, or no longer");
        of.reach_all(held->device);
        of.forget(held);
        return cudaSuccess;
    });
}
cudaError_t cudaFreeAsync(void* at, cudaStream_t stream) {
    return alone([&](World& of) {
        if (!of.stream_of(stream)) return of.misuse("cudaFreeAsync on a stream that is gone");
        const Held held = of.release(at);
        if (!held || !held->pool) return of.misuse("cudaFreeAsync of what is no memory of a pool, or no longer");
        return of.put(stream, [&of, held] { of.forget(held); });
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
        if (!held || held->device >= 0) return of.misuse("cudaFreeHost of what is no pinned memory, or no longer");
        of.forget(held);
        return cudaSuccess;
    });
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* at) {
    return alone([&](World& of) {
        const Held held = of.find(at);
        *attributes = {!held              ? cudaMemoryTypeUnregistered
                       : held->device < 0 ? cudaMemoryTypeHost
                                          : cudaMemoryTypeDevice,
                       held ? held->device : -2};
        return cudaSuccess;
    });
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    return alone([&](World& of) {
        const Held target = of.find(to), source = of.find(from);
        const bool to_device = kind != cudaMemcpyDeviceToHost, from_device = kind != cudaMemcpyHostToDevice;
        if (to_device != (target && target->device >= 0) || from_device != (source && source->device >= 0))
            return cudaErrorInvalidValue;
        if (!of.holds(target, to, bytes) || !of.holds(source, from, bytes)) return cudaErrorInvalidValue;
        return of.put(stream, [=] {
            for (const Held& held : {target, source})
                if (held && !held->there) throw std::runtime_error("a copy of memory that is not there");
            std::memcpy(to, from, bytes);
        });
    });
}
cudaError_t cudaMemsetAsync(void* at, int value, std::size_t bytes, cudaStream_t stream) {
    return alone([&](World& of) {
        const Held held = of.find(at);
        if (!held || held->device < 0 || !of.holds(held, at, bytes)) return cudaErrorInvalidValue;
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
