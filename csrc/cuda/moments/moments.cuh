// Launchers of row_moments, pool_moments and masked_mean_pool on a GPU. What the ops mean, and the precision of the
// sums, is said in cone/moments.h; this adds how the work is cut into parts and the memory for their partial sums.
//
// Repeatability: a part's sums are added in the order of its rows, and parts in the order of their numbers.
#pragma once

#include <cuda_runtime.h>

#include <vector>

#include "cone/moments.h"
#include "cuda/common/queue.h"

namespace cone {
namespace cuda {

// Items (rows or sentences) that each part of a layer takes, as cone_kernels/kernels/segments.py says.
struct Segments {
  int64_t items, groups;
  int group_parts, slices;
  const int64_t* order;   // (items), or null: item k of group g is g + k·groups
  const int64_t* starts;  // (groups + 1) where groups start in `order`

  __host__ __device__ int parts() const { return group_parts * slices; }
};

// Sums by group and slice, one after the other; counts are exact in float64.
enum Scalar : int {
  kCount,
  kZeroRows,
  kNonfiniteRows,
  kUnitSqTotal,
  kNormSum,
  kNormSqSum,
  kSentenceSqSum,
  kSentenceSizeSqSum,
  kSentences,
  kScalars
};

// Memory for the sums of parts. L layers, P parts, G groups, S slices; wide rows are taken in so many slabs of columns.
struct MomentPartials {
  double* columns;   // (L, P, 3, d) Σ x, Σ x_j², Σ u_j²; null where only Σ u is wanted
  double* units;     // (L, G, S, d) Σ u, written where rows were used; null where S = 1
  double* scalars;   // (L, G, S, slabs, kScalars) zeros
  double* norms_sq;  // (L, rows) ‖x‖² of every row or token; null where there is one slab
  int slabs;
};

// How many slabs of columns these rows are taken in on this device: 1 where one read of them is enough.
int row_moment_slabs(const RowMomentsArgs& rows, int device);
int pool_moment_slabs(const HiddenStates& hidden, int device);

struct RowMomentsLaunch {
  RowMomentsArgs rows;  // groups is not read
  Segments segments;
  MomentPartials partials;
};
void row_moments(const RowMomentsLaunch& launch, const Queue& queue);

// What mean_pairwise_cosine writes of each of L layers.
struct CosineResults {
  double* cosine;     // (L)
  int64_t* left_out;  // (L) rows
  double* unit_sum;   // (L, d) Σ u
  int64_t* count;     // (L) rows that are not left out
};

// Bytes of memory that mean_pairwise_cosine takes on a device; 0 where the rows are not aligned, or too wide for a warp
// or for the shared memory of a block.
int64_t mean_pairwise_cosine_workspace(const void* const* layers, int64_t n_layers, const RowView& rows, int device);

// The cosine of such rows, in two launches. `memory` is of 16 bytes or more alignment.
void mean_pairwise_cosine(const void* const* layers, int64_t n_layers, const RowView& rows,
                          const CosineResults& results, void* memory, const Queue& queue);

// Which rows of a layer are the tokens of a sentence that count.
struct TokenLists {
  const int32_t* positions;   // (B, T) the tokens that count, from the first place on; null: packed
  const int32_t* sizes;       // (B) how many; null: packed
  const int64_t* cu_seqlens;  // (B + 1); null: padded

  __host__ __device__ bool padded() const { return cu_seqlens == nullptr; }
};

struct PoolMomentsLaunch {
  PoolMomentsArgs tokens;  // groups is not read
  TokenLists lists;
  Segments segments;  // `order` is not null
  MomentPartials partials;
  float* mean_units;  // (L, B, d) memory for Σ u / T of each sentence
};
void pool_moments(const PoolMomentsLaunch& launch, const Queue& queue);

void masked_mean_pool(const MaskedMeanPoolArgs& args, const TokenLists& lists, const Queue& queue);

// The compute capabilities whose machine code the kernels have, times 100; the highest one's PTX is there too.
std::vector<int> architectures();

// Writes the positions (B, T) and sizes (B) of the tokens that a mask (B, T) keeps.
void list_tokens(const uint8_t* mask, int64_t n_sentences, int64_t n_tokens, int32_t* positions, int32_t* sizes,
                 const Queue& queue);

// Writes the items (items) of groups 0, 1, … one group after the other, each in their order, and where each group
// starts (groups + 1). Before the first start there is room for the items of group -1, which is not written.
void list_items(const int64_t* group_of, int64_t items, int64_t groups, int64_t* order, int64_t* starts,
                const Queue& queue);

}  // namespace cuda
}  // namespace cone
