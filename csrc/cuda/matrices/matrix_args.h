// Layers of rows in device memory, as the launchers of the matrix kernels take them.
#pragma once

#include "cone/types.h"

namespace cone {
namespace cuda {

struct MatrixArgs {
  const void* data;
  DType dtype;  // not float64
  int64_t n_layers, n, d;
  int64_t layer_stride, row_stride, col_stride;  // in elements
};

// Where to run: torch's device number and stream.
struct Place {
  int device;
  void* stream;
};

// Bytes of shared memory that a block can have on this device.
int64_t most_shared_memory(int device);

}  // namespace cuda
}  // namespace cone
