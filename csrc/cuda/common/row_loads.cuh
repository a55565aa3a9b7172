// Eight columns of a row in a thread's registers. Rows that are aligned come by 16 bytes, all others one by one.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <type_traits>

#include "cone/moments.h"
#include "cuda/common/float16.cuh"

namespace cone {
namespace cuda {

constexpr int kWarpSize = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kColumns = 8;  // columns that a thread owns
constexpr int kWarpColumns = kColumns * kWarpSize;

// Eight elements, as they lie in memory.
template <class In>
struct Octet {
  static constexpr int kWords = int(kColumns * sizeof(In) / 4);
  uint32_t words[kWords];

  __device__ __forceinline__ float operator[](int k) const {
    if constexpr (sizeof(In) == 4) {
      return __uint_as_float(words[k]);
    } else if constexpr (std::is_same_v<In, BFloat16>) {
      return __uint_as_float(k % 2 == 0 ? words[k / 2] << 16 : words[k / 2] & 0xffff0000u);
    } else {
      return float16_to_float(uint16_t(words[k / 2] >> (k % 2 * 16)));
    }
  }

  // Fills in element k of an octet that was zero.
  __device__ __forceinline__ void put(int k, In value) {
    if constexpr (sizeof(In) == 4) {
      words[k] = __float_as_uint(value);
    } else {
      words[k / 2] |= uint32_t(value.bits) << (k % 2 * 16);
    }
  }
};

// Eight values as elements, each rounded once.
template <class Out>
__device__ __forceinline__ Octet<Out> rounded(const float (&values)[kColumns]) {
  Octet<Out> octet;
#pragma unroll
  for (int i = 0; i < Octet<Out>::kWords; ++i) {
    if constexpr (sizeof(Out) == 4)
      octet.words[i] = __float_as_uint(values[i]);
    else if constexpr (std::is_same_v<Out, BFloat16>)
      octet.words[i] = two_to_bfloat16(values[2 * i], values[2 * i + 1]);
    else
      octet.words[i] = two_to_float16(values[2 * i], values[2 * i + 1]);
  }
  return octet;
}

// The columns of this thread among [begin, end): eight neighbours, or one in every blockDim.x, so that neighbouring
// threads read neighbouring elements either way. With kVector, begin and end must be multiples of eight.
template <bool kVector>
struct OwnColumns {
  int first, end;

  __device__ __forceinline__ OwnColumns(int begin, int end)
      : first(begin + int(threadIdx.x) * (kVector ? kColumns : 1)), end(end) {}
  __device__ __forceinline__ int operator[](int k) const { return kVector ? first + k : first + k * int(blockDim.x); }
  __device__ __forceinline__ bool has(int k) const { return kVector ? first < end : (*this)[k] < end; }
};

// Zeros for columns that the thread does not have.
template <class In, bool kVector>
__device__ __forceinline__ Octet<In> load_octet(const In* row, const OwnColumns<kVector>& columns, int64_t col_stride) {
  Octet<In> octet = {};
  if constexpr (kVector) {
    if (!columns.has(0)) return octet;
    const uint4* from = reinterpret_cast<const uint4*>(row + columns.first);
#pragma unroll
    for (int i = 0; i < Octet<In>::kWords / 4; ++i) {
      const uint4 four = __ldg(from + i);
      octet.words[4 * i] = four.x;
      octet.words[4 * i + 1] = four.y;
      octet.words[4 * i + 2] = four.z;
      octet.words[4 * i + 3] = four.w;
    }
  } else {
#pragma unroll
    for (int k = 0; k < kColumns; ++k)
      if (columns.has(k)) octet.put(k, row[columns[k] * col_stride]);
  }
  return octet;
}

// Writes the thread's columns of a contiguous row.
template <class Out, bool kVector>
__device__ __forceinline__ void store_octet(Out* row, const OwnColumns<kVector>& columns, const Octet<Out>& octet) {
  if constexpr (kVector) {
    if (!columns.has(0)) return;
    uint4* to = reinterpret_cast<uint4*>(row + columns.first);
#pragma unroll
    for (int i = 0; i < Octet<Out>::kWords / 4; ++i)
      to[i] = make_uint4(octet.words[4 * i], octet.words[4 * i + 1], octet.words[4 * i + 2], octet.words[4 * i + 3]);
  } else {
#pragma unroll
    for (int k = 0; k < kColumns; ++k)
      if (columns.has(k)) {
        if constexpr (sizeof(Out) == 4) {
          row[columns[k]] = __uint_as_float(octet.words[k]);
        } else {
          row[columns[k]] = {uint16_t(octet.words[k / 2] >> (k % 2 * 16))};
        }
      }
  }
}

constexpr int bytes_of(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

// Whether rows at these addresses and strides (of elements) can be read by 16 bytes.
inline bool aligned_rows(DType dtype, const void* const* layers, int64_t n_layers, int64_t d, int64_t col_stride,
                         int64_t row_stride, int64_t outer_stride = 0) {
  const int64_t elements = 16 / bytes_of(dtype);
  bool aligned = col_stride == 1 && d % kColumns == 0 && row_stride % elements == 0 && outer_stride % elements == 0;
  for (int64_t i = 0; i < n_layers; ++i) aligned = aligned && reinterpret_cast<uintptr_t>(layers[i]) % 16 == 0;
  return aligned;
}

inline bool vector_loads(const HiddenStates& hidden) {
  return aligned_rows(hidden.dtype, hidden.layers, hidden.n_layers, hidden.d, hidden.col_stride, hidden.token_stride,
                      hidden.cu_seqlens == nullptr ? hidden.sentence_stride : 0);
}

// Calls body(element) with a null pointer of the element type.
template <class Body>
void with_element_type(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kFloat32:
      return body(static_cast<const float*>(nullptr));
    case DType::kBFloat16:
      return body(static_cast<const BFloat16*>(nullptr));
    case DType::kFloat16:
      return body(static_cast<const Float16*>(nullptr));
    case DType::kFloat64:
      break;
  }
  throw std::invalid_argument("dtype: got float64; it must be float32, bfloat16 or float16 for backend cuda");
}

}  // namespace cuda
}  // namespace cone
