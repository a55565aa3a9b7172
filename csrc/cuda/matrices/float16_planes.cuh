// Rows less a pilot as two float16 planes, high + low, each column scaled by a power of two: 22 bits of every value.
// 16-bit rows that cannot be loaded 16 bytes at a time are copied into one plane as they are.
#pragma once

#include "cuda/common/launch.cuh"
#include "cuda/common/ptx.cuh"
#include "cuda/matrices/matrix_rows.cuh"

namespace cone {
namespace cuda {
namespace {

constexpr int kPlaneThreads = 256, kPlaneWarps = kPlaneThreads / 32;
constexpr int kPlaneColumns = 128, kLaneColumns = kPlaneColumns / 32;  // a warp takes a row of them
constexpr int kPartRows = 256;                                         // of a block, which sums them by column

// A column's largest magnitude goes to [2^13, 2^14): float16 ends at 2^16, and lost bits are below 2^-24.
constexpr int kLargestExponent = 13;

// Rows to make planes of; all pointers start at the first of the layers and rows that are taken together.
template <class In>
struct GivenRows {
  Rows<In> rows;
  const uint8_t* use;
  const double* weights;
  int64_t row_numbers;  // per layer, of use and weights
  const double* pilot;  // (layers, d)
  bool whole;           // see load_columns

