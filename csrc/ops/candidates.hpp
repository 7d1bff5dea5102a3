// CKA damage of non-linear kernels: the sums that CKA(all units, kept units less one candidate) needs, for many
// candidates in one pass over the pairs of samples.
//
// z [p, n], in units that give f no length but the polynomial's, holds features by rows, unit u being rows offsets[u]
// .. offsets[u + 1]. For candidate k
//   q_ij = sum over kept rows c not in k of (z_ci - z_cj)^2   (or of z_ci z_cj for the polynomial kernel)
//   K_ij = f(q_ij) - levels_i - levels_j,   f(q) = 2^-q (RBF), 2^-sqrt(q) (Laplacian) or (length q + coef0)^degree
//   (polynomial); a custom f is given the sums of products and of squares, both
//   cross = sum K_ij L_ij,  squares = sum K_ij^2,  rows_i = sum_j K_ij,
// over i != j, and over i = j too where the estimator is biased. L is f of all units' q less centre_i + centre_j: what
// is left of it once it is centred, so that centring K changes nothing in `cross`. `levels` are any numbers: they
// change no centred sum, but keep them from cancelling where f_ij is near levels_i + levels_j. f of distances is formed
// less 1, and keeps the digits of what it lacks of it, unless it is small, far from 1: then it keeps all of its own. So
// `levels` are of f - 1, or, `small`, of f; `centre` and `small_centre` alike.
//
// T: distances, kernel values and sums over eight rows of a tile (128 pairs a lane) and its columns; float64:
// everything else. Candidate -1 removes nothing. No n x n matrix of candidates is stored; L may be given, packed, or is
// formed again. Derived from Gretton et al. 2005 and Song et al. 2012 (eq. 5).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/matrix_view.hpp"
#include "core/place.hpp"
#include "core/tiles.hpp"

namespace simkit {

template <class T>
struct CandidateProblem {
    const T* z;  // [p, n]
    std::int64_t n;
    std::vector<std::int64_t> offsets;     // [u + 1]
    std::vector<std::int64_t> kept;        // units
    std::vector<std::int64_t> candidates;  // units of `kept`, or -1
    Kernel kernel;
    double length, coef0;
    int degree;
    KernelFunction function;  // of a custom kernel, whose z is float64 and as it was given; else null
    bool debiased;
    const double* levels;  // [n], or [candidates, n]
    bool levels_each;      // the latter
    bool small;
    const double* centre;  // [n], or null: there is no L, and sums with it mean nothing
    bool small_centre;
    const T* packed;  // L of packed_size(n) elements, or null
    int threads;
};

struct CandidateSums {
    std::vector<double> cross, squares;  // [candidates]
    std::vector<double> rows;            // [candidates, n]
};

std::int64_t packed_size(std::int64_t n);

// Throws KernelOutOfRange (ops/hsic.hpp; of block 0) where a custom kernel is NaN or too large, as does pack_centred.
template <class T>
CandidateSums candidate_sums(const CandidateProblem<T>& problem, const Poll& poll);

// L of all units, packed for `candidate_sums`.
template <class T>
void pack_centred(const CandidateProblem<T>& problem, const Poll& poll, T* out);

// On a device: z, L and all workspace stay there from one call to the next.
namespace cuda {

// z [columns, n] = (x - shift) scale / unit of columns of x [n, p], which lies on the device.
struct UnitProblem {
    MatrixView x;
    std::vector<std::int64_t> columns;
    const double* shift;  // [columns] or null: about the median of each column
    double scale, unit;   // a power of two; any other factor
};

struct DeviceUnits {
    Place place;
    std::int64_t features, samples;
    bool wide;  // float64, or float32
    DeviceMemory z;
};

DeviceUnits form_units(const Place& place, const UnitProblem& problem, bool wide);

struct CandidateTotals {
    std::vector<double> cross, squares, totals, row_squares;  // [candidates], the last two of rows: sum, sum of squares
    std::vector<double> rows;                                 // [candidates, n], where they were asked for

    std::vector<double>& list(std::int64_t k) {
        return k == 0 ? cross : k == 1 ? squares : k == 2 ? totals : row_squares;
    }
};

struct CandidateLevels {
    const double* values;  // [n], or, each, [candidates, n]
    bool each, small;
};

struct CandidateRoom {
    std::int64_t candidates;  // of a call, at most at once
    std::int64_t packed;      // bytes that L may take; it is formed again for every call where it takes more
    std::int64_t bytes;       // of workspace, about
};

class HeldCandidates {
  public:
    virtual ~HeldCandidates() = default;
    virtual CandidateTotals sums(const std::vector<std::int64_t>& kept, const std::vector<std::int64_t>& candidates,
                                 const CandidateLevels& levels, bool rows) = 0;
    virtual std::int64_t packed_bytes() const = 0;
};

// z, which stays the caller's, lies on the device. Of a problem it takes neither kept, candidates, levels, packed nor
// threads. The polynomial kernel needs float64.
template <class T>
std::unique_ptr<HeldCandidates> hold_candidates(const Place& place, const CandidateProblem<T>& problem,
                                                const CandidateRoom& room);

}  // namespace cuda

}  // namespace simkit
