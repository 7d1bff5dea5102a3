// The nearest rows on the emulator, as a C function for ctypes: the driver that the device runs.
#include "cuda/partners.hpp"
#include "emulated.hpp"

using namespace simkit;
using namespace emulated;
using emulator::Machine;

extern "C" int nearest_rows(const Matrix* x, const double* norms, const double* last, const double* residues,
                            int same_sign, double balance, const Index* rows, Index a, const Index* others, Index b,
                            Index k, Index room, int order, Index* row, double* cosine, double* score,
                            Index* undecided) {
    return guarded([&] {
        const NearestProblem problem{
            view_of(*x), norms, last, residues, same_sign != 0, balance, {rows, rows + a}, {others, others + b}, k};
        const NearestRows found = on_machine(order, room, [&](Machine& machine, Index bytes) {
            cuda::NearestSearch<Machine> search(machine, problem);
            NearestRows rows = search.find(bytes);
            *undecided = search.undecided();
            return rows;
        });
        std::copy(found.row.begin(), found.row.end(), row);
        std::copy(found.cosine.begin(), found.cosine.end(), cosine);
        std::copy(found.score.begin(), found.score.end(), score);
    });
}
