// The end of sums that many blocks have left in rows: by a block for a tile of columns, by a warp for single numbers.
#pragma once

#include "cuda/common/block_sums.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/ptx.cuh"
#include "cuda/moments/moments.cuh"

namespace cone {
namespace cuda {

constexpr int kTileColumns = 32, kTileRows = 8, kTileThreads = kTileColumns * kTileRows;
__host__ __device__ constexpr int tiles_of(int64_t d) { return int((d + kTileColumns - 1) / kTileColumns); }

// The sum of n rows of partial sums, for a tile of 32 columns, in the lanes of the first warp: eight warps take every
// eighth row each, and read eight of them before they add the first. scalars, or null: row i was written only where
// scalars[i · scalar_stride] is not zero.
__device__ inline double sum_of_tile(const double* from, int64_t n, int64_t row_stride, int64_t d,
                                     const double* scalars, int64_t scalar_stride, int64_t column) {
  constexpr int kAtOnce = 8;
  double* of_warps = shared_memory<double>();  // (kTileRows, kTileColumns)
  double total = 0;
  for (int64_t first = warp_of_thread(); first < n; first += kTileRows * kAtOnce) {
    bool written[kAtOnce];
    double value[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int64_t i = first + k * kTileRows;
      written[k] = column < d && i < n && (scalars == nullptr || scalars[i * scalar_stride + kCount] > 0);
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) value[k] = written[k] ? from[(first + k * kTileRows) * row_stride + column] : 0;
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) total += value[k];
  }
  of_warps[threadIdx.x] = total;
  __syncthreads();
  if (warp_of_thread() > 0) return 0;
  for (int warp = 1; warp < kTileRows; ++warp) total += of_warps[warp * kTileColumns + lane_of_thread()];
  return total;
}

// Adds it to one row.
__device__ inline void add_tile(double* to, const double* from, int64_t n, int64_t row_stride, int64_t d,
                                const double* scalars, int64_t scalar_stride, int64_t column) {
  const double total = sum_of_tile(from, n, row_stride, d, scalars, scalar_stride, column);
  if (warp_of_thread() == 0 && column < d) add_to(to + column, total);
}

// The sum of n numbers that are so far apart, in every lane of a warp.
__device__ inline double sum_by_lanes(const double* from, int64_t n, int64_t stride) {
  double sum = 0;
  for (int64_t i = lane_of_thread(); i < n; i += kWarpSize) sum += from[i * stride];
  return sum_of_lanes(sum);
}

}  // namespace cuda
}  // namespace cone
