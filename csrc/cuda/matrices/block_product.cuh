// Products of each layer's matrix with its newest block of vectors, eight at a time: of a covariance in float64, or of
// data, whose rows are read once and whose covariance is never formed.
#pragma once

#include "cuda/common/launch.cuh"
#include "cuda/matrices/krylov_state.cuh"
#include "cuda/matrices/lane_sums.cuh"

namespace cone {
namespace cuda {
namespace {

constexpr int kVectors = 8;  // vectors that are multiplied together
constexpr int kProductThreads = 256, kProductWarps = kProductThreads / 32;
constexpr int kWarpOfRows = 4;  // rows that a warp multiplies at once
constexpr int kBlockOfRows = kProductWarps * kWarpOfRows;
constexpr int kCovarianceChunk = 256;  // columns whose vectors are in shared memory
constexpr int kDataChunk = 2048;

// Elements as they are, or scaled and less the centre, in the type of the products.
struct Plain {
  template <class T>
  __device__ __forceinline__ T operator()(float value, T) const {
    return T(value);
  }
};
struct Centred {
  float scale;
  __device__ __forceinline__ float operator()(float value, float center) const { return value * scale - center; }
};

// vectors[c, l] of columns first + l < d of the block's newest vectors `group`, 0 beyond; centers[l] too where wanted.
template <class T>
__device__ __forceinline__ void stage_vectors(const Krylov& krylov, int64_t layer, int64_t group, int64_t first,
                                              int chunk, T* vectors, T* centers) {
  const LayerState& state = krylov.states[layer];
  const double* basis = krylov.basis + (layer * krylov.capacity + state.size + group * kVectors) * krylov.d;
  const int count = int(state.fresh - group * kVectors);
  for (int e = int(threadIdx.x); e < kVectors * chunk; e += kProductThreads) {
    const int64_t c = e / chunk, column = first + e % chunk;
    vectors[e] = c < count && column < krylov.d ? T(basis[c * krylov.d + column]) : T(0);
  }
  if (centers)
    for (int l = int(threadIdx.x); l < chunk; l += kProductThreads)
      centers[l] = first + l < krylov.d ? T(krylov.center[layer * krylov.d + first + l]) : T(0);
}

// Adds products of kWarpOfRows rows from `row` on with the staged columns to sums (rows, vectors); rows from `end` on
// are zero.
template <class T, class In, class Element>
__device__ __forceinline__ void multiply_rows(const Rows<In>& x, int64_t layer, int64_t row, int64_t end, int64_t first,
                                              int chunk, bool whole, const Element& element, const T* vectors,
                                              const T* centers, T (&sums)[kWarpOfRows * kVectors]) {
  const int64_t left = x.d - first;
  const int columns = left < chunk ? int(left) : chunk;
  for (int l = int(threadIdx.x) % 32 * 2; l < columns; l += 64) {
    T values[kWarpOfRows][2];
#pragma unroll
    for (int r = 0; r < kWarpOfRows; ++r) {
      float two[2] = {0, 0};
      const bool inside = row + r < end;
      if (inside) load_columns(x, layer, row + r, first + l, whole && l + 1 < columns, two);
#pragma unroll
      for (int s = 0; s < 2; ++s) values[r][s] = inside ? element(two[s], centers ? centers[l + s] : T(0)) : T(0);
    }
#pragma unroll
    for (int c = 0; c < kVectors; ++c) {
      const T v0 = vectors[c * chunk + l], v1 = vectors[c * chunk + l + 1];
#pragma unroll
      for (int r = 0; r < kWarpOfRows; ++r) sums[r * kVectors + c] += values[r][0] * v0 + values[r][1] * v1;
    }
  }
}

// image = scale · C v: one block for kBlockOfRows rows of a symmetric matrix.
template <class In>
__global__ void __launch_bounds__(kProductThreads) multiply_covariance(Rows<In> x, bool whole, Krylov krylov) {
  double* vectors = shared_memory<double>();  // (kVectors, kCovarianceChunk)
  const int64_t layer = blockIdx.z, group = blockIdx.y;
  const LayerState& state = krylov.states[layer];
  if (krylov.done[layer] || group * kVectors >= state.fresh) return;
  const int64_t row = int64_t(blockIdx.x) * kBlockOfRows + int(threadIdx.x) / 32 * kWarpOfRows;
  double sums[kWarpOfRows * kVectors] = {};
  for (int64_t first = 0; first < x.d; first += kCovarianceChunk) {
    __syncthreads();
    stage_vectors<double>(krylov, layer, group, first, kCovarianceChunk, vectors, nullptr);
    __syncthreads();
    multiply_rows<double>(x, layer, row, x.n, first, kCovarianceChunk, whole, Plain(), vectors, nullptr, sums);
  }
  const double sum = sums_of_lanes(sums);
  const int64_t r = row + threadIdx.x % 32 / kVectors, c = group * kVectors + threadIdx.x % kVectors;
  if (r < x.n && c < state.fresh)
    krylov.image[(layer * krylov.capacity + state.size + c) * x.d + r] = sum * state.scale;
}

// partial (L, segments, groups, kVectors, d): Σ x (x · v) over one segment of the rows, float32 within kBlockOfRows
// rows. The rows of such a block are read a second time while they are in the cache.
template <class In>
__global__ void __launch_bounds__(kProductThreads) multiply_data(Rows<In> x, bool whole, Krylov krylov) {
  float* vectors = shared_memory<float>();  // (kVectors, kDataChunk)
  float* centers = vectors + kVectors * kDataChunk;
  float* products = centers + kDataChunk;  // (kBlockOfRows, kVectors)
  const int64_t layer = blockIdx.z, group = blockIdx.y, segment = blockIdx.x, d = x.d;
  const LayerState& state = krylov.states[layer];
  if (krylov.done[layer] || group * kVectors >= state.fresh) return;
  const int64_t begin = segment * krylov.segment_rows;
  const int64_t end = begin + krylov.segment_rows < x.n ? begin + krylov.segment_rows : x.n;
  const Centred element = {float(state.element_scale)};
  const float* center = krylov.center + layer * d;
  double* out = krylov.partial + ((layer * gridDim.x + segment) * gridDim.y + group) * kVectors * d;
  const int own = int(threadIdx.x) / 32 * kWarpOfRows;
  for (int64_t block = begin; block < end; block += kBlockOfRows) {
    float sums[kWarpOfRows * kVectors] = {};
    for (int64_t first = 0; first < d; first += kDataChunk) {
      if (block == begin || d > kDataChunk) {
        __syncthreads();
        stage_vectors<float>(krylov, layer, group, first, kDataChunk, vectors, centers);
        __syncthreads();
      }
      multiply_rows<float>(x, layer, block + own, end, first, kDataChunk, whole, element, vectors, centers, sums);
    }
    products[own * kVectors + int(threadIdx.x) % 32] = sums_of_lanes(sums);
    __syncthreads();
    const int rows = int(end - block < kBlockOfRows ? end - block : kBlockOfRows);
    for (int64_t j = int64_t(threadIdx.x) * 2; j < d; j += kProductThreads * 2) {
      const int columns = d - j < 2 ? 1 : 2;
      const float centers_of[2] = {center[j], center[j + columns - 1]};
      float added[2][kVectors] = {};
#pragma unroll 4
      for (int r = 0; r < rows; ++r) {
        float two[2];
        load_columns(x, layer, block + r, j, whole && columns == 2, two);
#pragma unroll
        for (int s = 0; s < 2; ++s) {
          const float value = element(two[s], centers_of[s]);
#pragma unroll
          for (int c = 0; c < kVectors; ++c) added[s][c] += value * products[r * kVectors + c];
        }
      }
#pragma unroll
      for (int c = 0; c < kVectors; ++c)
        for (int s = 0; s < columns; ++s) {
          double& total = out[c * d + j + s];
          total = (block == begin ? 0 : total) + double(added[s][c]);
        }
    }
    __syncthreads();
  }
}

// image = scale · C v from the partial sums. The centre was rounded to float32 by e, which adds n e eᵀ to the
// covariance; that is subtracted here.
__global__ void __launch_bounds__(kProductThreads)
    add_segments(Krylov krylov, int64_t segments, double n, double divisor) {
  double* along = shared_memory<double>();  // (kVectors)
  const int64_t layer = blockIdx.z, group = blockIdx.y, d = krylov.d;
  const LayerState& state = krylov.states[layer];
  const int64_t first = state.size + group * kVectors, left = state.fresh - group * kVectors;
  if (krylov.done[layer] || left <= 0) return;
  const int count = left < kVectors ? int(left) : kVectors, warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const double* error = krylov.center_error + layer * d;
  const double* basis = krylov.basis + (layer * krylov.capacity + first) * d;
  static_assert(kProductWarps == kVectors);
  double dot[1] = {0};
  if (warp < count)
    for (int64_t j = lane; j < d; j += 32) dot[0] += error[j] * basis[warp * d + j];
  const double sum = sums_of_lanes(dot);
  if (lane == 0) along[warp] = sum;
  __syncthreads();
  const int64_t j = int64_t(blockIdx.x) * kProductThreads + threadIdx.x;
  if (j >= d) return;
  for (int c = 0; c < count; ++c) {
    double total = 0;
    for (int64_t s = 0; s < segments; ++s)
      total += krylov.partial[(((layer * segments + s) * gridDim.y + group) * kVectors + c) * d + j];
    krylov.image[(layer * krylov.capacity + first + c) * d + j] = (total - n * along[c] * error[j]) / divisor;
  }
}

// partial (L, segments, 2, d): column sums and largest magnitudes of one segment.
template <class In>
__global__ void __launch_bounds__(kProductThreads) sum_columns(Rows<In> x, Krylov krylov) {
  const int64_t layer = blockIdx.z, j = int64_t(blockIdx.x) * kProductThreads + threadIdx.x;
  const int64_t begin = int64_t(blockIdx.y) * krylov.segment_rows;
  const int64_t end = begin + krylov.segment_rows < x.n ? begin + krylov.segment_rows : x.n;
  if (j >= x.d) return;
  double sum = 0;
  float largest = 0;
#pragma unroll 8
  for (int64_t row = begin; row < end; ++row) {
    const float value = widen(*x.at(layer, row, j));
    sum += double(value);
    largest = fabs(value) > largest ? float(fabs(value)) : largest;
  }
  double* out = krylov.partial + (layer * gridDim.y + blockIdx.y) * 2 * x.d;
  out[j] = sum;
  out[x.d + j] = double(largest);
}

}  // namespace
}  // namespace cuda
}  // namespace cone
