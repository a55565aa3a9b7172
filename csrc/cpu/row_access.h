// Rows of any stride and element type, widened to the compute type, and which of them are left out.
#pragma once

#include <cfloat>

#include "cone/moments.h"
#include "cpu/simd.h"

namespace cone {
namespace CONE_ISA {
namespace {

template <class C, class In>
void widen_row(const In* row, int64_t col_stride, int64_t columns, C* out) {
  int64_t j = 0;
  if (col_stride == 1)
    for (; j + kLanes<C> <= columns; j += kLanes<C>) {
      const Vec<C> v = load<C>(row + j);
      std::memcpy(out + j, &v, sizeof v);
    }
  for (; j < columns; ++j) out[j] = C(widen(row[j * col_stride]));
}

// Whether a row is used or left out, and why, by its squared norm in float64.
inline Status status_of(double norm_sq) {
  return !(norm_sq <= DBL_MAX) ? kNonfinite : (norm_sq < DBL_MIN ? kZero : kUsed);
}

}  // namespace
}  // namespace CONE_ISA
}  // namespace cone
