#include "ops/moments.hpp"

#include <algorithm>
#include <optional>
#include <type_traits>
#include <utility>

#include "core/accumulate.hpp"
#include "core/blas.hpp"
#include "core/buffer.hpp"
#include "core/micro_kernel.hpp"
#include "core/pack.hpp"
#include "core/sliver_sums.hpp"
#include "cpu/packed_side.hpp"

namespace simkit {
namespace {

// The piece of c [., ldc] that one item adds to: columns a.. of layer i of x and b.. of layer j of y.
template <class T>
struct Piece {
    const PackedSide<T>&x, &y;
    std::int64_t rows, i, a, wa, j, b, wb;
    bool triangle;  // of a layer with itself: the upper one
    double* to;
    std::int64_t ldc;

    // The sums below the first rows of a piece, to be fetched while those are multiplied.
    Ahead sums(std::int64_t first) const {
        if (wa <= first) return {};
        return Ahead(reinterpret_cast<const std::byte*>(to + first * ldc), ldc * 8, wa - first, wb * 8);
    }
};

void add_product(const Piece<double>& piece, float*) {
    const auto& [x, y, rows, i, a, wa, j, b, wb, triangle, to, ldc] = piece;
    for (std::int64_t r = 0; r < rows; r += kDepth<double>)
        packed_product(wa, wb, std::min(kDepth<double>, rows - r), x.at(i, a, r), y.at(j, b, r), triangle, true, to,
                       ldc, piece.sums(kTallest));
    for (std::int64_t k = 1; triangle && k < wa; ++k)  // a few more than the triangle were written
        std::fill_n(to + k * ldc + std::max<std::int64_t>(0, k - kWidest), std::min<std::int64_t>(k, kWidest), 0.0);
}

// sums [count, cols] of columns first.. of a layer under weights(row, k), in float64, of so many weights at once as
// stay in registers.
template <class Weights>
void weighted_columns(std::int64_t rows, const PackedSide<float>& side, std::int64_t layer, std::int64_t first,
                      std::int64_t cols, std::int64_t count, const Weights& weights, double* sums) {
    const std::int64_t w = micro_kernel<float>().width;
    Buffer<double> held(rows * kMostWeights);
    double found[kMostWeights * kWidest];
    for (std::int64_t k0 = 0; k0 < count; k0 += kMostWeights) {
        const std::int64_t some = std::min<std::int64_t>(kMostWeights, count - k0);
        for (std::int64_t r = 0; r < rows; ++r)
            for (std::int64_t k = 0; k < some; ++k) held[r * some + k] = weights(r, k0 + k);
        for (std::int64_t c = 0; c < cols; c += w) {
            std::fill_n(found, some * w, 0.0);
            for (std::int64_t r = 0; r < rows; r += kDepth<float>)
                add_weighted(std::min(kDepth<float>, rows - r), side.at(layer, first + c, r), w, held.data() + r * some,
                             static_cast<int>(some), found);
            for (std::int64_t k = 0; k < some; ++k)
                std::copy_n(found + k * w, std::min(w, cols - c), sums + (k0 + k) * cols + c);
        }
    }
}

// Of a layer with few columns, in float64: in so few sums rounding would not average out.
void add_narrow(const Piece<float>& piece) {
    const auto& [x, y, rows, i, a, wa, j, b, wb, triangle, to, ldc] = piece;
    const bool left = x.cols(i) <= kNarrow;
    const std::int64_t count = left ? wa : wb, cols = left ? wb : wa;
    Buffer<double> sums(count * cols);
    if (left)
        weighted_columns(rows, y, j, b, wb, wa, [&](auto r, auto k) { return x.value(i, r, k); }, sums.data());
    else
        weighted_columns(rows, x, i, a, wa, wb, [&](auto r, auto k) { return y.value(j, r, k); }, sums.data());
    for (std::int64_t k = 0; k < wa; ++k)
        for (std::int64_t c = triangle ? k + 1 : 0; c < wb; ++c)
            to[k * ldc + c] += left ? sums[k * cols + c] : sums[c * cols + k];
}

// In float32 within `tile`; what lies on a diagonal was added with the columns.
void add_product(const Piece<float>& piece, float* tile) {
    const auto& [x, y, rows, i, a, wa, j, b, wb, triangle, to, ldc] = piece;
    if (std::min(x.cols(i), y.cols(j)) <= kNarrow) return add_narrow(piece);
    const std::int64_t w = micro_kernel<float>().width, ld = round_up(wb, w);
    for (std::int64_t r = 0; r < rows; r += kDepth<float>)
        packed_product(wa, wb, std::min(kDepth<float>, rows - r), x.at(i, a, r), y.at(j, b, r), triangle, r > 0, tile,
                       ld, r == 0 ? piece.sums(0) : Ahead{});
    for (std::int64_t k = 0; k < wa; ++k) {
        const std::int64_t first = triangle ? k + 1 : 0;
        add_to(tile + k * ld + first, to + k * ldc + first, wb - first);
    }
}

// c [., ldc] += x^T y for columns of layer i of x and of layer j of y; only the upper triangle of a layer with itself.
template <class T>
void product_items(std::int64_t rows, const PackedSide<T>& x, std::int64_t i, const PackedSide<T>& y, std::int64_t j,
                   double* c, std::int64_t ldc, std::vector<Item>& items) {
    const bool own = &x == &y && i == j;
    const std::int64_t tall = tile_of<T>(x.cols(i)), wide = tile_of<T>(y.cols(j));
    for (std::int64_t a = 0; a < x.cols(i); a += tall)
        for (std::int64_t b = own ? a : 0; b < y.cols(j); b += wide)
            items.emplace_back([=, &x, &y](float* tile) {
                add_product(Piece<T>{x, y, rows, i, a, std::min(tall, x.cols(i) - a), j, b,
                                     std::min(wide, y.cols(j) - b), own && a == b, c + a * ldc + b, ldc},
                            tile);
            });
}

// Rows are weighted by of[r * stride], and their sums added to sums [p].
struct Weight {
    const double* of;
    std::int64_t stride;
    double* sums;
};

// Where the sums of columns z of a side go that are not products of columns.
struct ColumnSums {
    std::vector<std::vector<Weight>> weights;  // of every layer
    std::vector<double*> diagonal;             // of the layer's z^T z
    std::vector<std::int64_t> diagonals;       // and from one number on it to the next
};

// sums [weights, cols] of columns first.. of a layer. A product with few rows.
void weighted(const PackedSide<double>& z, std::int64_t layer, std::int64_t first, std::int64_t cols,
              const std::vector<Weight>& weights, double* sums) {
    const std::int64_t w = micro_kernel<double>().width, count = static_cast<std::int64_t>(weights.size());
    const std::int64_t rows = z.rows();
    Buffer<double> packed(round_up(count, w) * std::min(kDepth<double>, rows));
    for (std::int64_t r0 = 0; r0 < rows; r0 += kDepth<double>) {
        const std::int64_t depth = std::min(kDepth<double>, rows - r0);
        for (std::int64_t k = 0; k < round_up(count, w); ++k)
            for (std::int64_t r = 0; r < depth; ++r)
                packed.data()[(k / w * depth + r) * w + k % w] =
                    k < count ? weights[k].of[(r0 + r) * weights[k].stride] : 0.0;
        packed_product(count, cols, depth, packed.data(), z.at(layer, first, r0), false, r0 > 0, sums, cols);
    }
}

void weighted(const PackedSide<float>& z, std::int64_t layer, std::int64_t first, std::int64_t cols,
              const std::vector<Weight>& weights, double* sums) {
    weighted_columns(
        z.rows(), z, layer, first, cols, static_cast<std::int64_t>(weights.size()),
        [&](std::int64_t r, std::int64_t k) { return weights[k].of[r * weights[k].stride]; }, sums);
}

// The squares of columns first.., which the products leave out.
void add_diagonal(const PackedSide<float>& z, std::int64_t layer, std::int64_t first, std::int64_t cols,
                  const ColumnSums& to) {
    const std::int64_t w = micro_kernel<float>().width, rows = z.rows();
    double squares[kTile + kWidest] = {};
    for (std::int64_t r = 0; r < rows; r += kDepth<float>)
        for (std::int64_t k = 0; k < cols; k += w)
            add_squares(std::min(kDepth<float>, rows - r), z.at(layer, first + k, r), w, squares + k);
    for (std::int64_t k = 0; k < cols; ++k) {
        to.diagonal[layer][(first + k) * to.diagonals[layer]] += squares[k];
        z.side().rounded[z.column(layer) + first + k] += squares[k];
    }
}

// Packs a side, and adds what is summed column by column while those are at hand.
template <class T>
void column_items(PackedSide<T>& z, const ColumnSums& to, std::vector<Item>& items) {
    for (std::int64_t l = 0; l < z.layers(); ++l)
        for (std::int64_t first = 0; first < z.cols(l); first += tile_of<T>(z.cols(l)))
            items.emplace_back([=, &z, &to](float*) {
                const MomentSide<T>& side = z.side();
                const std::int64_t cols = std::min(tile_of<T>(z.cols(l)), z.cols(l) - first);
                z.pack(l, first, cols);
                const std::vector<Weight>& weights = to.weights[l];
                Buffer<double> sums(static_cast<std::int64_t>(weights.size()) * cols);
                weighted(z, l, first, cols, weights, sums.data());
                for (std::size_t k = 0; k < weights.size(); ++k)
                    add_to(sums.data() + k * cols, weights[k].sums + z.column(l) + first, cols);
                if constexpr (std::is_same_v<T, float>) add_diagonal(z, l, first, cols, to);
                for (std::int64_t r = 0; first == 0 && r < z.rows(); ++r) {
                    const double a = side.a[r * side.layers() + l];
                    side.sum_a[l] += a;
                    side.sum_aa[l] += a * a;
                }
            });
}

// Of every row the probes h = z . g of all layers: h [rows, layers, kProbes].
template <class T>
void probe_items(std::int64_t rows, const MomentSide<T>& side, double* h, std::vector<Item>& items) {
    static_assert(kProbes == kSigned);
    for (std::int64_t first = 0; first < rows; first += kRows)
        items.emplace_back([=, &side](float*) {
            for (std::int64_t r = first; r < std::min(rows, first + kRows); ++r)
                for (std::int64_t l = 0; l < side.layers(); ++l) {
                    const std::int64_t at = side.offsets[l];
                    signed_sums(side.offsets[l + 1] - at, side.z + r * side.p + at, side.signs + at, side.p,
                                h + (r * side.layers() + l) * kProbes);
                }
        });
}

// Weights of the columns of each layer of a side: 1, its own a, and each a of the other side.
template <class T>
std::vector<std::vector<Weight>> weights_of(const MomentSide<T>& side, const MomentSide<T>& other, double* sums) {
    static constexpr double kOne = 1.0;
    std::vector<std::vector<Weight>> out;
    for (std::int64_t l = 0; l < side.layers(); ++l) {
        out.push_back({{&kOne, 0, side.sum_z}, {side.a + l, side.layers(), side.sum_az}});
        for (std::int64_t k = 0; k < other.layers(); ++k)
            out.back().push_back({other.a + k, other.layers(), sums + k * side.p});
    }
    return out;
}

// And the probes h [., layers, kProbes] of a layer.
void add_probes(const double* h, std::int64_t layers, std::int64_t layer, double* sums, std::int64_t p,
                std::vector<Weight>& weights) {
    for (std::int64_t k = 0; k < kProbes; ++k)
        weights.push_back({h + layer * kProbes + k, layers * kProbes, sums + k * p});
}

// Rows first..end of one layer to z [rows, p], with their norms to a [rows, layers].
void bring(const MatrixView& layer, const double* shift, double scale, std::int64_t first, std::int64_t end, double* z,
           std::int64_t p, double* a, std::int64_t layers) {
    const int cols = static_cast<int>(layer.cols);
    pack({layer, shift, nullptr, scale, Kernel::linear, 1.0, 0.0, 0, nullptr}, first, end, 0, cols, z, p);
    for (std::int64_t r = first; r < end; ++r, z += p, a += layers) *a = dot(cols, z, z);
}

void bring(const MatrixView& layer, const double* shift, double scale, std::int64_t first, std::int64_t end, float* z,
           std::int64_t p, double* a, std::int64_t layers) {
    for (std::int64_t r = first; r < end; ++r, z += p, a += layers) *a = pack_row(layer, r, shift, scale, z);
}

}  // namespace

template <class T>
void moments_rows(const std::vector<MomentUnits<T>>& sides, int threads, const Poll& poll) {
    std::vector<Item> items;
    for (const MomentUnits<T>& side : sides) {
        std::int64_t p = 0;
        for (const MatrixView& layer : side.layers) p += layer.cols;
        const std::int64_t rows = side.layers.front().rows, layers = static_cast<std::int64_t>(side.layers.size());
        for (std::int64_t first = 0; first < rows; first += kRows)
            items.emplace_back([=, &side](float*) {
                const std::int64_t end = std::min(rows, first + kRows);
                std::int64_t k = 0;
                for (std::int64_t l = 0; l < layers; k += side.layers[l++].cols)
                    bring(side.layers[l], side.shift + k, side.scale[k], first, end, side.z + first * p + k, p,
                          side.a + first * layers + l, layers);
            });
    }
    run(items, threads, poll);
}

template <class T>
void moments_add(std::int64_t rows, const MomentSide<T>& left, const MomentSide<T>* right, const MomentCross& cross,
                 int threads, const Poll& poll) {
    const MomentSide<T>& y = right ? *right : left;
    std::vector<Item> probes, columns, items;
    TakenWorkspaces<T> taken;
    PackedSide<T> x_packed(rows, left, taken.own.left);
    std::optional<PackedSide<T>> y_packed;
    if (right) y_packed.emplace(rows, *right, taken.own.right);
    PackedSide<T>& packed = right ? *y_packed : x_packed;
    for (std::int64_t i = 0; i < left.layers(); ++i)
        for (std::int64_t j = right ? 0 : i; j < y.layers(); ++j)
            product_items(rows, x_packed, i, packed, j, cross.cross + left.offsets[i] * y.p + y.offsets[j], y.p, items);
    ColumnSums x_sums{right ? weights_of(left, y, cross.sum_bx) : std::vector<std::vector<Weight>>(), {}, {}};
    ColumnSums y_sums{weights_of(y, left, cross.sum_ay), {}, {}};
    Buffer<double> x_probes(right && cross.probes ? rows * left.layers() * kProbes : 0);
    Buffer<double> y_probes(cross.probes ? rows * y.layers() * kProbes : 0);
    if (cross.probes) {
        if (right) probe_items(rows, left, x_probes.data(), probes);
        probe_items(rows, y, y_probes.data(), probes);
        for (std::int64_t i = 0; i < left.layers(); ++i)
            for (std::int64_t j = right ? 0 : i; j < y.layers(); ++j)
                add_probes(y_probes.data(), y.layers(), j, cross.probes + j * kProbes * left.p, left.p,
                           (right ? x_sums : y_sums).weights[i]);
        for (std::int64_t i = 0; right && i < left.layers(); ++i)
            add_probes(x_probes.data(), left.layers(), i, left.probes, left.p, x_sums.weights[i]);
        for (std::int64_t j = 0; right && j < y.layers(); ++j)
            add_probes(y_probes.data(), y.layers(), j, y.probes, y.p, y_sums.weights[j]);
    }
    for (auto [side, sums] : {std::pair{&x_packed, &x_sums}, {&packed, &y_sums}})
        for (std::int64_t l = 0; l < side->layers(); ++l) {
            const std::int64_t first = side->column(l), width = side->cols(l), ldc = right ? width : y.p;
            sums->diagonal.push_back(right ? side->side().gram[l] : cross.cross + first * (y.p + 1));
            sums->diagonals.push_back(ldc + 1);
            if (right) product_items(rows, *side, l, *side, l, side->side().gram[l], ldc, items);
        }
    if (right) column_items(x_packed, x_sums, columns);
    column_items(packed, y_sums, columns);
    items.emplace_back([&](float*) {
        gemm_tn(static_cast<int>(left.layers()), static_cast<int>(y.layers()), static_cast<int>(rows), left.a,
                static_cast<int>(left.layers()), y.a, static_cast<int>(y.layers()), 1.0, cross.sum_ab,
                static_cast<int>(y.layers()));
    });
    constexpr std::int64_t tile = std::is_same_v<T, float> ? (kTile + kWidest) * (kTile + kWidest) : 0;
    // Before anything is added, so that no half of a block is where memory ends.
    float* tiles = taken.own.tiles.of(tile * std::min<std::int64_t>(threads, static_cast<std::int64_t>(items.size())));
    run(probes, threads, poll);
    run(columns, threads, poll);
    run(items, threads, poll, tiles, tile);
}

template void moments_rows<float>(const std::vector<MomentUnits<float>>&, int, const Poll&);
template void moments_rows<double>(const std::vector<MomentUnits<double>>&, int, const Poll&);
template void moments_add<float>(std::int64_t, const MomentSide<float>&, const MomentSide<float>*, const MomentCross&,
                                 int, const Poll&);
template void moments_add<double>(std::int64_t, const MomentSide<double>&, const MomentSide<double>*,
                                  const MomentCross&, int, const Poll&);

}  // namespace simkit
