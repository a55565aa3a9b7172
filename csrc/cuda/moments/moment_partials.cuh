// What the blocks of row_moments and pool_moments share: their shapes, and the end of their sums.
#pragma once

#include "cuda/common/launch.cuh"
#include "cuda/moments/row_sums.cuh"

namespace cone {
namespace cuda {

// Wide rows are taken in slabs of columns, whose float64 sums fit the shared memory of any device.
constexpr int kSlabColumns = 2048;

// How one block takes a part of a layer: blockIdx is (part, layer, slab).
struct BlockShape {
  int threads, slab_columns;

  BlockShape(int64_t d, int slabs)
      : threads(slabs > 1 ? kSlabColumns / kColumns : int((d + kWarpColumns - 1) / kWarpColumns) * kWarpSize),
        slab_columns(slabs > 1 ? kSlabColumns : int(d)) {}
};

// 1 where a block takes whole rows.
int column_slabs(int64_t d, int fields, bool vector, int device);

template <bool kVector>
__device__ __forceinline__ OwnColumns<kVector> own_columns(int64_t d, int slab_columns) {
  const int begin = int(blockIdx.z) * slab_columns;
  return OwnColumns<kVector>(begin, int(min(int64_t{begin} + slab_columns, d)));
}

// Where a part leaves a group's scalars.
__device__ __forceinline__ double* group_scalars(const MomentPartials& partials, const Segments& segments,
                                                 int64_t layer, int group) {
  const int64_t slice = int(blockIdx.x) % segments.slices;
  return partials.scalars +
         (((layer * segments.groups + group) * segments.slices + slice) * partials.slabs + blockIdx.z) * kScalars;
}

// Ends a group whose float32 sums have all been widened.
template <class Sums>
__device__ __forceinline__ void take_units(Sums& sums, const MomentSums& totals, const MomentPartials& partials,
                                           const Segments& segments, int64_t layer, int group, int64_t d) {
  const int64_t at = layer * segments.groups + group;
  if (segments.slices == 1) return sums.take_group_units(totals.unit_sum + at * d, true);
  const int64_t slice = int(blockIdx.x) % segments.slices;
  sums.take_group_units(partials.units + (at * segments.slices + slice) * d, false);
}

// Writes the part's sums over all groups.
template <class Sums>
__device__ __forceinline__ void write_columns(Sums& sums, const MomentPartials& partials, int64_t layer, int64_t d) {
  sums.widen_squares();
  double* to = partials.columns + (layer * gridDim.x + blockIdx.x) * 3 * d;
  for (int k = 0; k < kColumns; ++k) {
    if (!sums.columns.has(k)) continue;
    to[sums.columns[k]] = sums.wide(kSum, k);
    to[d + sums.columns[k]] = sums.wide(kSqSum, k);
    to[2 * d + sums.columns[k]] = sums.wide(kUnitSqSum, k);
  }
}

// Adds the parts' sums to the totals, in the order of the parts; the last three are those of pool_moments, or null.
void add_partials(const char* op, const MomentSums& totals, double* sentence_sq_sum, double* sentence_size_sq_sum,
                  int64_t* n_sentences, const Segments& segments, const MomentPartials& partials, int64_t n_layers,
                  int64_t d, const Queue& queue);

// Writes ‖x‖² of each row of a layer, or of each token that a mask keeps, in float64: for rows taken in slabs.
struct RowNorms {
  const void* const* layers;
  int64_t n_layers, rows, d;
  DType dtype;
  int64_t rows_of_sentence;  // row r is row r % rows_of_sentence of sentence r / rows_of_sentence
  int64_t sentence_stride, row_stride, col_stride;
  const uint8_t* mask;  // (rows) or null
  double* norms_sq;     // (L, rows)
};
void write_row_norms(const char* op, const RowNorms& norms, const Queue& queue);

}  // namespace cuda
}  // namespace cone
