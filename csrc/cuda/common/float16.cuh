// float16 to and from float32 by the GPU's own conversions. The tests bring their own, for the CPU.
#pragma once

#include <cstdint>

namespace cone {
namespace cuda {

__device__ __forceinline__ float float16_to_float(uint16_t bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

// Rounds to nearest, ties to even; overflows to infinity.
__device__ __forceinline__ uint16_t float_to_float16(float value) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

}  // namespace cuda
}  // namespace cone
