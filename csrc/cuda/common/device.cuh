// What a device is asked of itself.
#pragma once

#include "cuda/common/launch.cuh"

namespace cone {
namespace cuda {

// An attribute of a device, without making a context on it; an error is thrown with the op's name.
inline int device_attribute(const char* op, cudaDeviceAttr which, int device) {
  int value = 0;
  check(op, cudaDeviceGetAttribute(&value, which, device));
  return value;
}

}  // namespace cuda
}  // namespace cone
