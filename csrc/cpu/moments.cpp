#include "ops/moments.hpp"

#include <algorithm>
#include <functional>
#include <optional>

#include "core/blas.hpp"
#include "core/buffer.hpp"
#include "core/micro_kernel.hpp"
#include "core/pack.hpp"

namespace simkit {
namespace {

constexpr std::int64_t kTile = 240;   // columns, at most
constexpr std::int64_t kDepth = 256;  // rows multiplied at a time
constexpr std::int64_t kRows = 64;    // rows of one piece of work

// Every item owns its outputs, so items may run in any order and the sums do not depend on the threads.
using Item = std::function<void()>;

struct Runner {
    const std::vector<Item>& items;
    void work(std::int64_t t) { items[t](); }
};

void run(const std::vector<Item>& items, int threads, const Poll& poll) {
    for_each_tile(static_cast<std::int64_t>(items.size()), threads, poll, [&] { return Runner{items}; });
}

// Rows of both sides in slivers, kept by the calling thread: a stream adds a block every few milliseconds, and fresh
// pages for each would cost a tenth of that.
struct Workspace {
    std::int64_t size = 0;
    Buffer<double> data{0};
    double* of(std::int64_t wanted) {
        if (size < wanted) {
            size = 0;  // should the next line throw
            data = Buffer<double>(0);
            data = Buffer<double>(wanted);
            size = wanted;
        }
        return data.data();
    }
};
thread_local Workspace left_rows, right_rows;

// Columns of one tile of a layer: whole slivers, and no narrow rest.
std::int64_t tile_of(std::int64_t cols) {
    const std::int64_t tiles = (cols + kTile - 1) / kTile;
    return round_up((cols + tiles - 1) / tiles, micro_kernel<double>().width);
}

// One side's rows in slivers of columns, layer by layer, so that every product finds whole slivers: every column is
// packed once, however many products it enters.
class PackedSide {
  public:
    PackedSide(std::int64_t rows, const MomentSide& side, Workspace& space) : rows_(rows), side_(side) {
        const std::int64_t w = micro_kernel<double>().width;
        for (std::int64_t l = 0; l < side.layers(); ++l) {
            first_.push_back(width_);
            width_ += round_up(side.offsets[l + 1] - side.offsets[l], w);
        }
        data_ = space.of(rows * width_);
    }

    std::int64_t layers() const { return side_.layers(); }
    std::int64_t cols(std::int64_t layer) const { return side_.offsets[layer + 1] - side_.offsets[layer]; }
    std::int64_t column(std::int64_t layer) const { return side_.offsets[layer]; }

    void pack_items(std::vector<Item>& items) {
        for (std::int64_t l = 0; l < layers(); ++l)
            for (std::int64_t k = 0; k < cols(l); k += tile_of(cols(l))) items.emplace_back([=, this] { pack(l, k); });
    }

    // Columns k.. of a layer, rows r..; whole slivers.
    const double* at(std::int64_t layer, std::int64_t k, std::int64_t r) const {
        return data_ + r * width_ + (first_[layer] + k) * std::min(kDepth, rows_ - r);
    }

  private:
    void pack(std::int64_t layer, std::int64_t first) {
        const std::int64_t w = micro_kernel<double>().width,
                           count = std::min(tile_of(cols(layer)), cols(layer) - first);
        for (std::int64_t r0 = 0; r0 < rows_; r0 += kDepth) {
            const std::int64_t depth = std::min(kDepth, rows_ - r0);
            double* out = const_cast<double*>(at(layer, first, r0));
            for (std::int64_t r = 0; r < depth; ++r) {
                const double* z = side_.z + (r0 + r) * side_.p + column(layer) + first;
                for (std::int64_t k = 0; k < count; k += w) {
                    double* sliver = std::copy_n(z + k, std::min(w, count - k), out + k * depth + r * w);
                    std::fill_n(sliver, std::max<std::int64_t>(0, k + w - count), 0.0);
                }
            }
        }
    }

