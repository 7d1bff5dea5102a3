// The moments of a stream on the emulator, as C functions for ctypes: the drivers that the device runs.
#include <cstring>
#include <memory>

#include "cuda/largest_entries.hpp"
#include "cuda/moments.hpp"
#include "emulated.hpp"

using namespace simkit;
using namespace emulated;
using emulator::Machine;

namespace {

// Memory that starts out as NaN, with ends that are watched.
struct Moments {
    static constexpr std::size_t kGuard = 256;
    cuda::MomentLayout layout;
    std::unique_ptr<unsigned char[]> held;
    int order;

    Moments(cuda::MomentLayout layout_, int order_)
        : layout(std::move(layout_)), held(new unsigned char[size()]), order(order_) {
        std::memset(held.get(), 0xff, size());
    }
    std::size_t size() const { return 2 * kGuard + static_cast<std::size_t>(layout.bytes()); }
    std::byte* data() const { return reinterpret_cast<std::byte*>(held.get()) + kGuard; }

    template <class Call>
    int work(Call&& call) {
        return guarded([&] {
            {
                Machine machine(static_cast<emulator::Order>(order));
                cuda::MomentWork<Machine> work(machine, layout, data());
                call(work);
            }
            for (std::size_t k = 0; k < kGuard; ++k)
                if (held[k] != 0xff || held[size() - 1 - k] != 0xff)
                    throw std::runtime_error("a program wrote outside of the memory of the moments");
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
        Machine machine(static_cast<emulator::Order>(order));
        const auto all = cuda::largest_entries(machine, views_of(x, count));
        std::copy(all.begin(), all.end(), found);
    });
}

int moments_new(const Index* widths, Index left, Index right, Index blocks, int order, void** made, Index* sizes) {
    return guarded([&] {
        cuda::MomentLayout layout({widths, widths + left}, {widths + left, widths + left + right}, blocks);
        auto moments = std::make_unique<Moments>(std::move(layout), order);
        if (moments->work([](auto& work) { work.send_tables(); })) throw std::runtime_error(message);
        const cuda::MomentLayout& of = moments->layout;
        const Index told[] = {of.columns(), of.layers(), of.room(), of.count()};
        std::copy_n(told, 4, sizes);
        *made = moments.release();
    });
}

void moments_delete(void* moments) { delete static_cast<Moments*>(moments); }

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
    return static_cast<Moments*>(moments)->work([&](auto& work) { work.add(first, rows); });
}

}  // extern "C"
