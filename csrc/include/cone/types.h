// What every kernel takes: element types and views of rows. No torch header anywhere.
#pragma once

#include <cstdint>

namespace cone {

// The numbers are part of the Python binding (cone_kernels/kernels/pointers.py).
enum class DType : int { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3 };

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

// Rows of a matrix; strides are counted in elements and may be zero or negative.
struct RowView {
  const void* data;
  DType dtype;
  int64_t n;
  int64_t d;
  int64_t row_stride;
  int64_t col_stride;
};

}  // namespace cone
