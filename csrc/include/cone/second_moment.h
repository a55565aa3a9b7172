// Second moments of rows about a pilot vector.
#pragma once

#include "cone/types.h"

namespace cone {

struct SecondMomentArgs {
  const void* const* layers;  // (L) first elements, each a view of shape and strides `rows`
  int64_t n_layers;
  RowView rows;           // rows.data is not read
  const uint8_t* use;     // (L, n): rows to take, 1 or 0; null: all
  const double* weights;  // (L, n): each row is scaled by its weight (1/‖x‖ for unit rows); null: 1
  const double* pilot;    // (L, d): subtracted from each (scaled) row before the product; null: zero
  bool about_pilot;       // add Σ (x − pilot)(x − pilot)ᵀ instead of the plain sum
  double* moment;         // (L, d, d) += Σ x xᵀ; only the upper triangle (i ≤ j) is read
  int threads;
  bool whole = false;  // on the CPU: write the lower triangle too, as the mirror of the upper one
};

// Each product is taken of rows less the pilot, in float32 for float32, bfloat16 and float16 rows over at most 128 rows
// (float64 rows: in float64), and corrected to the plain sum in float64, so that cancellation does not eat the
// covariance. Columns whose squares might leave float32 are scaled by a power of two for the product. The order of
// addition is fixed by the shape and by `use`, whatever the number of threads.
void second_moment(const SecondMomentArgs& args);

struct MeanOfRowsArgs {
  const void* const* layers;  // (L) first elements, each a view of shape and strides `rows`
  int64_t n_layers;
  RowView rows;           // rows.data is not read
  const double* weights;  // (L, n): each row is scaled by its weight; null: 1
  double* mean;           // (L, d), NaN where there is no row
  int threads;
};

// The mean of the (scaled) rows, summed in float64, row after row.
void mean_of_rows(const MeanOfRowsArgs& args);

}  // namespace cone
