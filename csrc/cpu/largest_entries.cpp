#include <algorithm>
#include <cstring>
#include <limits>

#include "core/clones.hpp"
#include "core/pack.hpp"
#include "ops/columns.hpp"

namespace simkit {
namespace {

constexpr std::int64_t kElements = std::int64_t{1} << 16;  // of one piece of work
constexpr std::int64_t kPiece = 512;                       // columns read at a time where rows are not contiguous

// Without their sign, bits order floats by magnitude, and NaN above infinity.
template <class T, class Bits>
[[gnu::always_inline]] inline Bits largest_bits(const T* x, Bits most, std::int64_t count) {
    constexpr Bits kMagnitude = std::numeric_limits<Bits>::max();
    for (std::int64_t k = 0; k < count; ++k) {
        Bits bits;
        std::memcpy(&bits, x + k, sizeof bits);
        bits &= kMagnitude;
        most = bits > most ? bits : most;
    }
    return most;
}
SIMKIT_CLONES std::int32_t largest(const float* x, std::int32_t most, std::int64_t count) {
    return largest_bits(x, most, count);
}
SIMKIT_CLONES std::int64_t largest(const double* x, std::int64_t most, std::int64_t count) {
    return largest_bits(x, most, count);
}

template <class T, class Bits>
double value_of(Bits bits) {
    T value;
    std::memcpy(&value, &bits, sizeof value);
    return value <= std::numeric_limits<T>::max() ? value : std::numeric_limits<double>::infinity();
}

double of_rows(const MatrixView& x, std::int64_t first, std::int64_t end) {
    alignas(64) double scratch[kPiece];
    const std::int64_t piece = x.col_stride == item_size(x.dtype) && x.dtype >= Dtype::f32 ? x.cols : kPiece;
    std::int32_t single = 0;
    std::int64_t twice = 0;
    for (std::int64_t i = first; i < end; ++i)
        for (std::int64_t k = 0; k < x.cols; k += piece) {
            const std::int64_t count = std::min(piece, x.cols - k);
            if (x.dtype == Dtype::f64)
                twice = largest(double_row(x, i, k, count, scratch), twice, count);
            else
                single = largest(float_row(x, i, k, count, reinterpret_cast<float*>(scratch)), single, count);
        }
    return x.dtype == Dtype::f64 ? value_of<double>(twice) : value_of<float>(single);
}

struct Piece {
    std::size_t matrix;
    std::int64_t first, end;
    double found;
};

struct Worker {
    const std::vector<MatrixView>& matrices;
    std::vector<Piece>& pieces;
    void work(std::int64_t t) {
        Piece& piece = pieces[t];
        piece.found = of_rows(matrices[piece.matrix], piece.first, piece.end);
    }
};

}  // namespace

std::vector<double> largest_entries(const std::vector<MatrixView>& matrices, int threads, const Poll& poll) {
    std::vector<Piece> pieces;
    for (std::size_t m = 0; m < matrices.size(); ++m) {
        const std::int64_t rows = std::max<std::int64_t>(1, kElements / matrices[m].cols);
        for (std::int64_t first = 0; first < matrices[m].rows; first += rows)
            pieces.push_back({m, first, std::min(matrices[m].rows, first + rows), 0.0});
    }
    for_each_tile(static_cast<std::int64_t>(pieces.size()), threads, poll, [&] { return Worker{matrices, pieces}; });
    std::vector<double> found(matrices.size(), 0.0);
    for (const Piece& piece : pieces) found[piece.matrix] = std::max(found[piece.matrix], piece.found);
    return found;
}

}  // namespace simkit
