// What the kernels of warp_moments take, and their launch; each element type is compiled by itself, side by side.
#pragma once

#include "cuda/common/block_sums.cuh"
#include "cuda/common/layers.cuh"
#include "cuda/common/ptx.cuh"
#include "cuda/moments/warp_moments.cuh"

namespace cone {
namespace cuda {

struct WarpParams {
  Layers layers;
  int n_layers;  // of this launch
  int teams;     // warps of a block
  PoolMomentsArgs tokens;
  TokenPlan plan;
  WarpPartials partials;
  uint8_t* pooled_status;  // (L, B): 0, or kEmpty; or null
};

__device__ __forceinline__ void add_group_scalars(const PoolMomentsArgs& to, int64_t at,
                                                  const double (&scalars)[kGroupScalars]) {
  add_to(to.sums.count + at, int64_t(scalars[kUsedRows]));
  add_to(to.sums.n_zero + at, int64_t(scalars[kZeros]));
  add_to(to.sums.n_nonfinite + at, int64_t(scalars[kNonfinites]));
  add_to(to.sums.unit_sq_total + at, scalars[kUnitSquares]);
  add_to(to.sentence_sq_sum + at, scalars[kSentenceSquares]);
  add_to(to.sentence_size_sq_sum + at, scalars[kSizeSquares]);
  add_to(to.n_sentences + at, int64_t(scalars[kUsedSentences]));
  add_to(to.n_cancelled + at, int64_t(scalars[kCancelledSentences]));
}

// Launches the kernel for rows of so many octets a lane.
template <class In>
void launch_warps(const WarpParams& params, int octets, unsigned blocks, size_t shared_bytes, const Queue& queue);

}  // namespace cuda
}  // namespace cone
