// pool_moments where a warp takes whole rows: aligned rows of at most 1024 columns. See warp_moments.cu.
#pragma once

#include "cuda/moments/moments.cuh"

namespace cone {
namespace cuda {

constexpr int kMostOctets = 4;  // eight columns each, of a lane
constexpr int kMostWarpColumns = kMostOctets * 256;

// The most warps of a block, of which there is one on a multiprocessor: as many as find registers for their sums.
__host__ __device__ constexpr int most_warps(int octets) { return octets == 1 ? 12 : 8; }

// The sums of a group that a part of a layer leaves, one after the other; counts are exact in float64.
enum GroupScalar : int {
  kUsedRows,
  kZeros,
  kNonfinites,
  kUnitSquares,
  kSentenceSquares,
  kSizeSquares,
  kUsedSentences,
  kCancelledSentences,
  kGroupScalars
};

constexpr int64_t kRowUnit = 16;  // bytes; rows are aligned to it

// The most rows whose norms a warp takes together.
constexpr int kMostBatch = 4;

// What a warp notes in shared memory, behind the sums of all warps.
struct WarpNotes {
  // Σ‖x‖ and Σ‖x‖² of the part, Σ‖u‖² of the group; at place i those of rows that were number i of their batch, added
  // by the lane that has such a row's norm, and at place 0 those of unsafe rows too.
  double norm_sum[kMostBatch], norm_sq_sum[kMostBatch], unit_sq[kMostBatch];
  // Of the group that it adds; lane 0 writes them.
  double size_squares;
  int used, n_sentences, n_cancelled, n_zero, n_nonfinite;
  // For the end of the block: the layer of this launch, or -1 where it has none, and which sums are in float64 too.
  int layer, in_wide;
};

// Which part of a layer takes which sentences: the same parts for every layer.
struct TokenPlan {
  int parts;              // P
  const int64_t* order;   // (B) the sentences, group by group
  const int64_t* starts;  // (G + 1) where groups start in `order`
  int32_t* first;         // (B + 1) tokens of the sentences before, in that order
  int32_t* cuts;          // (P + 1) where parts start in `order`
  uint32_t* rows;     // (tokens that count) where each one's row is, by 16 bytes from a layer's first, in that order
  int32_t* parts_of;  // (G, 2) the first and the last part with sentences of a group; 0, 0 of a group with none
};

// Memory that warps leave their sums in. W = count · P warps of a launch.
struct WarpPartials {
  double* units;    // (W, 2, 2, d) Σ u and Σ g/‖g‖ of the first and of the last group, where other parts have of it too
  double* scalars;  // (W, 2, kGroupScalars) of the same groups
  double* norms;    // (W, 2) Σ‖x‖, Σ‖x‖²
  double* columns;  // (blocks + layers, 3, d) Σ x, Σ x_j², Σ u_j²: of block b's warps of layer l at b + l
  double* wide;     // (W, kWideFields, columns of a warp) float64 sums of a warp, where float32 has had its share
};

enum WideField : int {
  kWideSum,
  kWideSq,
  kWideUnitSq,
  kWideUnit,
  kWideDirection,
  kWideRunSum,
  kWideRunUnit,
  kWideFields
};

// Where the sums of the pooled vectors go.
struct SentenceLevel {
  MomentSums sums;
  int64_t* n_empty;  // (L, G) sentences without a token; added to
  uint8_t* status;   // (L, B) what a vector was left out for, kEmpty for a sentence without a token
};

// Bytes of memory that warp_moments takes on a device, for both levels or for tokens alone; 0 where the rows are not
// aligned or too wide for a warp.
int64_t warp_moments_workspace(const HiddenStates& hidden, int64_t groups, bool both_levels, int device);

// pool_moments of such rows, of which `groups` is read, in four launches; and row_moments of the pooled vectors, in two
// more, where `sentences` is not null. `memory` is of 16 bytes or more alignment.
void warp_moments(const PoolMomentsArgs& args, const SentenceLevel* sentences, void* memory, const Queue& queue);

}  // namespace cuda
}  // namespace cone
