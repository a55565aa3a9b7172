// Top eigenvectors by block power (subspace) iteration with Rayleigh-Ritz.
#pragma once

#include "cone/types.h"

namespace cone {

struct TopEigenvectorsArgs {
  const void* const* layers;  // (L) first elements, each a view of shape and strides `rows`
  int64_t n_layers;
  RowView rows;  // covariance: n = d; data: n rows of width d; rows.data is not read
  bool
      covariance;  // the input is symmetric positive semidefinite (d, d); else data (n, d), its covariance never formed
  bool center;     // data only: C = (Σxxᵀ − ttᵀ/n)/(n−1), else Σxxᵀ/n
  int64_t k;
  double tolerance;  // converged when every wanted residual ≤ tolerance · λ1
  int64_t max_iterations;
  const double* start;  // (b, d) row-major: the starting block, b ≥ k + 1 unless b = d
  int64_t block;        // b
  double* values;       // (L, k) descending
  double* vectors;      // (L, k, d) unit rows
  double* residuals;    // (L, k) ‖C v − λ v‖
  int64_t* iterations;  // (L) products with the whole block
  double* next_value;   // (L) Ritz value k + 1 (for the eigengap); NaN where k = d
  uint8_t* converged;   // (L)
  int threads;
};

void top_eigenvectors(const TopEigenvectorsArgs& args);

}  // namespace cone
