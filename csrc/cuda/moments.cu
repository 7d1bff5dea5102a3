#include <mutex>

#include "cuda/device.cuh"
#include "cuda/moments.hpp"

namespace simkit::cuda {

// What a call put on its stream precedes what the next one does, whichever stream that comes with.
struct DeviceMoments::Memory {
    MomentLayout layout;
    int device;
    bool tensor;
    void* own;  // stream
    DeviceMemory data;
    cudaEvent_t done = nullptr;

    Memory(int device_, MomentLayout layout_, bool tensor_)
        : layout(std::move(layout_)), device(device_), tensor(tensor_), own(own_stream(device)) {
        const Place place{device, own, {}};
        data = moments_there([&] { return Machine(place); }, layout);
        const Visit visit(device);
        check(cudaEventCreateWithFlags(&done, cudaEventDisableTiming), "make an event");
    }
    // What was left on the last caller's stream comes before the memory is freed, which nobody waits for.
    ~Memory() {
        cudaStreamWaitEvent(static_cast<cudaStream_t>(own), done, 0);
        cudaEventDestroy(done);
    }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;

    template <class Call>
    void work(const Place& place, bool waits, Call&& call) {
        const std::lock_guard<std::mutex> alone(mutex_);  // calls share the sums
        at_place(place, Index{0}, [&](Machine& machine, Index) {
            check(cudaStreamWaitEvent(machine.stream(), done, 0), "wait for the moments so far");
            MomentWork<Machine> work(machine, layout, data.get());
            call(work);
            check(cudaEventRecord(done, machine.stream()), "record an event");
            // Another stream than this one may be about to write to what is being read.
            if (!waits && place.before.empty()) machine.leave();
        });
    }

  private:
    std::mutex mutex_;
};

DeviceMoments::DeviceMoments(int device, const std::vector<std::int64_t>& left, const std::vector<std::int64_t>& right,
                             std::int64_t blocks, bool tensor)
    : memory_(std::make_unique<Memory>(device, MomentLayout(left, right, blocks), tensor)) {}
DeviceMoments::~DeviceMoments() = default;

int DeviceMoments::device() const { return memory_->device; }
std::int64_t DeviceMoments::columns() const { return memory_->layout.columns(); }
std::int64_t DeviceMoments::layers() const { return memory_->layout.layers(); }
std::int64_t DeviceMoments::room() const { return memory_->layout.room(); }
std::int64_t DeviceMoments::count() const { return memory_->layout.count(); }

void DeviceMoments::set(const Place& place, const double* shift, const double* scale, const double* numbers) {
    memory_->work(place, true, [&](auto& work) { work.set(shift, scale, numbers); });
}

void DeviceMoments::numbers(const Place& place, double* numbers) {
    memory_->work(place, true, [&](auto& work) { work.numbers(numbers); });
}

void DeviceMoments::keep(const Place& place, const std::vector<MatrixView>& layers, std::int64_t first,
                         std::int64_t count, std::int64_t at) {
    memory_->work(place, true, [&](auto& work) { work.keep(layers, first, count, at); });
}

void DeviceMoments::set_stage(const Place& place, const double* rows, std::int64_t count) {
    memory_->work(place, true, [&](auto& work) { work.set_stage(rows, count); });
}

void DeviceMoments::stage(const Place& place, double* rows, std::int64_t count) {
    memory_->work(place, true, [&](auto& work) { work.stage(rows, count); });
}

void DeviceMoments::rows(const Place& place, const std::vector<MatrixView>& layers, std::int64_t first,
                         std::int64_t rows, bool staged, double* norms) {
    memory_->work(place, true, [&](auto& work) { work.rows(layers, first, rows, staged, norms); });
}

void DeviceMoments::take(const Place& place, const std::vector<std::int64_t>& rows, double* taken) {
    memory_->work(place, true, [&](auto& work) { work.take(rows, taken); });
}

void DeviceMoments::put(const Place& place, const double* z, const double* norms, std::int64_t count) {
    memory_->work(place, true, [&](auto& work) { work.put(z, norms, count); });
}

void DeviceMoments::add(const Place& place, std::int64_t first, std::int64_t rows) {
    memory_->work(place, false, [&](auto& work) { work.add(first, rows, memory_->tensor); });
}

}  // namespace simkit::cuda
