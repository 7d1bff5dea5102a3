// Sums of products taken into float64.
#pragma once

#include <cstdint>

namespace simkit {

// to [count] += c.
void add_to(const float* c, double* to, std::int64_t count);
void add_to(const double* c, double* to, std::int64_t count);

}  // namespace simkit
