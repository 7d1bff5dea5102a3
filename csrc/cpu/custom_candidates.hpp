// Candidates under a custom kernel, which is given both the products and the squared distances of raw rows.
#pragma once

#include "ops/candidates.hpp"

namespace simkit {

// As candidate_sums and pack_centred (ops/candidates.hpp), float64.
CandidateSums custom_sums(const CandidateProblem<double>& problem, const Poll& poll);
void pack_custom(const CandidateProblem<double>& problem, const Poll& poll, double* out);

}  // namespace simkit
