// What the emulated programs share: errors as messages, and matrices as ctypes passes them.
#pragma once

#include <cstring>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#include "cuda/placed.hpp"
#include "emulator.hpp"

namespace emulated {

using simkit::cuda::Index;

inline std::string message;

// What Python raises of an error, as pybind11 and the binding's translator decide it (csrc/bind/cuda_arrays.cpp).
enum Raised { nothing, runtime_error, value_error, memory_error };

inline Raised raised_of(const std::exception& error) {
    if (dynamic_cast<const simkit::cuda::OutOfMemory*>(&error)) return memory_error;
    if (dynamic_cast<const std::bad_alloc*>(&error)) return memory_error;
    const bool value = dynamic_cast<const std::invalid_argument*>(&error) ||
                       dynamic_cast<const std::domain_error*>(&error) || dynamic_cast<const std::length_error*>(&error);
    return value ? value_error : runtime_error;
}

template <class Call>
int guarded(Call&& call) {
    try {
        call();
        if (std::exchange(emulator::trial.spoiled, false))
            throw std::runtime_error("a program wrote outside of memory that outlived its machine");
        return nothing;
    } catch (const std::exception& error) {
        message = error.what();
        return raised_of(error);
    }
}

inline emulator::Machine machine_of(int order) {
    ++emulator::trial.machines;
    return emulator::Machine(static_cast<emulator::Order>(order), emulator::Pace::late, emulator::trial.memory);
}

// compute(machine, room) as on a device: tried again where memory is full.
template <class Compute>
auto on_machine(int order, Index room, const Compute& compute) {
    return simkit::cuda::with_memory([order] { return machine_of(order); }, room, compute);
}
template <class Compute>
auto on_machine(int order, const Compute& compute) {
    return on_machine(order, 0, [&](emulator::Machine& machine, Index) { return compute(machine); });
}

// What stays on a device, for the caller to look at.
template <class T>
void copy_out(const simkit::cuda::DeviceMemory& from, Index count, T* to) {
    std::memcpy(to, from.get(), static_cast<std::size_t>(count) * sizeof(T));
}

struct Matrix {
    const void* data;
    Index rows, cols, row_stride, col_stride;
    int dtype;  // of Dtype
    const double* shift;
    const double* row_scale;
    double scale;
    int kernel;  // of Kernel
    double length, coef0;
    int degree;
};

inline simkit::MatrixView view_of(const Matrix& x) {
    return {static_cast<const std::byte*>(x.data), x.rows, x.cols, x.row_stride, x.col_stride,
            static_cast<simkit::Dtype>(x.dtype),   false};
}

inline simkit::BlockView block_of(const Matrix& x) {
    return {view_of(x), x.shift, x.row_scale, x.scale, static_cast<simkit::Kernel>(x.kernel),
            x.length,   x.coef0, x.degree,    nullptr};
}

inline bool narrow(const Matrix& x) { return x.dtype != static_cast<int>(simkit::Dtype::f64) && !x.row_scale; }

}  // namespace emulated

extern "C" const char* last_error() { return emulated::message.c_str(); }
extern "C" simkit::cuda::Index fetched_bytes() { return emulator::fetched_bytes; }

// Of all machines to come: bytes that each has (0: plenty), and the one allocation that fails (0: none).
extern "C" void set_memory(simkit::cuda::Index memory, simkit::cuda::Index refused) {
    emulator::trial = {};
    if (memory > 0) emulator::trial.memory = memory;
    emulator::trial.refused = refused;
}
// Since then.
extern "C" simkit::cuda::Index machines() { return emulator::trial.machines; }
extern "C" simkit::cuda::Index allocations() { return emulator::trial.allocations; }
extern "C" void forget_programs() { emulator::ran_by_name.clear(); }
extern "C" const char* programs_run() {
    static std::string names;
    names.clear();
    for (const std::string& name : emulator::ran_by_name) names += name + " ";
    return names.c_str();
}
