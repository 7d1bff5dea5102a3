#include "ops/moments.hpp"

#include <algorithm>
#include <functional>
#include <optional>

#include "core/blas.hpp"
#include "core/buffer.hpp"
#include "core/clones.hpp"
#include "core/micro_kernel.hpp"

namespace simkit {
namespace {

constexpr std::int64_t kTile = 240;   // columns, at most
constexpr std::int64_t kDepth = 256;  // rows multiplied at a time
constexpr std::int64_t kRows = 64;    // rows of one piece of work

SIMKIT_CLONES void shift_scale(double* __restrict row, const double* __restrict shift, const double* __restrict scale,
                               std::int64_t count) {
    for (std::int64_t k = 0; k < count; ++k) row[k] = (row[k] - shift[k]) * scale[k];
}
SIMKIT_CLONES void add_weighted(const double* __restrict z, double weight, double* __restrict sum,
                                double* __restrict weighted, std::int64_t count) {
    for (std::int64_t k = 0; k < count; ++k) {
        sum[k] += z[k];
        weighted[k] += weight * z[k];
    }
}

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
                for (std::int64_t r = 0; r < rows; r += kDepth)
                    packed_product(wa, wb, std::min(kDepth, rows - r), x.at(i, a, r), y.at(j, b, r), triangle, true, to,
                                   ldc);
                for (std::int64_t k = 1; triangle && k < wa; ++k)  // a few more than the triangle were written
                    std::fill_n(to + k * ldc + std::max<std::int64_t>(0, k - kWidest),
                                std::min<std::int64_t>(k, kWidest), 0.0);
            });
}

// sum_wz [layers, p] += W [rows, layers]^T Z [rows, p], by columns.
void weighted_items(std::int64_t rows, const double* w, std::int64_t layers, const MomentSide& side, double* out,
                    std::vector<Item>& items) {
    for (std::int64_t k = 0; k < side.p; k += kTile)
        items.emplace_back([=, z = side.z + k, p = side.p] {
            gemm_tn(static_cast<int>(layers), static_cast<int>(std::min(kTile, p - k)), static_cast<int>(rows), w,
                    static_cast<int>(layers), z, static_cast<int>(p), 1.0, out + k, static_cast<int>(p));
        });
}

void own_items(std::int64_t rows, const MomentSide& side, std::vector<Item>& items) {
    const std::int64_t layers = side.layers();
    for (std::int64_t l = 0; l < layers; ++l)
        items.emplace_back([=, &side] {
            for (std::int64_t r = 0; r < rows; ++r) {
                const double a = side.a[r * layers + l];
                side.sum_a[l] += a;
                side.sum_aa[l] += a * a;
                const std::int64_t k = side.offsets[l];
                add_weighted(side.z + r * side.p + k, a, side.sum_z + k, side.sum_az + k, side.offsets[l + 1] - k);
            }
        });
}

}  // namespace

void moments_rows(std::int64_t rows, double* z, const double* shift, const double* scale,
                  const std::vector<std::int64_t>& offsets, double* a, int threads, const Poll& poll) {
    const std::int64_t layers = static_cast<std::int64_t>(offsets.size()) - 1, p = offsets.back();
    std::vector<Item> items;
    for (std::int64_t first = 0; first < rows; first += kRows)
        items.emplace_back([=, &offsets] {
            for (std::int64_t r = first; r < std::min(rows, first + kRows); ++r) {
                double* row = z + r * p;
                shift_scale(row, shift, scale, p);
                for (std::int64_t l = 0; l < layers; ++l) {
                    const double* own = row + offsets[l];
                    a[r * layers + l] = dot(static_cast<int>(offsets[l + 1] - offsets[l]), own, own);
                }
            }
        });
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
        weighted_items(rows, right->a, y.layers(), left, cross.sum_bx, items);
        own_items(rows, *right, items);
    }
    weighted_items(rows, left.a, left.layers(), y, cross.sum_ay, items);
    own_items(rows, left, items);
    items.emplace_back([&] {
        gemm_tn(static_cast<int>(left.layers()), static_cast<int>(y.layers()), static_cast<int>(rows), left.a,
                static_cast<int>(left.layers()), y.a, static_cast<int>(y.layers()), 1.0, cross.sum_ab,
                static_cast<int>(y.layers()));
    });
    run(packing, threads, poll);
    run(items, threads, poll);
}

}  // namespace simkit
