// The gradient of the mean cosine for eight columns of a row x: scale · (s − (s·x)/‖x‖² x)/‖x‖, in float64.
#pragma once

#include <cfloat>

#include "cuda/common/row_loads.cuh"

namespace cone {
namespace cuda {

// What a row's gradient is made of: scale · (s − along · x). Both are zero for rows that are left out.
struct Direction {
  double scale, along;
};

__device__ __forceinline__ Direction direction_of(double norm_sq, double projection, double layer_scale) {
  if (!(norm_sq <= DBL_MAX) || norm_sq < DBL_MIN) return {0, 0};
  // One factor 1/‖x‖ at a time: its powers may leave float64.
  const double inverse = 1 / sqrt(norm_sq);
  return {layer_scale * inverse, projection * inverse * inverse};
}

// Rows with these squared norms take a quicker way, as float32 holds their inverse roots and float64 the power below.
constexpr double kLeastQuickNormSq = 0x1p-120, kMostQuickNormSq = 0x1p120;

// float64's exponents are counted from 896 further down than float32's.
constexpr double kRaised = 0x1p448 * 0x1p448;

// x / kRaised exactly, of any finite x: float32's bits moved to where float64 has them. Two operations on integers take
// half the time of a conversion, of which a multiprocessor does 16 a clock.
__device__ __forceinline__ double lowered(float x) {
  const int bits = __float_as_int(x);
  return __hiloint2double(bits >> 3 & int(0x8fffffffu), int(unsigned(bits) << 29));
}

// Of a row that takes the quicker way; `along` is raised, for a lowered x.
__device__ __forceinline__ Direction quick_direction(double norm_sq, double projection, double layer_scale) {
  // Two of Newton's steps take float32's inverse root to float64, far sooner than a root and a quotient.
  double inverse = double(rsqrtf(float(norm_sq)));
  const double half = -0.5 * norm_sq;
  inverse *= fma(half * inverse, inverse, 1.5);
  inverse *= fma(half * inverse, inverse, 1.5);
  return {layer_scale * inverse, projection * inverse * inverse * kRaised};
}

template <class In>
__device__ __forceinline__ void add_products(const Octet<In>& x, const double (&s)[kColumns], double (&sums)[2]) {
#pragma unroll
  for (int k = 0; k < kColumns; ++k) {
    const double value = double(x[k]);
    sums[0] = fma(value, value, sums[0]);
    sums[1] = fma(value, s[k], sums[1]);
  }
}

template <bool kQuick, class In>
__device__ __forceinline__ Octet<In> gradient(const Octet<In>& x, const double (&s)[kColumns], const Direction& row) {
  float values[kColumns];
  const bool left_out = row.scale == 0;
#pragma unroll
  for (int k = 0; k < kColumns; ++k) {
    const double value = kQuick ? lowered(x[k]) : double(x[k]);
    values[k] = !kQuick && left_out ? 0.0f : float(row.scale * (s[k] - value * row.along));
  }
  return rounded<In>(values);
}

}  // namespace cuda
}  // namespace cone
