#include "core/accumulate.hpp"

#include "core/clones.hpp"

namespace simkit {

SIMKIT_CLONES void add_to(const float* c, double* to, std::int64_t count) {
    for (std::int64_t j = 0; j < count; ++j) to[j] += c[j];
}
SIMKIT_CLONES void add_to(const double* c, double* to, std::int64_t count) {
    for (std::int64_t j = 0; j < count; ++j) to[j] += c[j];
}

}  // namespace simkit
