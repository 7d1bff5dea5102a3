// Row norms, and the median of all squared distances by radix selection over tiles: no n x n storage.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <numeric>
#include <stdexcept>

#include "core/blas.hpp"
#include "core/buffer.hpp"
#include "core/micro_kernel.hpp"
#include "core/pack.hpp"
#include "cpu/gram_tile.hpp"
#include "ops/hsic.hpp"

namespace simkit {
namespace {

constexpr std::int64_t kTile = 256;
constexpr std::int64_t kCollect = std::int64_t{1} << 20;  // values gathered for the last selection, at most
constexpr std::int64_t kFewest = std::int64_t{1} << 12;   // where there is no room for more
constexpr int kDigit = 16;

// Rows of a mapped file are resident while a tile is worked on: few of them where they lie far apart.
std::int64_t tile_rows(const BlockView& block, std::int64_t resident = kPassing) {
    if (!block.x.mapped) return kTile;
    return std::clamp<std::int64_t>(resident / row_span(block.x), kPassingRows, kTile);
}

std::uint64_t key_of(double value) {
    std::uint64_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;  // ordered like the value, for values >= 0
}
double value_of(std::uint64_t bits) {
    double value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// What a worker of distance_median has resident.
std::int64_t bytes_of_worker(const BlockView& block, std::int64_t tile) {
    const std::int64_t strips = 2 * round_up(tile, micro_kernel<double>().width) * std::min(kChunk, block.x.cols);
    const std::int64_t pages = block.x.mapped ? 2 * (tile * row_span(block.x) + 2 * kFolio) : 0;
    return item_size(Dtype::f64) * (strips + tile * tile + (std::int64_t{1} << kDigit)) + pages;
}

// What one pass over the distances above the diagonal looks for: keys whose top `known` bits are `prefix`.
struct Pass {
    std::uint64_t prefix = 0;
    int known = 0;
    bool collect = false;  // them, or count them by the next digit
    bool matches(std::uint64_t key) const { return known == 0 || key >> (64 - known) == prefix; }
};
struct Found {
    std::vector<std::int64_t> histogram;  // by the next digit
    std::uint64_t least_above = std::numeric_limits<std::uint64_t>::max();
};
// A pass finds as many keys as the one before has counted, unless somebody writes to the features meanwhile.
void check_count(std::int64_t found, std::int64_t counted) {
    if (found != counted) throw std::runtime_error("the features were changed while they were being read");
}

// The keys of a collecting pass, in any order.
class Keys {
  public:
    explicit Keys(std::int64_t count) : count_(count), values_(count) {}
    std::uint64_t* data() { return values_.data(); }
    void add(std::uint64_t key) {
        const std::int64_t place = next_.fetch_add(1, std::memory_order_relaxed);
        if (place < count_) values_[place] = key;
    }
    void check() const { check_count(next_.load(), count_); }

  private:
    std::int64_t count_;
    Buffer<std::uint64_t> values_;
    std::atomic<std::int64_t> next_{0};
};

class Worker {
  public:
    Worker(const BlockView& block, std::int64_t tile, const std::vector<double>& norms, const Pass& pass, Found& found,
           Keys& keys)
        : block_(block),
          norms_(norms),
          pass_(pass),
          found_(found),
          keys_(keys),
          tile_(tile),
          strips_(tile_, block.x.cols),
          c_(tile_ * tile_) {
        if (!pass.collect) found_.histogram.assign(std::size_t{1} << kDigit, 0);
    }
    void work(std::int64_t t) {
        const std::int64_t n = block_.x.rows, tiles = (n + tile_ - 1) / tile_;
        std::int64_t row = 0;
        while (t >= tiles - row) t -= tiles - row++;
        const std::int64_t i0 = row * tile_, j0 = (row + t) * tile_;
        const std::int64_t ti = std::min(n, i0 + tile_) - i0, tj = std::min(n, j0 + tile_) - j0;
        product_tile(block_, i0, ti, block_, j0, tj, i0 == j0, strips_, c_.data());
        distances_from_products(block_, block_, norms_.data(), i0, ti, j0, tj, 1, c_.data());
        for (std::int64_t i = 0; i < ti; ++i)
            for (std::int64_t j = i0 == j0 ? i + 1 : 0; j < tj; ++j) look(key_of(c_[i * tj + j]));
    }

  private:
    void look(std::uint64_t key) {
        if (pass_.matches(key)) {
            if (pass_.collect)
                keys_.add(key);
            else
                ++found_.histogram[key >> (64 - kDigit - pass_.known) & ((1u << kDigit) - 1)];
        } else if (pass_.collect && key >> (64 - pass_.known) > pass_.prefix) {
            found_.least_above = std::min(found_.least_above, key);
        }
    }
    const BlockView& block_;
    const std::vector<double>& norms_;
    const Pass& pass_;
    Found& found_;
    Keys& keys_;
    std::int64_t tile_;
    PackedStrips<double> strips_;
    std::vector<double> c_;
};

Found scan(const BlockView& block, std::int64_t tile, const std::vector<double>& norms, const Pass& pass, Keys& keys,
           int threads, const Poll& poll) {
    std::mutex mutex;
    std::vector<std::unique_ptr<Found>> parts;
    const std::int64_t tiles = (block.x.rows + tile - 1) / tile;
    for_each_tile(tiles * (tiles + 1) / 2, threads, poll, [&] {
        std::lock_guard lock(mutex);
        parts.push_back(std::make_unique<Found>());
        return Worker(block, tile, norms, pass, *parts.back(), keys);
    });
    Found total = std::move(*parts.front());
    for (std::size_t k = 1; k < parts.size(); ++k) {
        const Found& part = *parts[k];
        for (std::size_t d = 0; d < part.histogram.size(); ++d) total.histogram[d] += part.histogram[d];
        total.least_above = std::min(total.least_above, part.least_above);
    }
    return total;
}

// One pass over the rows: each z row by row to `see(row, chunk's first column, chunk's width, z)`.
template <class See>
void pass_rows(const BlockView& block, std::int64_t i0, std::int64_t i1, See&& see) {
    std::array<double, kChunk> z;
    for (std::int64_t i = i0; i < i1; ++i)
        for (std::int64_t k = 0; k < block.x.cols; k += kChunk) {
            const std::int64_t end = std::min(block.x.cols, k + kChunk);
            pack(block, i, i + 1, k, end, z.data(), kChunk);
            see(i, k, static_cast<int>(end - k), z.data());
        }
    release_rows(block.x, i0, i1);
}

class NormsWorker {
  public:
    NormsWorker(const BlockView& block, std::vector<double>& norms)
        : block_(block), norms_(norms), tile_(tile_rows(block)) {}
    void work(std::int64_t t) {
        pass_rows(block_, t * tile_, std::min(block_.x.rows, (t + 1) * tile_),
                  [&](std::int64_t i, std::int64_t, int count, const double* z) { norms_[i] += dot(count, z, z); });
    }

  private:
    const BlockView& block_;
    std::vector<double>& norms_;
    std::int64_t tile_;
};

class ColumnSumsWorker {
  public:
    ColumnSumsWorker(const BlockView& block, std::vector<double>& total)
        : block_(block), total_(total), tile_(tile_rows(block)), sums_(block.x.cols) {}
    void work(std::int64_t t) {
        std::fill(sums_.begin(), sums_.end(), 0.0);
        pass_rows(block_, t * tile_, std::min(block_.x.rows, (t + 1) * tile_),
                  [&](std::int64_t, std::int64_t k, int count, const double* z) {
                      for (int c = 0; c < count; ++c) sums_[k + c] += z[c];
                  });
    }
    void commit(std::int64_t) {
        for (std::size_t k = 0; k < sums_.size(); ++k) total_[k] += sums_[k];
    }

  private:
    const BlockView& block_;
    std::vector<double>& total_;
    std::int64_t tile_;
    std::vector<double> sums_;
};

std::int64_t row_tiles(const BlockView& block) {
    const std::int64_t tile = tile_rows(block);
    return (block.x.rows + tile - 1) / tile;
}

class RowGramsWorker {
  public:
    RowGramsWorker(const std::vector<BlockView>& blocks, const std::vector<std::vector<double>>& columns,
                   std::int64_t rows, RowGrams& out)
        : blocks_(blocks),
          columns_(columns),
          m_(static_cast<std::int64_t>(blocks.size())),
          rows_(rows),
          out_(out),
          norms_(m_ * rows),
          sums_(m_ * rows),
          squares_(m_ * m_),
          products_(m_ * m_) {}

    void work(std::int64_t t) {
        const std::int64_t first = t * rows_;
        count_ = std::min(blocks_[0].x.rows, first + rows_) - first;
        for (std::int64_t b = 0; b < m_; ++b) {
            double *norms = norms_.data() + b * rows_, *sums = sums_.data() + b * rows_;
            const double* columns = columns_[b].data();
            std::fill_n(norms, count_, 0.0);
            std::fill_n(sums, count_, 0.0);
            pass_rows(blocks_[b], first, first + count_,
                      [&](std::int64_t i, std::int64_t k, int count, const double* z) {
                          norms[i - first] += dot(count, z, z);
                          sums[i - first] += dot(count, z, columns + k);
                      });
            for (std::int64_t i = 0; i < count_; ++i) sums[i] -= norms[i];
        }
        const int m = static_cast<int>(m_), count = static_cast<int>(count_), ld = static_cast<int>(rows_);
        syrk_n(m, count, norms_.data(), ld, 0.0, squares_.data(), m);
        syrk_n(m, count, sums_.data(), ld, 0.0, products_.data(), m);
    }

    void commit(std::int64_t) {
        for (std::int64_t b = 0; b < m_; ++b) {
            for (std::int64_t c = b; c < m_; ++c) {
                out_.squares[b * m_ + c] += squares_[b * m_ + c];
                out_.sums[b * m_ + c] += products_[b * m_ + c];
            }
            for (std::int64_t i = 0; i < count_; ++i) out_.totals[b] += sums_[b * rows_ + i];
        }
    }

  private:
    const std::vector<BlockView>& blocks_;
    const std::vector<std::vector<double>>& columns_;
    std::int64_t m_, rows_, count_ = 0;
    RowGrams& out_;
    std::vector<double> norms_, sums_, squares_, products_;
};

}  // namespace

std::vector<double> row_norms(const BlockView& block, int threads, const Poll& poll) {
    std::vector<double> norms(block.x.rows);
    for_each_tile(row_tiles(block), threads, poll, [&] { return NormsWorker(block, norms); });
    return norms;
}

RowGrams row_grams(const std::vector<BlockView>& blocks, int threads, const Poll& poll) {
    const std::size_t m = blocks.size();
    std::vector<std::vector<double>> columns;
    std::int64_t rows = kTile;
    for (const BlockView& block : blocks) {
        std::vector<double>& own = columns.emplace_back(block.x.cols);
        for_each_tile(row_tiles(block), threads, poll, [&] { return ColumnSumsWorker(block, own); });
        rows = std::min(rows, tile_rows(block));
    }
    RowGrams out{std::vector<double>(m * m), std::vector<double>(m * m), std::vector<double>(m)};
    for_each_tile((blocks[0].x.rows + rows - 1) / rows, threads, poll,
                  [&] { return RowGramsWorker(blocks, columns, rows, out); });
    return out;
}

double distance_median(const BlockView& block, int threads, std::int64_t room, const Poll& poll) {
    constexpr std::int64_t most = std::int64_t{4} << 20;  // bytes of a strip of a mapped file
    const std::int64_t eighth = room / 8, item = item_size(Dtype::f64);
    const std::int64_t collected = std::clamp(eighth / item, kFewest, kCollect);
    const std::int64_t tile = tile_rows(block, std::min(eighth, most));
    const std::int64_t left = room - item * (collected + block.x.rows);
    threads = static_cast<int>(std::clamp<std::int64_t>(left / bytes_of_worker(block, tile), 1, threads));
    // The full matrix holds n zeros and every distance above the diagonal twice.
    const std::int64_t n = block.x.rows, total = n * n;
    const std::int64_t low = (total - 1) / 2, high = total / 2;                            // ranks of the middle values
    const auto above = [&](std::int64_t rank) { return rank < n ? -1 : (rank - n) / 2; };  // rank above the diagonal
    if (above(high) < 0) return 0.0;
    std::int64_t rank = std::max<std::int64_t>(above(low), 0);
    const std::vector<double> norms = row_norms(block, threads, poll);
    Pass pass;
    std::int64_t inside = n * (n - 1) / 2;
    Keys none(0);
    while (inside > collected && pass.known < 64) {
        const Found found = scan(block, tile, norms, pass, none, threads, poll);
        check_count(std::accumulate(found.histogram.begin(), found.histogram.end(), std::int64_t{0}), inside);
        std::uint64_t digit = 0;
        while (digit + 1 < found.histogram.size() && rank >= found.histogram[digit]) rank -= found.histogram[digit++];
        inside = found.histogram[digit];
        pass.prefix = pass.prefix << kDigit | digit;
        pass.known += kDigit;
    }
    const std::int64_t next = rank + (above(high) - std::max<std::int64_t>(above(low), 0));
    double first, second;
    if (pass.known == 64) {  // more equal distances than are collected
        first = second = value_of(pass.prefix);
    } else {
        pass.collect = true;
        Keys keys(inside);
        const Found found = scan(block, tile, norms, pass, keys, threads, poll);
        keys.check();
        std::uint64_t* values = keys.data();
        auto at = [&](std::int64_t k) {
            if (k >= inside) return value_of(found.least_above);
            std::nth_element(values, values + k, values + inside);
            return value_of(values[k]);
        };
        first = at(rank);
        second = at(next);
    }
    return 0.5 * ((above(low) < 0 ? 0.0 : first) + second);
}

}  // namespace simkit
