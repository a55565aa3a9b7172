// Products of rows with themselves on tensor cores: tiles of the upper triangle, each over one split of the rows, from
// one plane of 16-bit values or from two (high + low).
#pragma once

#include "cuda/common/launch.cuh"
#include "cuda/common/ptx.cuh"

namespace cone {
namespace cuda {
namespace {

constexpr int kTile = 128, kTileSize = kTile * kTile;  // columns by columns, a block's
constexpr int kGramThreads = 256;
constexpr int kWarpTileRows = 64, kWarpTileColumns = 32;  // a warp's part of the tile
constexpr int kStepRows = 16;                             // of one matrix instruction

// How rows pass through shared memory. kRows are copied together, kStages such copies are held at once. kPanels of
// each: high of the tile's rows, high of its columns, with two planes also low of both. kRows also meet in one
// accumulator of the tensor cores: these cut off what of a product lies below it, so that long chains are biased, equal
// rows of float16 by 2.5e-6 in 128 rows and 4e-7 in 32. Products of bfloat16 have so few digits that little is cut off.
// With two planes the small products are added first, while truncation costs little.
constexpr int kMostStageRows = 64;

template <MatrixType kType>
struct OnePlane {
  static constexpr bool kLow = false, kFewDigits = kType == MatrixType::kBFloat16;
  static constexpr int kPanels = 2, kRows = kFewDigits ? kMostStageRows : 32, kStages = kFewDigits ? 3 : 4;
};
struct TwoPlanes {
  static constexpr bool kLow = true;
  static constexpr int kPanels = 4, kRows = 32, kStages = 4;
};
// For compute capabilities 8.6 and 8.9.
struct TwoPlanesInLittleMemory {
  static constexpr bool kLow = true;
  static constexpr int kPanels = 4, kRows = 32, kStages = 3;
};

template <class Staging>
constexpr int kPanelSize = Staging::kRows * kTile;
template <class Staging>
constexpr size_t kGramShared = sizeof(uint16_t) * Staging::kStages * Staging::kPanels * kPanelSize<Staging>;

struct GramRows {
  const uint16_t *high, *low;
  int64_t layer_stride, row_stride;  // multiples of 8 values; the first is 16-byte aligned
  int64_t n, columns;
  const uint8_t* use;  // rows to take, null: all; not for two planes
  int64_t use_stride;
  int64_t split_rows;
};

// Tile number j (j + 1) / 2 + i of the upper triangle.
__device__ __forceinline__ void tile_at(int64_t tile, int64_t& i, int64_t& j) {
  j = int64_t((sqrt(8.0 * double(tile) + 1.0) - 1.0) * 0.5);
  while (j * (j + 1) / 2 > tile) --j;
  while ((j + 1) * (j + 2) / 2 <= tile) ++j;
  i = tile - j * (j + 1) / 2;
}

// Where 8 columns of a staged row lie: the eight rows that one matrix load meets are in different banks.
__device__ __forceinline__ int staged(int row, int chunk) { return row * kTile + (chunk ^ (row & 7)) * 8; }

constexpr int kCopiedRows = kGramThreads / (kTile / 8);

// What a thread copies of a stage: of each panel 8 columns of every kCopiedRows-th row.
struct Copier {
  const uint16_t* from;  // of high, of the tile's rows, in the first row
  int bytes;             // of 16: of the tile's rows, and in the next byte of its columns; one register
  int rows;              // from the first row to the end of the split
  int to;

  __device__ __forceinline__ Copier(const GramRows& x, int64_t layer, int64_t first, int64_t end, int64_t i,
                                    int64_t j) {
    constexpr int kChunks = kTile / 8;
    const int row = int(threadIdx.x) / kChunks, chunk = int(threadIdx.x) % kChunks;
    from = x.high + layer * x.layer_stride + (first + row) * x.row_stride + i * kTile + chunk * 8;
    bytes = bytes_of(x.columns - (i * kTile + chunk * 8)) | bytes_of(x.columns - (j * kTile + chunk * 8)) << 8;
    rows = int(end - first) - row;
    to = staged(row, chunk);
  }

