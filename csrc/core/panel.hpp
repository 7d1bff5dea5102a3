// Inner products of the rows of a panel [m, size] with leading dimension ld, where `size` is far larger than m.
#pragma once

#include <cstdint>
#include <vector>

#include "micro_kernel.hpp"

namespace simkit {

// gram [m, m] += x_a . x_b for a < left, left <= b, and for a = b; left = 0: for all a <= b. Products of T are summed
// in T over at most 64 elements at once, these sums over at most 256, and then in float64: few, for samples that are
// alike give equal elements, whose sum rounds the same way every time.
template <class T>
class PanelGram {
  public:
    PanelGram(std::int64_t m, std::int64_t left);
    void add(const T* panel, std::int64_t ld, std::int64_t size, double* gram);

  private:
    Ahead ahead(const T* panel, std::int64_t ld, std::int64_t k, std::int64_t end) const;
    void add_few(const T* panel, std::int64_t ld, std::int64_t size, double* gram) const;
    void add_many(const T* panel, std::int64_t ld, std::int64_t size, double* gram);
    void add_diagonal(const T* panel, std::int64_t ld, std::int64_t k, std::int64_t count, double* gram) const;

    std::int64_t m_, left_;
    bool many_;
    std::vector<T> a_, b_, c_;  // packed rows and their products, where they are many
};

}  // namespace simkit
