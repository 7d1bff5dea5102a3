// Rows of one side of a stream in slivers, the memory that they take, and the items of work over them.
#pragma once

#include <algorithm>
#include <atomic>
#include <functional>
#include <utility>
#include <vector>

#include "core/buffer.hpp"
#include "core/micro_kernel.hpp"
#include "core/pack.hpp"
#include "core/tiles.hpp"
#include "ops/moments.hpp"

namespace simkit {

inline constexpr std::int64_t kTile = 240;  // columns, at most
template <class T>
inline constexpr std::int64_t kDepth = 256;  // rows multiplied at a time
template <>
inline constexpr std::int64_t kDepth<float> = 128;  // in one running sum; 256 are no faster
inline constexpr std::int64_t kRows = 64;           // rows of one piece of work
static_assert(kNarrow <= 12, "columns of the narrowest sliver");

// Memory that the calling thread keeps: a stream adds a block every few milliseconds, and fresh pages for each would
// cost a tenth of that.
template <class T>
struct Workspace {
    std::int64_t size = 0;
    Buffer<T> data{0};
    T* of(std::int64_t wanted) {
        if (size < wanted) {
            size = 0;  // should the next line throw
            data = Buffer<T>(0);
            data = Buffer<T>(wanted);
            size = wanted;
        }
        return data.data();
    }
};
template <class T>
struct Workspaces {
    Workspace<T> left, right;  // rows of both sides in slivers
    Workspace<float> tiles;    // one for each worker
};

// Taken for one call: what polls may run a signal handler that adds to another stream on this very thread.
template <class T>
class TakenWorkspaces {
  public:
    TakenWorkspaces() { std::swap(own, kept()); }
    ~TakenWorkspaces() { std::swap(own, kept()); }
    TakenWorkspaces(const TakenWorkspaces&) = delete;
    TakenWorkspaces& operator=(const TakenWorkspaces&) = delete;
    Workspaces<T> own;

  private:
    static Workspaces<T>& kept() {
        thread_local Workspaces<T> of_thread;
        return of_thread;
    }
};

// Every item owns its outputs, so items may run in any order and the sums do not depend on the threads. It is handed
// its worker's tile.
using Item = std::function<void(float*)>;

struct Runner {
    const std::vector<Item>& items;
    float* tile;
    void work(std::int64_t t) { items[t](tile); }
};

inline void run(const std::vector<Item>& items, int threads, const Poll& poll, float* tiles = nullptr,
                std::int64_t each = 0) {
    std::atomic<int> worker{0};
    for_each_tile(static_cast<std::int64_t>(items.size()), threads, poll,
                  [&] { return Runner{items, tiles ? tiles + each * worker.fetch_add(1) : nullptr}; });
}

// Columns of one tile of a layer: whole slivers, and no narrow rest.
template <class T>
std::int64_t tile_of(std::int64_t cols) {
    const std::int64_t tiles = (cols + kTile - 1) / kTile;
    return round_up((cols + tiles - 1) / tiles, micro_kernel<T>().width);
}

// One side's rows in slivers of columns, layer by layer, so that every product finds whole slivers: every column is
// packed once, however many products it enters.
template <class T>
class PackedSide {
  public:
    PackedSide(std::int64_t rows, const MomentSide<T>& side, Workspace<T>& space) : rows_(rows), side_(side) {
        const std::int64_t w = micro_kernel<T>().width;
        for (std::int64_t l = 0; l < side.layers(); ++l) {
            first_.push_back(width_);
            width_ += round_up(side.offsets[l + 1] - side.offsets[l], w);
        }
        data_ = space.of(rows * width_);
    }

    std::int64_t layers() const { return side_.layers(); }
    std::int64_t cols(std::int64_t layer) const { return side_.offsets[layer + 1] - side_.offsets[layer]; }
    std::int64_t column(std::int64_t layer) const { return side_.offsets[layer]; }
    std::int64_t rows() const { return rows_; }
    const MomentSide<T>& side() const { return side_; }

    // Copies columns first.. of a layer, `count` of them.
    void pack(std::int64_t layer, std::int64_t first, std::int64_t count) {
        const std::int64_t w = micro_kernel<T>().width;
        for (std::int64_t r0 = 0; r0 < rows_; r0 += kDepth<T>) {
            const std::int64_t depth = std::min(kDepth<T>, rows_ - r0);
            T* out = const_cast<T*>(at(layer, first, r0));
            for (std::int64_t r = 0; r < depth; ++r) {
                const T* z = side_.z + (r0 + r) * side_.p + column(layer) + first;
                for (std::int64_t k = 0; k < count; k += w) {
                    T* sliver = std::copy_n(z + k, std::min(w, count - k), out + k * depth + r * w);
                    std::fill_n(sliver, std::max<std::int64_t>(0, k + w - count), T(0));
                }
            }
        }
    }

    // Columns k.. of a layer, rows r..; whole slivers.
    const T* at(std::int64_t layer, std::int64_t k, std::int64_t r) const {
        return data_ + r * width_ + (first_[layer] + k) * std::min(kDepth<T>, rows_ - r);
    }

    // Row r of column k, which lies in the layer's first sliver.
    double value(std::int64_t layer, std::int64_t r, std::int64_t k) const {
        return at(layer, 0, r / kDepth<T> * kDepth<T>)[r % kDepth<T> * micro_kernel<T>().width + k];
    }

  private:
    std::int64_t rows_, width_ = 0;
    const MomentSide<T>& side_;
    std::vector<std::int64_t> first_;  // the layer's first column among the packed ones
    T* data_;                          // by kDepth<T> rows, sliver by sliver
};

}  // namespace simkit