  // Starts the copies of stage number `step`; `right` is how far the tile's columns are from its rows.
  template <class Staging>
  __device__ __forceinline__ void start(const GramRows& x, const uint8_t* use, int step, int right,
                                        uint16_t* panels) const {
    constexpr int kPanel = kPanelSize<Staging>;
#pragma unroll
    for (int r = 0; r < Staging::kRows; r += kCopiedRows) {
      const int row = step * Staging::kRows + r;
      const bool takes = row < rows && (Staging::kLow || use == nullptr || use[row] != 0);
      const uint16_t* source = from + int64_t(row) * x.row_stride;
      uint16_t* target = panels + to + r * kTile;
      start_one(x, takes ? bytes & 0xff : 0, source, target);
      if (right != 0) start_one(x, takes ? bytes >> 8 : 0, source + right, target + kPanel);
      if constexpr (Staging::kLow) {
        source += x.low - x.high;
        start_one(x, takes ? bytes & 0xff : 0, source, target + 2 * kPanel);
        if (right != 0) start_one(x, takes ? bytes >> 8 : 0, source + right, target + 3 * kPanel);
      }
    }
  }

 private:
  static_assert(kCopiedRows % 8 == 0);  // rows of one thread are staged alike
  static __device__ __forceinline__ int bytes_of(int64_t columns) {
    return columns <= 0 ? 0 : columns < 8 ? int(columns) * 2 : 16;
  }
  static __device__ __forceinline__ void start_one(const GramRows& x, int bytes, const uint16_t* source,
                                                   uint16_t* target) {
    copy_async(target, bytes > 0 ? source : x.high, bytes);
  }
};

// Values (16 rows, 16 columns) of a staged panel as a fragment: of the left matrix, or of two right ones.
template <bool kLeft>
__device__ __forceinline__ void load_fragment(const uint16_t* panel, int row, int column, unsigned (&fragment)[4]) {
  const int matrix = int(threadIdx.x) % 32 / 8, r = int(threadIdx.x) % 8;
  const int below = kLeft ? matrix / 2 : matrix % 2, right = kLeft ? matrix % 2 : matrix / 2;
  load_transposed(panel + staged(row + 8 * below + r, column / 8 + right), fragment);
}

constexpr int kFragmentRows = kWarpTileRows / 16, kFragmentColumns = kWarpTileColumns / 8;
using Chain = float[kFragmentRows][kFragmentColumns][4];

struct WarpPlace {
  int row, column;
};

using RightFragments = unsigned[kFragmentColumns / 2][4];

__device__ __forceinline__ void load_right(const uint16_t* panel, int row, const WarpPlace& place,
                                           RightFragments& right) {
#pragma unroll
  for (int j = 0; j < kFragmentColumns / 2; ++j) load_fragment<false>(panel, row, place.column + 16 * j, right[j]);
}

template <MatrixType kType>
__device__ __forceinline__ void multiply_left(const uint16_t* panel, int row, const WarpPlace& place,
                                              const RightFragments& right, Chain& chain) {
#pragma unroll
  for (int i = 0; i < kFragmentRows; ++i) {
    unsigned left[4];
    load_fragment<true>(panel, row, place.row + 16 * i, left);
#pragma unroll
    for (int j = 0; j < kFragmentColumns; ++j) {
      const unsigned two[2] = {right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]};
      multiply_add<kType>(left, two, chain[i][j]);
    }
  }
}

template <class Staging, MatrixType kType>
__device__ __forceinline__ void multiply_stage(const uint16_t* left_panel, const uint16_t* right_panel,
                                               const WarpPlace& place, Chain& chain) {
  RightFragments right;
  if constexpr (Staging::kLow) {
    constexpr int kToLow = 2 * kPanelSize<Staging>;
#pragma unroll 1  // two steps at once need more registers than there are
    for (int row = 0; row < Staging::kRows; row += kStepRows) {
      load_right(right_panel + kToLow, row, place, right);
      multiply_left<kType>(left_panel, row, place, right, chain);
      load_right(right_panel, row, place, right);
      multiply_left<kType>(left_panel + kToLow, row, place, right, chain);
    }
  }
#pragma unroll 1
  for (int row = 0; row < Staging::kRows; row += kStepRows) {
    load_right(right_panel, row, place, right);
    multiply_left<kType>(left_panel, row, place, right, chain);
  }
}

// A float32 sum and what it is too large by (Kahan): as good as float64 here, whose conversions take longer.
struct alignas(8) WideSum {
  float sum, error;

