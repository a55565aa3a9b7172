// Layers of rows as the matrix kernels read them: element types widened, strides honoured, powers of two to scale by.
#pragma once

#include <cuda_runtime.h>

#include <cstring>
#include <stdexcept>

#include "cuda/common/row_loads.cuh"
#include "cuda/matrices/matrix_args.h"

namespace cone {
namespace cuda {
namespace {

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ float widen(BFloat16 value) { return __uint_as_float(unsigned(value.bits) << 16); }
__device__ __forceinline__ float widen(Float16 value) { return float16_to_float(value.bits); }

// Rows (n, d) of each layer; strides in elements.
template <class In>
struct Rows {
  const In* data;
  int64_t n, d, layer_stride, row_stride, col_stride;

  __device__ __forceinline__ const In* at(int64_t layer, int64_t row, int64_t column) const {
    return data + layer * layer_stride + row * row_stride + column * col_stride;
  }
};

template <class In>
Rows<In> rows_of(const RowView& rows, int64_t layer_stride) {
  return {static_cast<const In*>(rows.data), rows.n, rows.d, layer_stride, rows.row_stride, rows.col_stride};
}

// kCount neighbouring values: in one load where `whole`, else one by one, with 0 from column `d` on.
template <int kCount, class In>
__device__ __forceinline__ void load_columns(const Rows<In>& rows, int64_t layer, int64_t row, int64_t column,
                                             bool whole, float (&values)[kCount]) {
  const In* from = rows.at(layer, row, column);
  if (whole) {
    struct alignas(sizeof(In) * kCount) {
      In values[kCount];
    } together;
    std::memcpy(&together, __builtin_assume_aligned(from, sizeof together), sizeof together);
    for (int c = 0; c < kCount; ++c) values[c] = widen(together.values[c]);
    return;
  }
  for (int c = 0; c < kCount; ++c) values[c] = column + c < rows.d ? widen(from[c * rows.col_stride]) : 0.0f;
}

// Whether columns that are multiples of `count` can be loaded `count` at a time.
inline bool loads_together(const RowView& rows, int64_t layer_stride, int64_t element_size, int64_t count) {
  return rows.col_stride == 1 && rows.row_stride % count == 0 && layer_stride % count == 0 &&
         reinterpret_cast<uintptr_t>(rows.data) % size_t(element_size * count) == 0;
}

// The power of two that brings `largest` into [2^exponent, 2^(exponent + 1)); 1 where largest is zero or not finite.
__device__ __forceinline__ double scale_towards(double largest, int exponent) {
  uint64_t bits;
  std::memcpy(&bits, &largest, sizeof bits);
  const int biased = int(bits >> 52 & 0x7ff);
  if (!(largest > 0) || biased == 0x7ff) return 1;
  const int wanted = exponent + 1023 - biased, power = wanted > 1000 ? 1000 : wanted < -1000 ? -1000 : wanted;
  bits = uint64_t(power + 1023) << 52;
  std::memcpy(&largest, &bits, sizeof bits);
  return largest;
}

}  // namespace
}  // namespace cuda
}  // namespace cone
