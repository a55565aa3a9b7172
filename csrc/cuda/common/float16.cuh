// 16-bit floats to and from float32 by the GPU's own conversions. The tests bring their own, for the CPU.
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

// Two at once, the first in the lower half. They round to nearest, ties to even; NaN becomes 0x7fff.
__device__ __forceinline__ uint32_t two_to_float16(float first, float second) {
  uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %2, %1;" : "=r"(both) : "f"(first), "f"(second));
  return both;
}
__device__ __forceinline__ uint32_t two_to_bfloat16(float first, float second) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %2, %1;" : "=r"(both) : "f"(first), "f"(second));
  return both;
}

}  // namespace cuda
}  // namespace cone