  __device__ __forceinline__ void add(float value) {
    value -= error;
    const float added = sum + value;
    error = (added - sum) - value;
    sum = added;
  }
  __device__ __forceinline__ double value() const { return double(sum) - double(error); }
};

// partial (layers, splits, tiles, kTile, kTile): one tile over one split of the rows.
template <class Staging, MatrixType kType>
__global__ void __launch_bounds__(kGramThreads, 1) multiply_tiles(GramRows x, WideSum* partial) {
  uint16_t* stages = shared_memory<uint16_t>();  // (kStages, kPanels, kStageRows, kTile)
  const int64_t layer = blockIdx.z, first = int64_t(blockIdx.y) * x.split_rows;
  const int64_t end = first + x.split_rows < x.n ? first + x.split_rows : x.n;
  const int steps = int((end - first + Staging::kRows - 1) / Staging::kRows);
  int64_t i, j;
  tile_at(blockIdx.x, i, j);
  const int right = int(j - i) * kTile;  // 0 on the diagonal, where both factors are one panel
  const Copier copier(x, layer, first, end, i, j);
  const uint8_t* use = x.use ? x.use + layer * x.use_stride + first + int(threadIdx.x) / (kTile / 8) : nullptr;
  const auto panels_of = [&](int step) {
    return stages + step % Staging::kStages * (Staging::kPanels * kPanelSize<Staging>);
  };
  for (int step = 0; step < Staging::kStages - 1; ++step) {
    copier.start<Staging>(x, use, step, right, panels_of(step));
    commit_copies();
  }

  const int warp = int(threadIdx.x) / 32;
  const WarpPlace place = {warp / (kTile / kWarpTileColumns) * kWarpTileRows,
                           warp % (kTile / kWarpTileColumns) * kWarpTileColumns};
  WideSum total[kFragmentRows][kFragmentColumns][4] = {};
  for (int step = 0; step < steps; ++step) {
    wait_for_copies<Staging::kStages - 2>();
    __syncthreads();  // all copies of this step have landed, and all are done with the step that is overwritten next
    const int next = step + Staging::kStages - 1;
    copier.start<Staging>(x, use, next, right, panels_of(next));
    commit_copies();
    const uint16_t* panels = panels_of(step);
    Chain chain = {};
    multiply_stage<Staging, kType>(panels, right != 0 ? panels + kPanelSize<Staging> : panels, place, chain);
#pragma unroll
    for (int r = 0; r < kFragmentRows; ++r)
#pragma unroll
      for (int c = 0; c < kFragmentColumns; ++c)
#pragma unroll
        for (int e = 0; e < 4; ++e) total[r][c][e].add(chain[r][c][e]);
  }
  wait_for_copies<0>();

  const int lane = int(threadIdx.x) % 32;
  partial += ((layer * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x) * kTileSize;
#pragma unroll
  for (int r = 0; r < kFragmentRows; ++r)
#pragma unroll
    for (int c = 0; c < kFragmentColumns; ++c)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = place.row + 16 * r + 8 * half + lane / 4, column = place.column + 8 * c + lane % 4 * 2;
        const WideSum &first = total[r][c][2 * half], &second = total[r][c][2 * half + 1];
        store_four(&partial[row * kTile + column].sum, first.sum, first.error, second.sum, second.error);
      }
}

}  // namespace
}  // namespace cuda
}  // namespace cone