    std::int64_t rows_, width_ = 0;
    const MomentSide& side_;
    std::vector<std::int64_t> first_;  // the layer's first column among the packed ones
    double* data_;                     // by kDepth rows, sliver by sliver
};

// c [., ldc] += x^T y for columns of layer i of x and of layer j of y; only the upper triangle of a layer with itself.
void product_items(std::int64_t rows, const PackedSide& x, std::int64_t i, const PackedSide& y, std::int64_t j,
                   double* c, std::int64_t ldc, std::vector<Item>& items) {
    const bool own = &x == &y && i == j;
    const std::int64_t tall = tile_of(x.cols(i)), wide = tile_of(y.cols(j));
    for (std::int64_t a = 0; a < x.cols(i); a += tall)
        for (std::int64_t b = own ? a : 0; b < y.cols(j); b += wide)
            items.emplace_back([=, &x, &y] {
                const bool triangle = own && a == b;
                const std::int64_t wa = std::min(tall, x.cols(i) - a), wb = std::min(wide, y.cols(j) - b);
                double* to = c + a * ldc + b;
                const Ahead sums(reinterpret_cast<const std::byte*>(to + kTallest * ldc), ldc * 8, wa - kTallest,
                                 wb * 8);
                for (std::int64_t r = 0; r < rows; r += kDepth)
                    packed_product(wa, wb, std::min(kDepth, rows - r), x.at(i, a, r), y.at(j, b, r), triangle, true, to,
                                   ldc, wa > kTallest ? sums : Ahead{});
                for (std::int64_t k = 1; triangle && k < wa; ++k)  // a few more than the triangle were written
                    std::fill_n(to + k * ldc + std::max<std::int64_t>(0, k - kWidest),
                                std::min<std::int64_t>(k, kWidest), 0.0);
            });
}

// Sums of a layer's columns z under weights: 1, its own a, and each a of the other side. A product with few rows.
// sums [2 + others, cols of the layer].
void weighted(std::int64_t rows, const PackedSide& side, const MomentSide& of, std::int64_t layer, const double* other,
              std::int64_t others, double* sums) {
    const std::int64_t w = micro_kernel<double>().width, count = 2 + others;
    Buffer<double> packed(round_up(count, w) * std::min(kDepth, rows));
    for (std::int64_t r0 = 0; r0 < rows; r0 += kDepth) {
        const std::int64_t depth = std::min(kDepth, rows - r0);
        for (std::int64_t k = 0; k < round_up(count, w); ++k)
            for (std::int64_t r = 0; r < depth; ++r) {
                const double own = k == 0 ? 1.0 : of.a[(r0 + r) * of.layers() + layer];
                packed.data()[(k / w * depth + r) * w + k % w] = k < 2       ? own
                                                                 : k < count ? other[(r0 + r) * others + k - 2]
                                                                             : 0.0;
            }
        packed_product(count, side.cols(layer), depth, packed.data(), side.at(layer, 0, r0), false, r0 > 0, sums,
                       side.cols(layer));
    }
}

// other_sums [others, p]: sums of z weighted by the other side's a [rows, others].
void weighted_items(std::int64_t rows, const PackedSide& packed, const MomentSide& side, const double* other,
                    std::int64_t others, double* other_sums, std::vector<Item>& items) {
    for (std::int64_t l = 0; l < side.layers(); ++l)
        items.emplace_back([=, &packed, &side] {
            const std::int64_t first = packed.column(l), cols = packed.cols(l);
            Buffer<double> sums((2 + others) * cols);
            weighted(rows, packed, side, l, other, others, sums.data());
            for (std::int64_t k = 0; k < 2 + others; ++k) {
                double* to = k == 0   ? side.sum_z + first
                             : k == 1 ? side.sum_az + first
                                      : other_sums + (k - 2) * side.p + first;
                for (std::int64_t c = 0; c < cols; ++c) to[c] += sums.data()[k * cols + c];
            }
            for (std::int64_t r = 0; r < rows; ++r) {
                const double a = side.a[r * side.layers() + l];
                side.sum_a[l] += a;
                side.sum_aa[l] += a * a;
            }
        });
}

}  // namespace

void moments_rows(const std::vector<MomentUnits>& sides, int threads, const Poll& poll) {
    std::vector<Item> items;
    for (const MomentUnits& side : sides) {
        std::int64_t p = 0;
        for (const MatrixView& layer : side.layers) p += layer.cols;
        const std::int64_t rows = side.layers.front().rows, layers = static_cast<std::int64_t>(side.layers.size());
        for (std::int64_t first = 0; first < rows; first += kRows)
            items.emplace_back([=, &side] {
                const std::int64_t end = std::min(rows, first + kRows);
                std::int64_t k = 0;
                for (std::int64_t l = 0; l < layers; k += side.layers[l++].cols) {
                    const MatrixView& layer = side.layers[l];
                    const int cols = static_cast<int>(layer.cols);
                    double* z = side.z + first * p + k;
                    pack({layer, side.shift + k, nullptr, side.scale[k], Kernel::linear, 1.0, 0.0, 0, nullptr}, first,
                         end, 0, cols, z, p);
                    for (std::int64_t r = first; r < end; ++r, z += p) side.a[r * layers + l] = dot(cols, z, z);
                }
            });
    }
    run(items, threads, poll);
}

void moments_add(std::int64_t rows, const MomentSide& left, const MomentSide* right, const MomentCross& cross,
                 int threads, const Poll& poll) {
    const MomentSide& y = right ? *right : left;
    std::vector<Item> packing, items;
    PackedSide x_packed(rows, left, left_rows);
    x_packed.pack_items(packing);
    std::optional<PackedSide> y_packed;
    if (right) y_packed.emplace(rows, *right, right_rows).pack_items(packing);
    const PackedSide& packed = right ? *y_packed : x_packed;
    for (std::int64_t i = 0; i < left.layers(); ++i)
        for (std::int64_t j = right ? 0 : i; j < y.layers(); ++j)
            product_items(rows, x_packed, i, packed, j, cross.cross + left.offsets[i] * y.p + y.offsets[j], y.p, items);
    if (right) {
        for (std::int64_t l = 0; l < left.layers(); ++l)
            product_items(rows, x_packed, l, x_packed, l, left.gram[l], x_packed.cols(l), items);
        for (std::int64_t l = 0; l < y.layers(); ++l)
            product_items(rows, packed, l, packed, l, right->gram[l], packed.cols(l), items);
        weighted_items(rows, x_packed, left, right->a, y.layers(), cross.sum_bx, items);
    }
    weighted_items(rows, packed, y, left.a, left.layers(), cross.sum_ay, items);
    items.emplace_back([&] {
        gemm_tn(static_cast<int>(left.layers()), static_cast<int>(y.layers()), static_cast<int>(rows), left.a,
                static_cast<int>(left.layers()), y.a, static_cast<int>(y.layers()), 1.0, cross.sum_ab,
                static_cast<int>(y.layers()));
    });
    run(packing, threads, poll);
    run(items, threads, poll);
}

}  // namespace simkit
