// Graphs of filters on the emulator, as C functions for ctypes: the drivers that the device runs.
#include "cuda/adjacency.hpp"
#include "cuda/components.hpp"
#include "cuda/cover.hpp"
#include "emulated.hpp"

using namespace simkit;
using namespace emulated;
using emulator::Machine;

extern "C" {

// found: whether all entries are finite, and the number of zeros; zeros [n].
int adjacency(const Matrix* x, const double* squared, Index thresholds, int order, std::uint64_t* bits,
              double* extremes, Index* found, Index* zeros) {
    return guarded([&] {
        const auto graphs =
            cuda::adjacency_there([=] { return machine_of(order); }, view_of(*x), {squared, squared + thresholds});
        const Adjacency& out = graphs.found;
        std::copy_n(graphs.bits.get(), thresholds * x->rows * words_of(x->rows), bits);
        extremes[0] = out.nearest;
        extremes[1] = out.farthest;
        found[0] = out.finite;
        found[1] = static_cast<Index>(out.zeros.size());
        std::copy(out.zeros.begin(), out.zeros.end(), zeros);
    });
}

int components(const std::uint64_t* bits, Index count, Index n, int order, Index* labels, Index* edges) {
    return guarded([&] {
        on_machine(order,
                   [&](Machine& machine) { cuda::components(machine, {bits, count, n, words_of(n)}, labels, edges); });
    });
}

// centres, packing [count, n]; sizes [count, 2]; dual [count]
int cover(const std::uint64_t* bits, Index count, Index n, int order, Index* centres, Index* packing, Index* sizes,
          double* dual) {
    return guarded([&] {
        const auto found =
            on_machine(order, [&](Machine& machine) { return cuda::covers(machine, {bits, count, n, words_of(n)}); });
        for (Index graph = 0; graph < count; ++graph) {
            const Cover& of = found[graph];
            std::copy(of.centres.begin(), of.centres.end(), centres + graph * n);
            std::copy(of.packing.begin(), of.packing.end(), packing + graph * n);
            sizes[2 * graph] = static_cast<Index>(of.centres.size());
            sizes[2 * graph + 1] = static_cast<Index>(of.packing.size());
            dual[graph] = of.dual;
        }
    });
}

}  // extern "C"
