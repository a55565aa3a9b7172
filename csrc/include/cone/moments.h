// The plain sums that the kernels add to, and the kernels that make them, or a part of them: row_moments,
// mean_pairwise_cosine, pool_moments, masked_mean_pool.
//
// Precision: rows are widened to the compute type before anything is squared. float32, bfloat16 and float16 rows are
// summed in float32 over some 32 rows and then added to float64; rows whose squared norm leaves the safe range of
// float32, and float64 rows, are computed in float64 throughout.
// Repeatability: work is cut into tasks by shape alone, and sums that tasks share are added in task order. The number
// of threads changes nothing.
#pragma once

#include "cone/types.h"

namespace cone {

// Sums of every layer, contiguous and layer-major; L layers, G jackknife groups, width d. Kernels add to them. The
// pointers from unit_sq_sum on may be null together: then only what the mean pairwise cosine needs is computed.
struct MomentSums {
  int64_t groups;
  int64_t* count;         // (L, G) rows used
  int64_t* n_zero;        // (L, G) rows left out: squared norm zero
  int64_t* n_nonfinite;   // (L, G) rows left out: squared norm not finite in float64
  double* unit_sum;       // (L, G, d) Σ u
  double* unit_sq_total;  // (L, G) Σ ‖u‖²
  double* unit_sq_sum;    // (L, d) Σ u_j²
  double* sum;            // (L, d) Σ x
  double* sq_sum;         // (L, d) Σ x_j²
  double* norm_sum;       // (L) Σ ‖x‖
  double* norm_sq_sum;    // (L) Σ ‖x‖²
};

// Squared norms for which float32 squares neither overflow in a sum of rows nor lose digits to underflow. Rows outside
// this range are computed in float64. cone_kernels/kernels/triton/row_sums.py has the same numbers.
constexpr float kLeastSafeNormSq = 0x1p-80f, kMostSafeNormSq = 0x1p80f;

// What a row or a sentence was left out for; bits of the status bytes.
enum Status : uint8_t { kUsed = 0, kZero = 1, kNonfinite = 2, kEmpty = 4 };

struct RowMomentsArgs {
  const void* const* layers;  // (L) first elements, each a view of shape and strides `rows`
  int64_t n_layers;
  RowView rows;           // rows.data is not read
  const int64_t* groups;  // (n) in [0, G), or -1 for a row to pass over; null: row i is in group i mod G
  MomentSums sums;
  uint8_t* status;  // (L, n) or null
  int threads;
};

// One read of x (L, n, d).
void row_moments(const RowMomentsArgs& args);

// The mean pairwise cosine of each layer, and the sums that its gradient needs. All results are written, not added to;
// those after `cosine` may be null together, `shortest` also alone.
struct MeanPairwiseCosineArgs {
  const void* const* layers;  // (L) first elements, each a view of shape and strides `rows`
  int64_t n_layers;
  RowView rows;       // rows.data is not read
  double* cosine;     // (L) (‖Σ u‖² − Σ‖u‖²) / (n(n−1)); NaN where there is no pair
  int64_t* left_out;  // (L) rows left out: squared norm zero, or not finite in float64
  double* unit_sum;   // (L, d) contiguous, Σ u
  int64_t* count;     // (L) n, the rows used
  double* shortest;   // (L) the least ‖x‖ of the rows used; infinity where there is none
  int threads;
};

// One read of x (L, n, d).
void mean_pairwise_cosine(const MeanPairwiseCosineArgs& args);

// Hidden states of one or many layers with the tokens to use: padded (B, T, d) with a mask, or packed (N, d).
struct HiddenStates {
  const void* const* layers;  // (L) first elements
  int64_t n_layers;
  DType dtype;
  int64_t n_sentences;  // B
  int64_t n_tokens;     // T; packed: N
  int64_t d;
  int64_t sentence_stride, token_stride, col_stride;  // in elements; packed: sentence_stride is not read
  const uint8_t* mask;                                // (B, T) contiguous, 0 or 1; null: packed
  const int64_t* cu_seqlens;                          // (B + 1) first rows of the packed sentences; null: padded
};

// The least ‖g‖/T of a sentence that has a direction, where g = Σ u of its T tokens that were used. What float32 leaves
// of unit vectors that cancel is shorter. cone_kernels/sums.py has the same number.
constexpr double kLeastMeanUnit = 0x1p-20;

struct PoolMomentsArgs {
  HiddenStates hidden;
  const int64_t* groups;         // (B) in [0, G)
  void* pooled;                  // (L, B, d) contiguous, float32, or float64 for float64 input
  MomentSums sums;               // token level
  double* sentence_sq_sum;       // (L, G) Σ ‖g‖², g = Σ u over the tokens of one sentence
  double* sentence_size_sq_sum;  // (L, G) Σ T², T = tokens of one sentence that were used
  int64_t* n_sentences;          // (L, G) sentences with at least one token used
  double* sentence_unit_sum;     // (L, G, d) Σ g/‖g‖ of the sentences that have a direction
  int64_t* n_cancelled;          // (L, G) sentences with a token used that have none
  uint8_t* status;               // (L, B): bits of what the sentence's tokens were left out for, or kEmpty
  int threads;
};

// One read of the tokens whose mask is 1. The pooled vector of a sentence is the mean over all of its tokens, as plain
// masked mean pooling has it: NaN where it has none or where one of them is not finite in that column.
void pool_moments(const PoolMomentsArgs& args);

struct MaskedMeanPoolArgs {
  HiddenStates hidden;
  void* pooled;  // (L, B, d), as in PoolMomentsArgs
  int threads;
};

// The pooled vectors of pool_moments alone, without its sums.
void masked_mean_pool(const MaskedMeanPoolArgs& args);

}  // namespace cone
