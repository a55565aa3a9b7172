// Where a kernel runs.
#pragma once

#include <cuda_runtime_api.h>

namespace cone {
namespace cuda {

struct Queue {
  int device;
  cudaStream_t stream;  // of the device
};

}  // namespace cuda
}  // namespace cone
