// The one kernel, and its launch: what tests/native/simulated does otherwise.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/program.hpp"

namespace simkit::cuda {

template <class P>
__global__ void __launch_bounds__(P::kThreads, P::kResident) run_program(const __grid_constant__ P program) {
    extern __shared__ __align__(16) unsigned char memory[];
    auto& shared = *reinterpret_cast<typename P::Shared*>(memory);
    typename P::Registers registers;
    for (int k = 0; program.step(blockIdx.x, static_cast<int>(threadIdx.x), k, shared, registers); ++k) __syncthreads();
}

// Says what the launch itself says: an error that somebody else left behind is not its own.
template <class P>
cudaError_t launch(const P& program, unsigned blocks, cudaStream_t stream) {
    void* arguments[] = {const_cast<P*>(&program)};
    return cudaLaunchKernel(reinterpret_cast<const void*>(&run_program<P>), dim3(blocks), dim3(P::kThreads), arguments,
                            sizeof(typename P::Shared), stream);
}

}  // namespace simkit::cuda