  __device__ __forceinline__ bool takes(int64_t layer, int64_t row) const {
    return row < rows.n && (use == nullptr || use[layer * row_numbers + row] != 0);
  }
};

// (x · weight − pilot) · scale = high + low.
struct Planes {
  uint16_t *high, *low;  // (layers, rows, pitch); raw rows have no low
  int64_t rows, pitch;   // pitch is a multiple of 8, columns behind d are zero
  double* largest;       // (layers, parts, pitch) largest magnitude by column; NaN is passed over
  double* sums;          // (layers, parts, pitch) Σ (x · weight − pilot) before rounding
  double* unscale;       // (layers, pitch) 1 / scale
  double* counts;        // (layers, parts) rows taken
};

// Columns j.. of a row: x · weight − pilot.
template <class In>
__device__ __forceinline__ void row_less_pilot(const GivenRows<In>& given, int64_t layer, int64_t row, int64_t j,
                                               const double (&pilot)[kLaneColumns], double (&values)[kLaneColumns]) {
  float raw[kLaneColumns];
  load_columns(given.rows, layer, row, j, given.whole && j + kLaneColumns <= given.rows.d, raw);
  const double weight = given.weights ? given.weights[layer * given.row_numbers + row] : 1;
  for (int c = 0; c < kLaneColumns; ++c) values[c] = j + c < given.rows.d ? double(raw[c]) * weight - pilot[c] : 0;
}

template <class In>
__device__ __forceinline__ void load_pilot(const GivenRows<In>& given, int64_t layer, int64_t j,
                                           double (&pilot)[kLaneColumns]) {
  for (int c = 0; c < kLaneColumns; ++c)
    pilot[c] = given.pilot && j + c < given.rows.d ? given.pilot[layer * given.rows.d + j + c] : 0;
}

// largest[layer, part, columns of the block].
template <class In>
__global__ void __launch_bounds__(kPlaneThreads) find_largest(GivenRows<In> given, Planes planes) {
  double* of_warps = shared_memory<double>();  // (kPlaneWarps, kPlaneColumns)
  const int64_t layer = blockIdx.z, part = blockIdx.y;
  const int warp = int(threadIdx.x) / 32, lane_column = int(threadIdx.x) % 32 * kLaneColumns;
  const int64_t j = int64_t(blockIdx.x) * kPlaneColumns + lane_column;
  double pilot[kLaneColumns], values[kLaneColumns], largest[kLaneColumns] = {};
  load_pilot(given, layer, j, pilot);
  for (int r = warp; r < kPartRows; r += kPlaneWarps) {
    const int64_t row = part * kPartRows + r;
    if (!given.takes(layer, row) || j >= given.rows.d) continue;
    row_less_pilot(given, layer, row, j, pilot, values);
    for (int c = 0; c < kLaneColumns; ++c) largest[c] = fabs(values[c]) > largest[c] ? fabs(values[c]) : largest[c];
  }
  for (int c = 0; c < kLaneColumns; ++c) of_warps[warp * kPlaneColumns + lane_column + c] = largest[c];
  __syncthreads();
  const int64_t column = int64_t(blockIdx.x) * kPlaneColumns + threadIdx.x;
  if (threadIdx.x >= kPlaneColumns || column >= planes.pitch) return;
  double most = 0;
  for (int w = 0; w < kPlaneWarps; ++w) {
    const double other = of_warps[w * kPlaneColumns + threadIdx.x];
    most = other > most ? other : most;
  }
  planes.largest[(layer * gridDim.y + part) * planes.pitch + column] = most;
}

__device__ __forceinline__ unsigned pair_of(uint16_t first, uint16_t second) { return first | unsigned(second) << 16; }

__device__ __forceinline__ void store_columns(uint16_t* to, const uint16_t (&values)[kLaneColumns]) {
  store_two(reinterpret_cast<unsigned*>(to), pair_of(values[0], values[1]), pair_of(values[2], values[3]));
}

// The planes of one part of the rows, its column sums, and how many rows it takes. Rows not taken become zeros.
template <class In>
__global__ void __launch_bounds__(kPlaneThreads) write_planes(GivenRows<In> given, Planes planes) {
  double* scales = shared_memory<double>();   // (kPlaneColumns)
  double* of_warps = scales + kPlaneColumns;  // (kPlaneWarps, kPlaneColumns)
  const int64_t layer = blockIdx.z, part = blockIdx.y, first_column = int64_t(blockIdx.x) * kPlaneColumns;
  const int warp = int(threadIdx.x) / 32, lane_column = int(threadIdx.x) % 32 * kLaneColumns;
  const int64_t column = first_column + threadIdx.x, j = first_column + lane_column;
  const bool owns_column = threadIdx.x < kPlaneColumns && column < planes.pitch;
  if (owns_column) {
    double most = 0;
    for (int64_t p = 0; p < gridDim.y; ++p) {
      const double other = planes.largest[(layer * gridDim.y + p) * planes.pitch + column];
      most = other > most ? other : most;
    }
    scales[threadIdx.x] = scale_towards(most, kLargestExponent);
    if (part == 0) planes.unscale[layer * planes.pitch + column] = 1 / scales[threadIdx.x];
  }
  __syncthreads();

  double pilot[kLaneColumns], values[kLaneColumns], scale[kLaneColumns], sums[kLaneColumns] = {};
  load_pilot(given, layer, j, pilot);
  for (int c = 0; c < kLaneColumns; ++c) scale[c] = scales[lane_column + c];
  int taken = 0;
  for (int r = warp; r < kPartRows; r += kPlaneWarps) {
    const int64_t row = part * kPartRows + r;
    if (row >= planes.rows) break;
    const bool takes = given.takes(layer, row);
    taken += takes;
    if (j >= planes.pitch) continue;
    for (int c = 0; c < kLaneColumns; ++c) values[c] = 0;
    if (takes) row_less_pilot(given, layer, row, j, pilot, values);
    uint16_t high[kLaneColumns], low[kLaneColumns];
    for (int c = 0; c < kLaneColumns; ++c) {
      sums[c] += values[c];
      const double scaled = values[c] * scale[c];
      high[c] = float_to_float16(float(scaled));
      low[c] = float_to_float16(float(scaled - double(float16_to_float(high[c]))));
    }
    const int64_t at = (layer * planes.rows + row) * planes.pitch + j;
    store_columns(planes.high + at, high);
    store_columns(planes.low + at, low);
  }

  for (int c = 0; c < kLaneColumns; ++c) of_warps[warp * kPlaneColumns + lane_column + c] = sums[c];
  __syncthreads();
  if (owns_column) {
    double sum = 0;
    for (int w = 0; w < kPlaneWarps; ++w) sum += of_warps[w * kPlaneColumns + threadIdx.x];
    planes.sums[(layer * gridDim.y + part) * planes.pitch + column] = sum;
  }
  __syncthreads();
  if (lane_column == 0) of_warps[warp] = taken;
  __syncthreads();
  if (blockIdx.x > 0 || threadIdx.x > 0) return;
  for (int w = 1; w < kPlaneWarps; ++w) taken += int(of_warps[w]);
  planes.counts[layer * gridDim.y + part] = taken;
}

// 16-bit rows as they are, in one plane.
template <class In>
__global__ void __launch_bounds__(kPlaneThreads) copy_rows(GivenRows<In> given, Planes planes) {
  const int64_t layer = blockIdx.z, j = int64_t(blockIdx.x) * kPlaneColumns + threadIdx.x % 32 * kLaneColumns;
  if (j >= planes.pitch) return;
  for (int r = int(threadIdx.x) / 32; r < kPartRows; r += kPlaneWarps) {
    const int64_t row = int64_t(blockIdx.y) * kPartRows + r;
    if (row >= planes.rows) return;
    uint16_t values[kLaneColumns] = {};
    for (int c = 0; c < kLaneColumns; ++c)
      if (j + c < given.rows.d && given.takes(layer, row)) values[c] = given.rows.at(layer, row, j + c)->bits;
    store_columns(planes.high + (layer * planes.rows + row) * planes.pitch + j, values);
  }
}

inline int64_t parts_of(int64_t rows) { return (rows + kPartRows - 1) / kPartRows; }

template <class In>
void make_planes(const Stream& stream, const GivenRows<In>& given, const Planes& planes, int64_t layers) {
  const dim3 grid(unsigned((planes.pitch + kPlaneColumns - 1) / kPlaneColumns), unsigned(parts_of(planes.rows)),
                  unsigned(layers));
  constexpr size_t kSums = sizeof(double) * kPlaneWarps * kPlaneColumns;
  stream.launch(find_largest<In>, grid, kPlaneThreads, kSums, given, planes);
  stream.launch(write_planes<In>, grid, kPlaneThreads, kSums + sizeof(double) * kPlaneColumns, given, planes);
}

template <class In>
void copy(const Stream& stream, const GivenRows<In>& given, const Planes& planes, int64_t layers) {
  const dim3 grid(unsigned((planes.pitch + kPlaneColumns - 1) / kPlaneColumns), unsigned(parts_of(planes.rows)),
                  unsigned(layers));
  stream.launch(copy_rows<In>, grid, kPlaneThreads, 0, given, planes);
}

}  // namespace
}  // namespace cuda
}  // namespace cone
