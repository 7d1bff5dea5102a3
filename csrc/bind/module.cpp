#include <pybind11/pybind11.h>

#include "bind/arrays.hpp"
#include "core/blas.hpp"

PYBIND11_MODULE(_core, m) {
    m.attr("without_cuda") = SIMKIT_WITHOUT_CUDA;  // why this build has no CUDA code; empty where it has
    simkit::use_one_blas_thread();
    simkit::bind_hsic(m);
    simkit::bind_adjacency(m);
    simkit::bind_candidates(m);
    simkit::bind_cover(m);
    simkit::bind_columns(m);
    simkit::bind_greedy(m);
    simkit::bind_moments(m);
}
