// csrc/cuda/common/float16.cuh on the CPU, in integers.
#pragma once

#include <cuda_runtime.h>

namespace cone {
namespace cuda {

inline float float16_to_float(uint16_t bits) {
  const unsigned sign = unsigned(bits & 0x8000) << 16, rest = bits & 0x7fff;
  if (rest >= 0x7c00) return __uint_as_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  const float magnitude = __uint_as_float(rest << 13) * 0x1p112f;  // exact, subnormal numbers too
  return __uint_as_float(sign | __float_as_uint(magnitude));
}

inline uint16_t float_to_float16(float value) {
  const unsigned bits = __float_as_uint(value), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
  if (rest > 0x7f800000) return uint16_t(0x7fff);
  if (rest >= 0x477ff000) return uint16_t(sign | 0x7c00);  // 65520 and more
  const float magnitude = __uint_as_float(rest);
  if (rest < 0x38800000) return uint16_t(sign | unsigned(std::nearbyint(magnitude * 0x1p24f)));
  return uint16_t(sign | (rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13);
}

inline uint32_t two_to_float16(float first, float second) {
  return uint32_t(float_to_float16(second)) << 16 | float_to_float16(first);
}

inline uint32_t two_to_bfloat16(float first, float second) {
  const auto rounded = [](float value) {
    const uint32_t bits = __float_as_uint(value);
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fffu : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  };
  return rounded(second) << 16 | rounded(first);
}

}  // namespace cuda
}  // namespace cone
