// Kernels as programs: plain C++ that the device runs in parallel and the host tests run one thread after another.
//
// A program is a small struct of sizes and pointers, with
//   kThreads                threads of a block, kResident the blocks that a multiprocessor is to hold at least
//   Shared, Registers       what a block shares, and what a thread keeps from step to step
//   bool step(block, thread, k, shared, registers) const
// where all threads of a block finish step k before any begins step k + 1. Whether there is another step is what it
// returns, the same for all threads. Within a step no thread reads what another writes: the host runs the threads in
// any order, and the result must not depend on it. No atomics, no warp functions (but in cuda/tensor_product.hpp, which
// says how), sums in a fixed order: the same bits every time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#ifdef __CUDACC__
#define SIMKIT_BOTH __host__ __device__
#else
#define SIMKIT_BOTH
#endif
#ifdef __CUDA_ARCH__
#define SIMKIT_UNROLL _Pragma("unroll")
#define SIMKIT_NO_UNROLL _Pragma("unroll 1")
#define SIMKIT_UNROLL_FOUR _Pragma("unroll 4")
#else
#define SIMKIT_UNROLL
#define SIMKIT_NO_UNROLL
#define SIMKIT_UNROLL_FOUR
#endif

namespace simkit::cuda {

using Index = std::int64_t;

SIMKIT_BOTH constexpr Index smaller(Index a, Index b) { return a < b ? a : b; }
SIMKIT_BOTH constexpr Index larger(Index a, Index b) { return a > b ? a : b; }
SIMKIT_BOTH constexpr Index pieces(Index whole, Index piece) { return (whole + piece - 1) / piece; }
SIMKIT_BOTH constexpr double larger(double a, double b) { return b > a ? b : a; }  // a where b is NaN

// Host and device, whose compilers are two, hold the same bytes of what is sent from one to the other.
template <class T, std::size_t Bytes>
constexpr bool kSentAs = std::is_trivially_copyable_v<T> && std::is_standard_layout_v<T> && sizeof(T) == Bytes;

// a b, rounded: never one half of a fused multiply-add, whose other half would see more digits than the host's.
SIMKIT_BOTH inline double rounded_product(double a, double b) {
#ifdef __CUDA_ARCH__
    return __dmul_rn(a, b);
#else
    return a * b;
#endif
}

}  // namespace simkit::cuda
