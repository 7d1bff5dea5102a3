#include "ops/moments.hpp"

#include <algorithm>
#include <functional>

#include "core/blas.hpp"

namespace simkit {
namespace {

constexpr std::int64_t kTile = 256;
constexpr std::int64_t kRows = 64;

// Every item owns its outputs, so items may run in any order and the sums do not depend on the threads.
using Item = std::function<void()>;

struct Runner {
    const std::vector<Item>& items;
    void work(std::int64_t t) { items[t](); }
    void commit(std::int64_t) {}
};

void add_product(std::int64_t rows, const double* a, std::int64_t lda, std::int64_t wa, const double* b,
                 std::int64_t ldb, std::int64_t wb, bool same, double* c, std::int64_t ldc) {
    if (same)
        syrk_t(static_cast<int>(wa), static_cast<int>(rows), a, static_cast<int>(lda), 1.0, c, static_cast<int>(ldc));
    else
        gemm_tn(static_cast<int>(wa), static_cast<int>(wb), static_cast<int>(rows), a, static_cast<int>(lda), b,
                static_cast<int>(ldb), 1.0, c, static_cast<int>(ldc));
}

// Tiles of a [p, p] square, upper triangle, for columns from `first` of the side.
void square_items(std::int64_t rows, const MomentSide& side, std::int64_t first, std::int64_t p, double* c,
                  std::vector<Item>& items) {
    for (std::int64_t i = 0; i < p; i += kTile)
        for (std::int64_t j = i; j < p; j += kTile)
            items.emplace_back([=, z = side.z + first, ld = side.p] {
                add_product(rows, z + i, ld, std::min(kTile, p - i), z + j, ld, std::min(kTile, p - j), i == j,
                            c + i * p + j, p);
            });
}

void cross_items(std::int64_t rows, const MomentSide& x, const MomentSide& y, double* c, std::vector<Item>& items) {
    for (std::int64_t i = 0; i < x.p; i += kTile)
        for (std::int64_t j = 0; j < y.p; j += kTile)
            items.emplace_back([=, a = x.z + i, b = y.z + j, lda = x.p, ldb = y.p] {
                add_product(rows, a, lda, std::min(kTile, lda - i), b, ldb, std::min(kTile, ldb - j), false,
                            c + i * ldb + j, ldb);
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
                const double* z = side.z + r * side.p;
                for (std::int64_t k = side.offsets[l]; k < side.offsets[l + 1]; ++k) {
                    side.sum_z[k] += z[k];
                    side.sum_az[k] += a * z[k];
                }
            }
        });
}

void run(const std::vector<Item>& items, int threads, const Poll& poll) {
    for_each_tile(static_cast<std::int64_t>(items.size()), threads, poll, [&] { return Runner{items}; });
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
                for (std::int64_t k = 0; k < p; ++k) row[k] = (row[k] - shift[k]) * scale[k];
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
    std::vector<Item> items;
    const MomentSide& y = right ? *right : left;
    if (right) {
        cross_items(rows, left, *right, cross.cross, items);
        for (const MomentSide* side : {&left, right})
            for (std::int64_t l = 0; l < side->layers(); ++l)
                square_items(rows, *side, side->offsets[l], side->offsets[l + 1] - side->offsets[l], side->gram[l],
                             items);
        weighted_items(rows, right->a, y.layers(), left, cross.sum_bx, items);
        own_items(rows, *right, items);
    } else {
        square_items(rows, left, 0, left.p, cross.cross, items);
    }
    weighted_items(rows, left.a, left.layers(), y, cross.sum_ay, items);
    own_items(rows, left, items);
    items.emplace_back([&] {
        gemm_tn(static_cast<int>(left.layers()), static_cast<int>(y.layers()), static_cast<int>(rows), left.a,
                static_cast<int>(left.layers()), y.a, static_cast<int>(y.layers()), 1.0, cross.sum_ab,
                static_cast<int>(y.layers()));
    });
    run(items, threads, poll);
}

}  // namespace simkit
