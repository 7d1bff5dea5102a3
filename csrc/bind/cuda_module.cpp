#include <pybind11/pybind11.h>

#include "bind/cuda_arrays.hpp"

PYBIND11_MODULE(_cuda, m) {
    simkit::bind_cuda_arrays(m);
    simkit::bind_cuda_candidates(m);
    simkit::bind_cuda_graphs(m);
    simkit::bind_cuda_moments(m);
    simkit::bind_cuda_greedy(m);
    simkit::bind_cuda_ops(m);
    simkit::bind_cuda_partners(m);
    simkit::bind_cuda_strips(m);
}
