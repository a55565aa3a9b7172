// What the launchers of the matrix ops take in addition to the arguments in csrc/include/cone/.
#pragma once

#include "cone/types.h"
#include "cuda/common/queue.h"

namespace cone {
namespace cuda {

// The arguments of an op for layers that lie in one tensor in device memory: rows.data is the first element of the
// first layer, rows.dtype is not float64, `layers` and `threads` are not read.
template <class Args>
struct DeviceArgs : Args {
  int64_t layer_stride;  // elements from one layer to the next
  double* workspace;     // as many values as the op's *_workspace function says
  int64_t most_shared;   // bytes of shared memory that a block can have
};

// Bytes of shared memory that a block can have on this device.
int64_t most_shared_memory(int device);

}  // namespace cuda
}  // namespace cone
