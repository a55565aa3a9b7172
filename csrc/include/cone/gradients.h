// Gradients of mean_pairwise_cosine and masked_mean_pool: vectors times Jacobians, from one read of what they need.
//
// Precision: everything is computed in float64, whatever the element type (the rows come from memory, so it costs
// nothing), and rounded once when it is stored: float64 to float32, and from there to bfloat16 and float16.
// Repeatability: each row of the result is computed by itself. The number of threads changes nothing.
#pragma once

#include "cone/moments.h"
#include "cone/types.h"

namespace cone {

struct MeanPairwiseCosineBackwardArgs {
  const void* const* layers;  // (L) first elements, each a view of shape and strides `rows`
  int64_t n_layers;
  RowView rows;            // rows.data is not read
  const double* unit_sum;  // (L, d) s = Σ u
  const double* scale;     // (L) 2·grad/(n(n−1)), n the rows used; 0 where there is no pair
  void* grad_rows;         // (L, n, d) contiguous, of the rows' type
  int threads;
};

// grad_rows_i = scale · (s − (s·u_i) u_i)/‖x_i‖, u_i = x_i/‖x_i‖; 0 for rows that row_moments leaves out. Σ‖u‖² is the
// number of rows whatever they are, so it contributes nothing.
void mean_pairwise_cosine_backward(const MeanPairwiseCosineBackwardArgs& args);

struct MaskedMeanPoolBackwardArgs {
  const void* const*
      layers;  // (L) first elements of the gradients of the pooled vectors, each a view of shape and strides `grad`
  int64_t n_layers;
  RowView grad;               // (B, d) float32, or float64 for a float64 result; grad.data is not read
  DType dtype;                // of the result
  int64_t n_tokens;           // T; packed: N
  const uint8_t* mask;        // (B, T) contiguous, 0 or 1; null: packed
  const int64_t* cu_seqlens;  // (B + 1) first rows of the packed sentences, from 0 to N; null: padded
  void* grad_hidden;          // (L, B, T, d), or packed (L, N, d), contiguous
  int threads;
};

// grad/T for each of a sentence's T tokens, finite or not, since the mean is linear in them; 0 for all other tokens.
void masked_mean_pool_backward(const MaskedMeanPoolBackwardArgs& args);

}  // namespace cone
