// In place of csrc/cuda/launch.cuh: the threads of a program one after another, when the stream comes to it.
#pragma once

#include <cuda_runtime_api.h>

namespace simkit::cuda {

template <class P>
cudaError_t launch(const P& program, unsigned blocks, cudaStream_t stream) {
    return simulated::launch(stream, [program, blocks](emulator::Order order, std::mt19937& random) {
        emulator::run_threads(program, blocks, order, random);
    });
}

}  // namespace simkit::cuda
