// The moments of a stream on the emulator, as C functions for ctypes: the drivers that the device runs.
#include <memory>

#include "cuda/largest_entries.hpp"
#include "cuda/moments.hpp"
#include "emulated.hpp"

using namespace simkit;
using namespace emulated;
using emulator::Machine;

namespace {

struct Moments {
    cuda::MomentLayout layout;
    bool tensor;
    int order;
    cuda::DeviceMemory data;

    Moments(cuda::MomentLayout layout_, bool tensor_, int order_)
        : layout(std::move(layout_)),
          tensor(tensor_),
          order(order_),
          data(cuda::moments_there([=] { return machine_of(order_); }, layout)) {}

    template <class Call>
    int work(const Call& call) {
        return guarded([&] {
            on_machine(order, [&](Machine& machine) {
                cuda::MomentWork<Machine> work(machine, layout, data.get());
                call(work);
            });
        });
    }
};

std::vector<MatrixView> views_of(const Matrix* x, Index count) {
    std::vector<MatrixView> views;
    for (Index l = 0; l < count; ++l) views.push_back(view_of(x[l]));
    return views;
}

}  // namespace

extern "C" {

int largest_entries(const Matrix* x, Index count, int order, double* found) {
    return guarded([&] {
        const auto all =
            on_machine(order, [&](Machine& machine) { return cuda::largest_entries(machine, views_of(x, count)); });
        std::copy(all.begin(), all.end(), found);
    });
}

int moments_new(const Index* widths, Index left, Index right, Index blocks, int tensor, int order, void** made, Index* sizes) {
    return guarded([&] {
        cuda::MomentLayout layout({widths, widths + left}, {widths + left, widths + left + right}, blocks);
        auto moments = std::make_unique<Moments>(std::move(layout), tensor != 0, order);
        const cuda::MomentLayout& of = moments->layout;
        const Index told[] = {of.columns(), of.layers(), of.room(), of.count()};
        std::copy_n(told, 4, sizes);
        *made = moments.release();
    });
}

int moments_delete(void* moments) {
    return guarded([&] { delete static_cast<Moments*>(moments); });
}

int moments_set(void* moments, const double* shift, const double* scale, const double* numbers) {
    return static_cast<Moments*>(moments)->work([&](auto& work) { work.set(shift, scale, numbers); });
}

int moments_numbers(void* moments, double* numbers) {
    return static_cast<Moments*>(moments)->work([&](auto& work) { work.numbers(numbers); });
}

int moments_keep(void* moments, const Matrix* x, Index layers, Index first, Index count, Index at) {
    const auto views = views_of(x, layers);
    return static_cast<Moments*>(moments)->work([&](auto& work) { work.keep(views, first, count, at); });
}

int moments_set_stage(void* moments, const double* rows, Index count) {
    return static_cast<Moments*>(moments)->work([&](auto& work) { work.set_stage(rows, count); });
}

int moments_stage(void* moments, double* rows, Index count) {
    return static_cast<Moments*>(moments)->work([&](auto& work) { work.stage(rows, count); });
}

int moments_rows(void* moments, const Matrix* x, Index layers, Index first, Index rows, int staged, double* norms) {
    const auto views = views_of(x, layers);
    return static_cast<Moments*>(moments)->work([&](auto& work) { work.rows(views, first, rows, staged != 0, norms); });
}

int moments_take(void* moments, const Index* rows, Index count, double* taken) {
    return static_cast<Moments*>(moments)->work([&](auto& work) { work.take({rows, rows + count}, taken); });
}

int moments_put(void* moments, const double* z, const double* norms, Index count) {
    return static_cast<Moments*>(moments)->work([&](auto& work) { work.put(z, norms, count); });
}

int moments_add(void* moments, Index first, Index rows) {
    auto& of = *static_cast<Moments*>(moments);
    return of.work([&](auto& work) { work.add(first, rows, of.tensor); });
}

}  // extern "C"
