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
        Machine machine(static_cast<emulator::Order>(order));
        const NearestProblem problem{
            view_of(*x), norms, last, residues, same_sign != 0, balance, {rows, rows + a}, {others, others + b}, k};
        cuda::NearestSearch<Machine> search(machine, problem);
        const NearestRows found = search.find(room);
        *undecided = search.undecided();
        std::copy(found.row.begin(), found.row.end(), row);
        std::copy(found.cosine.begin(), found.cosine.end(), cosine);
        std::copy(found.score.begin(), found.score.end(), score);
    });
}
