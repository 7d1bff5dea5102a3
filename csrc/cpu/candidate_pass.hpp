// The pass of one candidate over a few rows of a tile: kernel values and the sums that CKA needs of them.
#pragma once

#include <cstdint>
#include <vector>

namespace simkit {

constexpr std::int64_t kCandidateTile = 256;  // samples
constexpr std::int64_t kCandidateRows = 8;    // rows of a tile that stay in the level-1 cache while candidates pass

template <class T>
struct Strip {
    std::int64_t rows, count;  // row r has count + r * longer columns: longer = 1 on the diagonal
    std::int64_t longer;
    std::int64_t width;  // columns that may be read, whether they count or not
    const T* base;       // [rows], leading dimension kCandidateTile: what the form says
    const T* less;       // the same
    const T* own;        // [rows] the candidate's last feature at the rows' samples
    const T* column;     // and at the columns'
    const T* centred;    // [rows], leading dimension ld: L
    std::int64_t ld;
    T* columns;        // += K
    double* row_sums;  // [rows] += K
    double cross, squares;
};

// d = own - column; less: what is taken off.
enum class Form {
    near,          // K = base 2^(d^2) less its levels, `less` being base less them; d^2 <= 1/4
    middle,        // the same, d^2 <= 1/2
    far,           // the same, d^2 <= 1
    fused,         // K = 2^(d^2 - base) - 1 - less
    fused_small,   // K = 2^(d^2 - base) - less
    scaled,        // K = 2^-base - 1 - less
    scaled_small,  // K = 2^-base - less
    ready          // K = base - less
};
constexpr int kForms = 8;

template <class T>
void candidate_pass(Form form, Strip<T>& strip);

// base [count], q -> 2^-q; less -> 2^-q - levels where small, 2^-q - 1 - levels else.
template <class T>
void powers(bool small, const T* levels, T* base, T* less, std::int64_t count);

// Features of z [p, n] between `rows` samples from i0 on and samples from j0 on.
template <class T>
struct PairFeatures {
    const T* z;
    std::int64_t n;
    const std::vector<std::int64_t>& features;
    std::int64_t i0, rows, j0;
};

// q [rows, count], leading dimension kCandidateTile: sum over the features of (own - column)^2, or of own column.
template <class T>
void feature_sums(bool distance, const PairFeatures<T>& pairs, std::int64_t count, T* q);

}  // namespace simkit
