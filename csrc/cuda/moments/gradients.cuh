// Launchers of the backward kernels on a GPU. What they compute, and how exactly, is said in cone/gradients.h.
#pragma once

#include "cone/gradients.h"
#include "cuda/moments/moments.cuh"

namespace cone {
namespace cuda {

void mean_pairwise_cosine_backward(const MeanPairwiseCosineBackwardArgs& args, const Queue& queue);
// Aligned rows of up to 1024 columns, which a warp takes whole; all others are shared by the warps of a block.
bool warps_take_rows(const MeanPairwiseCosineBackwardArgs& args);
void mean_pairwise_cosine_backward_by_warps(const MeanPairwiseCosineBackwardArgs& args, const Queue& queue);
void masked_mean_pool_backward(const MaskedMeanPoolBackwardArgs& args, const Queue& queue);

}  // namespace cuda
}  // namespace cone
