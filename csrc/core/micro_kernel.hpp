// The innermost product: two packed slivers -> a small tile of C, in registers.
//
// A sliver holds `width` rows of an operand, column by column: sliver[k * width + r] = z(r, k). One layout serves both
// operands: the left one is read `rows` elements at a time out of its sliver, the right one whole.
#pragma once

#include <cstddef>
#include <cstdint>

namespace simkit {

inline constexpr int kVectors = 3;

// Memory that will be wanted next: rows of `bytes` each, brought towards the cache line by line while something
// else is computed. Rows lie far apart, and no prefetcher of the processor goes from one to the next.
class Ahead {
  public:
    Ahead() = default;
    Ahead(const std::byte* data, std::int64_t row_stride, std::int64_t rows, std::int64_t bytes)
        : row_(data), stride_(row_stride), rows_(rows), bytes_(bytes) {}

    std::int64_t lines() const { return rows_ * ((bytes_ + kLine - 1) / kLine); }

    // Fetches the next line, if there is one.
    void step() {
        if (rows_ == 0) return;
        __builtin_prefetch(row_ + at_, 0, 2);
        if ((at_ += kLine) < bytes_) return;
        at_ = 0;
        row_ += stride_;
        --rows_;
    }

  private:
    static constexpr std::int64_t kLine = 64;
    const std::byte* row_ = nullptr;
    std::int64_t stride_ = 0, rows_ = 0, bytes_ = 0, at_ = 0;
};

template <class T>
struct MicroKernel {
    const char* name;  // instruction set
    int rows;          // rows of C at a time; divides width
    int width;         // columns of C at a time, and of a sliver
    int lanes;         // columns of a vector: width is kVectors of them
    // C [rows, width] (leading dimension ldc) = A B^T over `depth`, or C += where `add`; only vectors first <= v < last
    // of its columns by run[first][last - 1]. `a` points into its sliver; b and c are those of the whole width. So many
    // lines are fetched ahead, at most one for each of `depth`: in one go they would wait for one another.
    using Run = void (*)(std::int64_t depth, const T* a, const T* b, bool add, T* c, std::int64_t ldc, Ahead& ahead,
                         std::int64_t lines);
    Run run[kVectors][kVectors];
};

// The widest that this processor runs.
template <class T>
const MicroKernel<T>& micro_kernel();

inline constexpr int kWidest = 48;  // of all slivers
inline constexpr int kTallest = 8;  // of all kernels' rows

inline std::int64_t round_up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }

// C [m, n] (leading dimension ldc) = A B^T over `depth`, or C += where `add`; both packed in slivers. triangle: m = n,
// and only what lies on or above the diagonal is asked for (more may be written).
template <class T>
void packed_product(std::int64_t m, std::int64_t n, std::int64_t depth, const T* a, const T* b, bool triangle, bool add,
                    T* c, std::int64_t ldc, Ahead left = {}, Ahead right = {});

}  // namespace simkit
