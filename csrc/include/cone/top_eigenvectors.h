// Top eigenvectors by block power (subspace) iteration with Rayleigh-Ritz.
#pragma once

#include "cone/types.h"

namespace cone {

struct TopEigenvectorsArgs {
  const void* const* layers;  // (L) first elements, each a view of shape and strides `rows`
  int64_t n_layers;
  RowView rows;     // covariance: n = d; data: n rows of width d; rows.data is not read
  bool covariance;  // the input is symmetric positive semidefinite (d, d); else data, its covariance is never formed
  bool center;      // data only: C = Σ(x−m)(x−m)ᵀ/(n−1), which needs n ≥ 2; else C = Σxxᵀ/n
  int64_t k;
  double tolerance;  // converged when every wanted residual ≤ tolerance · λ1
  int64_t max_iterations;
  const double* start;  // (b, d) row-major, linearly independent: the starting block, b ≥ k + 1 unless b = d
  int64_t block;        // b
  double* values;       // (L, k) descending
  double* vectors;      // (L, k, d) unit rows
  double* residuals;    // (L, k) ‖C v − λ v‖
  int64_t* iterations;  // (L) products with a block of vectors; for data each reads the rows once
  double* next_value;   // (L) Ritz value k + 1 (for the eigengap), its residual ≤ 1e-3 · λ1 too; NaN where k = d
  double* mean;         // (L, d) m, for data; null for a covariance
  uint8_t* converged;   // (L)
  int threads;
};

// Products are taken in float64, for float32, bfloat16 and float16 data in float32 over one block of rows that is then
// added to float64. The rest is float64. Each step multiplies one block of vectors by C, keeps it, and solves the
// projected problem on all blocks kept (at most five), so that spectra without a gap converge too. The answer does not
// depend on the number of threads.
void top_eigenvectors(const TopEigenvectorsArgs& args);

struct AsymmetryArgs {
  const void* const* layers;  // (L) first elements, each a matrix (d, d) of the strides `rows`
  int64_t n_layers;
  RowView rows;     // n = d; rows.data is not read
  double* apart;    // the largest |C − Cᵀ| of all matrices, 0 where there is none; NaN is passed over
  double* largest;  // the largest |C|, as above
  int threads;
};

// How far the triangles of matrices are apart, in one read of them; float32 for all but float64.
void asymmetry(const AsymmetryArgs& args);

}  // namespace cone
