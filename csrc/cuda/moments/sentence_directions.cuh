// The end of pool_moments by blocks, which may have no more than a slab of a sentence's columns: Σ g/‖g‖ by group, from
// each sentence's mean unit vector.
#pragma once

#include "cuda/moments/moments.cuh"

namespace cone {
namespace cuda {

// Adds to the sentence_unit_sum and the n_cancelled of `args`. mean_units: (L, B, d) g/T of each sentence, T its tokens
// that were used; NaN where there is none.
void add_directions(const PoolMomentsArgs& args, const float* mean_units, const Segments& segments, const Queue& queue);

}  // namespace cuda
}  // namespace cone
