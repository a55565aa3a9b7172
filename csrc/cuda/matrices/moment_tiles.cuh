// Partial tiles are added up in a fixed order and go to the moment: those of planes unscaled and corrected for the
// pilot, those of raw rows where their squares stayed within float32, else computed again in float64.
#pragma once

#include "cuda/matrices/float16_planes.cuh"
#include "cuda/matrices/gram_product.cuh"

namespace cone {
namespace cuda {
namespace {

constexpr int kStripRows = 32;  // of a tile, which one block adds
constexpr int kAddThreads = 256;

// Σ over the splits of one entry of a tile.
__device__ __forceinline__ double sum_of_splits(const WideSum* partial, int64_t layer, int splits, int64_t tiles,
                                                int64_t tile, int64_t entry) {
  partial += (layer * splits * tiles + tile) * kTileSize + entry;
  double sum = partial[0].value();
  for (int s = 1; s < splits; ++s) sum += partial[s * tiles * kTileSize].value();
  return sum;
}

// A block's strip of a tile: entries (i, j) of the upper triangle, each once.
template <class Body>
__device__ __forceinline__ void for_entries(int64_t i0, int64_t j0, int64_t d, const Body& body) {
  for (int e = int(threadIdx.x); e < kStripRows * kTile; e += kAddThreads) {
    const int row = e / kTile, column = e % kTile;
    if (i0 + row <= j0 + column && j0 + column < d) body(row, column);
  }
}

// What turns a product of scaled columns into one of the columns as they were given.
struct ColumnTerms {
  double unscale, pilot, sum;
};

__device__ __forceinline__ ColumnTerms terms_of(const Planes& planes, const double* pilot, int64_t layer, int64_t parts,
                                                int64_t d, int64_t column) {
  if (column >= d) return {0, 0, 0};
  ColumnTerms terms = {planes.unscale[layer * planes.pitch + column], 0, 0};
  if (pilot == nullptr) return terms;
  terms.pilot = pilot[layer * d + column];
  for (int64_t p = 0; p < parts; ++p) terms.sum += planes.sums[(layer * parts + p) * planes.pitch + column];
  return terms;
}

// With a pilot also p tᵀ + t pᵀ + n p pᵀ, t the column sums.
__global__ void __launch_bounds__(kAddThreads)
    add_plane_tiles(const WideSum* partial, int splits, Planes planes, int64_t parts, const double* pilot, int64_t d,
                    double* moment) {
  ColumnTerms* terms = shared_memory<ColumnTerms>();  // (kStripRows + kTile)
  double* rows_taken = reinterpret_cast<double*>(terms + kStripRows + kTile);
  const int64_t layer = blockIdx.z;
  int64_t i_tile, j_tile;
  tile_at(blockIdx.x, i_tile, j_tile);
  const int64_t i0 = i_tile * kTile + blockIdx.y * kStripRows, j0 = j_tile * kTile;
  for (int c = int(threadIdx.x); c < kStripRows + kTile; c += kAddThreads)
    terms[c] = terms_of(planes, pilot, layer, parts, d, c < kStripRows ? i0 + c : j0 + c - kStripRows);
  if (threadIdx.x == 0) {
    *rows_taken = 0;
    for (int64_t p = 0; p < parts; ++p) *rows_taken += planes.counts[layer * parts + p];
  }
  __syncthreads();
  for_entries(i0, j0, d, [&](int row, int column) {
    const ColumnTerms left = terms[row], right = terms[kStripRows + column];
    const int64_t entry = (int64_t(blockIdx.y) * kStripRows + row) * kTile + column;
    double value = sum_of_splits(partial, layer, splits, gridDim.x, blockIdx.x, entry);
    value = value * left.unscale * right.unscale;
    if (pilot) value += left.pilot * (right.sum + *rows_taken * right.pilot) + left.sum * right.pilot;
    moment[(layer * d + i0 + row) * d + j0 + column] += value;
  });
}

// A column whose Σ x² is in this range met neither the end of float32 nor products too small for it. bfloat16 has
// float32's range, float16 is always in it but for zeros.
constexpr double kSafeLeast = 0x1p-60, kSafeMost = 0x1p90;

constexpr int kStripColumns = kStripRows + kTile;  // the rows and the columns of a strip
constexpr int kLaneStripColumns = kStripColumns / 32, kAddWarps = kAddThreads / 32;

// What is known of the products of a column.
enum ColumnState : uint8_t { kSafe, kUnsafe, kNoSquares };

// Place of column `c` of a strip: first those of its rows, then those of its columns.
__device__ __forceinline__ int64_t strip_column(int64_t i0, int64_t j0, int c) {
  return c < kStripRows ? i0 + c : j0 + c - kStripRows;
}

template <class In>
__device__ __forceinline__ ColumnState state_of(const GivenRows<In>& given, const WideSum* partial, int splits,
                                                int64_t layer, int64_t column) {
  if (std::is_same_v<In, Float16> || column >= given.rows.d) return kSafe;
  const int64_t block = column / kTile, entry = column % kTile * (kTile + 1);
  const double square = sum_of_splits(partial, layer, splits, gridDim.x, block * (block + 1) / 2 + block, entry);
  if (square >= kSafeLeast && square <= kSafeMost) return kSafe;
  return square == 0 ? kNoSquares : kUnsafe;
}

// Settles which columns without squares are columns of zeros, whose products can be trusted. All threads call it.
template <class In>
__device__ inline void look_for_zeros(const GivenRows<In>& given, int64_t layer, int64_t i0, int64_t j0,
                                      ColumnState* states, uint8_t* of_warps) {
  bool looks = false;
  for (int c = 0; c < kStripColumns; ++c) looks = looks || states[c] == kNoSquares;
  if (!looks) return;
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  bool found[kLaneStripColumns] = {};
#pragma unroll 4
  for (int64_t row = warp; row < given.rows.n; row += kAddWarps) {
    if (!given.takes(layer, row)) continue;
#pragma unroll
    for (int k = 0; k < kLaneStripColumns; ++k) {
      const int64_t column = strip_column(i0, j0, k * 32 + lane);
      if (column < given.rows.d && widen(*given.rows.at(layer, row, column)) != 0) found[k] = true;
    }
  }
  for (int k = 0; k < kLaneStripColumns; ++k) of_warps[warp * kStripColumns + k * 32 + lane] = found[k];
  __syncthreads();
  for (int c = int(threadIdx.x); c < kStripColumns; c += kAddThreads) {
    bool any = false;
    for (int w = 0; w < kAddWarps; ++w) any = any || of_warps[w * kStripColumns + c] != 0;
    if (states[c] == kNoSquares) states[c] = any ? kUnsafe : kSafe;
  }
  __syncthreads();
}

template <class In>
__device__ double product_in_float64(const GivenRows<In>& given, int64_t layer, int64_t i, int64_t j) {
  double sum = 0;
  for (int64_t row = 0; row < given.rows.n; ++row)
    if (given.takes(layer, row))
      sum += double(widen(*given.rows.at(layer, row, i))) * double(widen(*given.rows.at(layer, row, j)));
  return sum;
}

template <class In>
__global__ void __launch_bounds__(kAddThreads)
    add_raw_tiles(const WideSum* partial, int splits, GivenRows<In> given, double* moment) {
  ColumnState* states = shared_memory<ColumnState>();                      // (kStripColumns)
  uint8_t* of_warps = reinterpret_cast<uint8_t*>(states + kStripColumns);  // (kAddWarps, kStripColumns)
  const int64_t layer = blockIdx.z, d = given.rows.d;
  int64_t i_tile, j_tile;
  tile_at(blockIdx.x, i_tile, j_tile);
  const int64_t i0 = i_tile * kTile + blockIdx.y * kStripRows, j0 = j_tile * kTile;
  for (int c = int(threadIdx.x); c < kStripColumns; c += kAddThreads)
    states[c] = state_of(given, partial, splits, layer, strip_column(i0, j0, c));
  __syncthreads();
  look_for_zeros(given, layer, i0, j0, states, of_warps);
  for_entries(i0, j0, d, [&](int row, int column) {
    const int64_t entry = (int64_t(blockIdx.y) * kStripRows + row) * kTile + column;
    moment[(layer * d + i0 + row) * d + j0 + column] +=
        states[row] == kSafe && states[kStripRows + column] == kSafe
            ? sum_of_splits(partial, layer, splits, gridDim.x, blockIdx.x, entry)
            : product_in_float64(given, layer, i0 + row, j0 + column);
  });
}

}  // namespace
}  // namespace cuda
}  // namespace cone
