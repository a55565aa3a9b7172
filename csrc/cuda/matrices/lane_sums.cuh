// Sums over the lanes of a warp, in a fixed order.
#pragma once

#include "cuda/matrices/matrix_rows.cuh"

namespace cone {
namespace cuda {
namespace {

// One step: a lane keeps one half of its values, adds the other lane's, and gives the other half away.
template <int kHalf, class T>
__device__ __forceinline__ void fold_lanes(T* values, unsigned bit) {
  const bool upper = (threadIdx.x & bit) != 0;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const T give = upper ? values[i] : values[i + kHalf];
    values[i] = (upper ? values[i + kHalf] : values[i]) + __shfl_xor_sync(kAllLanes, give, int(bit));
  }
  if constexpr (kHalf > 1) fold_lanes<kHalf / 2>(values, bit / 2);
}

// kCount sums over all lanes at once, a power of two: 32 values take 31 shuffles and not 160. Lane i gets the sum of
// value i / (32 / kCount).
template <int kCount, class T>
__device__ __forceinline__ T sums_of_lanes(T (&values)[kCount]) {
  if constexpr (kCount > 1) fold_lanes<kCount / 2>(values, 16u);
#pragma unroll
  for (int bit = 16 / kCount; bit > 0; bit /= 2) values[0] += __shfl_xor_sync(kAllLanes, values[0], bit);
  return values[0];
}

}  // namespace
}  // namespace cuda
}  // namespace cone
