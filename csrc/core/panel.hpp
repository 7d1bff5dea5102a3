// Inner products of the rows of a panel [m, size]: few long rows, where a matrix product would spend its time packing.
#pragma once

#include <cstdint>

namespace simkit {

// gram [m, m] += x_a . x_b for a < left, left <= b, and for a = b; left = 0: for all a <= b. Products of T are summed
// in T over at most 32 elements of one lane, then in float64.
template <class T>
void add_panel_gram(const T* panel, std::int64_t m, std::int64_t left, std::int64_t size, double* gram);

}  // namespace simkit
