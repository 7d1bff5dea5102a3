// One matrix, by columns: statistics and centred cross-products.
#pragma once

#include <cstdint>
#include <vector>

#include "core/matrix_view.hpp"
#include "core/place.hpp"
#include "core/tiles.hpp"

namespace simkit {

// One pass: mean [p], sum_sq_dev [p] = sum (x - mean)^2, the largest |x|, and one to four times the largest |x - mean|;
// all float64. A constant column has exactly its value as mean and 0 as deviation. With non-finite entries only their
// number and first place are filled.
struct ColumnStats {
    std::vector<double> mean, sum_sq_dev;
    double max_abs = 0.0, max_dev = 0.0;
    std::int64_t nonfinite = 0, first_row = -1, first_col = -1;
};
ColumnStats column_stats(const MatrixView& x, const double* row_scale, int threads, const Poll& poll);

// The largest |x| of each matrix; infinite where an entry is NaN or infinite.
std::vector<double> largest_entries(const std::vector<MatrixView>& matrices, int threads, const Poll& poll);

// G [p, p] = Z^T Z of the centred, scaled columns, full and symmetric, float64. block.shift holds the means.
//
// Float32 products (exact = false) round a column that holds one value many times (ReLU zeros, minus their mean) the
// same way every time. Two remedies: a column is centred only when mean^2 > kCentred var, otherwise n mu mu^T is
// subtracted in float64 afterwards and zeros stay zeros; and the diagonal comes from sum_sq_dev [p]. From 1 on a column
// that is not centred loses more by its larger sums than zeros that stay zeros save: CKA of columns of two values, 0.45
// and 1, is off by 1.2e-6 at 9, by 4e-9 at 1. Accumulators: float32 over 1024 rows at most (256 on a device without
// tensor cores), float64 across.
constexpr double kCentred = 1.0;
void column_products(const BlockView& block, const double* sum_sq_dev, bool exact, int threads, const Poll& poll,
                     double* g);

// On a device (core/place.hpp), where G stays; its entries are squared where `squared` says so. The sums go over
// other pieces, so the last bits differ; the same bits every time. With Strips, of a matrix that lies on the host, the
// same bits. tensor: products by tensor cores, which takes a device of capability 8.0; bytes: of workspace, about,
// which change no bit.
namespace cuda {
ColumnStats column_stats(const Place& place, const MatrixView& x, const double* row_scale);
ColumnStats column_stats(const Place& place, const MatrixView& x, const double* row_scale, const Strips& strips);
DeviceMemory column_products(const Place& place, const BlockView& block, const double* sum_sq_dev, bool exact,
                             bool tensor, bool squared, std::int64_t bytes);
DeviceMemory column_products(const Place& place, const BlockView& block, const double* sum_sq_dev, bool exact,
                             bool tensor, bool squared, const Strips& strips);
std::vector<double> largest_entries(const Place& place, const std::vector<MatrixView>& matrices);
}  // namespace cuda

}  // namespace simkit
