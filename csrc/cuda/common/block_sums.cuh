// Sums over the lanes of a warp and the warps of a block, in a fixed order.
#pragma once

#include "cuda/common/row_loads.cuh"

namespace cone {
namespace cuda {

__device__ __forceinline__ int lane_of_thread() { return int(threadIdx.x) % kWarpSize; }
__device__ __forceinline__ int warp_of_thread() { return int(threadIdx.x) / kWarpSize; }
__device__ __forceinline__ int warps_of_block() { return int(blockDim.x) / kWarpSize; }

// The sum over all lanes, in every lane.
template <class T>
__device__ __forceinline__ T sum_of_lanes(T value) {
#pragma unroll
  for (int bit = kWarpSize / 2; bit > 0; bit /= 2) value += __shfl_xor_sync(kAllLanes, value, bit);
  return value;
}

// N sums over all lanes at once: each step halves the number of values that a lane still adds, so that eight values
// take nine shuffles and not forty. Lane i gets the sum of value i / (32 / N).
template <int N, class T>
__device__ __forceinline__ T sums_of_lanes(T (&values)[N]) {
  int bit = kWarpSize / 2;
#pragma unroll
  for (int half = N / 2; half > 0; half /= 2, bit /= 2) {
    const bool upper = (lane_of_thread() & bit) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const T give = upper ? values[i] : values[i + half];
      values[i] = (upper ? values[i + half] : values[i]) + __shfl_xor_sync(kAllLanes, give, bit);
    }
  }
#pragma unroll
  for (; bit > 0; bit /= 2) values[0] += __shfl_xor_sync(kAllLanes, values[0], bit);
  return values[0];
}

// N sums over a block's threads, with one barrier: two buffers take turns, so that no warp writes what another reads.
template <int N, class T>
class BlockSums {
 public:
  static constexpr int kLanesPerSum = kWarpSize / N;

  static __host__ __device__ constexpr int bytes(int warps) { return warps > 1 ? int(2 * N * sizeof(T)) * warps : 0; }

  __device__ __forceinline__ explicit BlockSums(void* memory) : of_warps_(static_cast<T*>(memory)) {}

  // Lane i of every warp gets the sum of value i / kLanesPerSum.
  __device__ __forceinline__ T operator()(T (&values)[N]) {
    const T of_warp = sums_of_lanes(values);
    const int warps = warps_of_block();
    if (warps == 1) return of_warp;
    const int which = lane_of_thread() / kLanesPerSum, place = lane_of_thread() % kLanesPerSum;
    T* buffer = of_warps_ + turn_ * N * warps;
    turn_ ^= 1;
    if (place == 0) buffer[which * warps + warp_of_thread()] = of_warp;
    __syncthreads();
    T total = 0;
#pragma unroll 1
    for (int warp = place; warp < warps; warp += kLanesPerSum) total += buffer[which * warps + warp];
#pragma unroll
    for (int bit = kLanesPerSum / 2; bit > 0; bit /= 2) total += __shfl_xor_sync(kAllLanes, total, bit);
    return total;
  }

 private:
  T* of_warps_;
  int turn_ = 0;
};

}  // namespace cuda
}  // namespace cone
