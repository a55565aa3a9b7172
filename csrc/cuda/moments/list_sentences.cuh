// The plan by which warps share out the sentences of a layer.
#pragma once

#include "cuda/moments/warp_moments.cuh"

namespace cone {
namespace cuda {

// What the level of pooled vectors needs beside the plan.
struct PooledList {
  int64_t* order;    // (B) the sentences with a token, group by group
  int64_t* starts;   // (G + 1) where groups start in it
  int32_t* before;   // (B + 1) how many of them come before each sentence of the plan's order
  int64_t* n_empty;  // (L, G) added to
  int64_t n_layers;
  double* zeros;  // (n_zeros) is cleared
  int64_t n_zeros;
};

// Fills in `first`, `rows`, `cuts` and `parts_of` of a plan that has `order` and `starts`, by one block; and `pooled`,
// where it is not null.
void list_sentences(const HiddenStates& hidden, int groups, const TokenPlan& plan, const PooledList* pooled,
                    const Queue& queue);

}  // namespace cuda
}  // namespace cone
