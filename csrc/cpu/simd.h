// Vectors of the instruction set that this translation unit is compiled for (namespace CONE_ISA). Everything is in an
// anonymous namespace: code of one instruction set must never be linked into another.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#include "cone/types.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace cone {
namespace CONE_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
constexpr int kLanes = kVectorBytes / int(sizeof(T));

template <class T, int kBytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(kBytes)));
};
template <class T>
using Vec = typename VectorOf<T, kVectorBytes>::type;

// The type that rows of In are summed in.
template <class In>
using ComputeOf = std::conditional_t<std::is_same_v<In, double>, double, float>;

inline float widen(BFloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

inline float widen(Float16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16;
  const uint32_t exponent = (x.bits >> 10) & 31, mantissa = x.bits & 0x3ff;
  if (exponent == 0) {
    const float magnitude = float(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  const uint32_t bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | mantissa << 13;
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }

// To the nearest, ties to even; 16 bits by way of float32, as torch has it.
template <class Out>
inline Out narrow(double x) {
  if constexpr (std::is_same_v<Out, BFloat16>) {
    const float value = float(x);
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return {uint16_t(value != value ? 0x7fc0u : (bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
  } else if constexpr (std::is_same_v<Out, Float16>) {
    float magnitude = std::fabs(float(x));
    uint32_t bits;
    std::memcpy(&bits, &magnitude, sizeof bits);
    if (magnitude != magnitude) {
      bits = 0x7e00;
    } else if (magnitude >= 65520) {
      bits = 0x7c00;
    } else if (magnitude < 0x1p-14f) {  // subnormal: the sum with 0.5 is rounded to steps of 2^-24
      magnitude += 0.5f;
      std::memcpy(&bits, &magnitude, sizeof bits);
      bits -= 0x3f000000;
    } else {
      bits = (bits - (112u << 23) + 0xfff + (bits >> 13 & 1)) >> 13;
    }
    return {uint16_t(bits | (std::signbit(x) ? 0x8000u : 0u))};
  } else {
    return Out(x);
  }
}

template <class C>
inline Vec<C> broadcast(C value) {
  return value - Vec<C>{};
}

template <class T, int kBytes>
using VecOf = typename VectorOf<T, kBytes>::type;

// GCC 12 converts the halves of a 512-bit vector apart unless told the instruction.
inline Vec<double> to_double(VecOf<float, kVectorBytes / 2> v) {
#if defined(__AVX512F__)
  return Vec<double>(_mm512_maskz_cvtps_pd(0xff, __m256(v)));
#else
  return __builtin_convertvector(v, Vec<double>);
#endif
}

inline VecOf<float, kVectorBytes / 2> to_float(Vec<double> v) {
#if defined(__AVX512F__)
  return VecOf<float, kVectorBytes / 2>(_mm512_maskz_cvtpd_ps(0xff, __m512d(v)));
#else
  return __builtin_convertvector(v, VecOf<float, kVectorBytes / 2>);
#endif
}

// Stores kLanes<double> numbers.
inline void store(double* to, Vec<double> v) { std::memcpy(to, &v, sizeof v); }
inline void store(float* to, Vec<double> v) {
  const auto floats = to_float(v);
  std::memcpy(to, &floats, sizeof floats);
}
inline void store(BFloat16* to, Vec<double> v) {
  typedef VecOf<uint32_t, kVectorBytes / 2> Bits;
  const auto floats = to_float(v);
  Bits bits;
  std::memcpy(&bits, &floats, sizeof bits);
  const Bits rounded = floats == floats ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : Bits{} + 0x7fc0;
#if defined(__AVX512F__)
  const __m128i narrowed = _mm256_cvtepi32_epi16(__m256i(rounded));
#elif defined(__AVX2__)
  const __m128i narrowed = _mm_packus_epi32(__m128i(rounded), __m128i(rounded));
#else
  const auto narrowed = __builtin_convertvector(rounded, VecOf<uint16_t, kVectorBytes / 4>);
#endif
  std::memcpy(static_cast<void*>(to), &narrowed, size_t(kVectorBytes / 4));
}
inline void store(Float16* to, Vec<double> v) {
#if defined(__AVX512F__)
  const __m128i bits = _mm256_cvtps_ph(__m256(to_float(v)), _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__)
  const __m128i bits = _mm_cvtps_ph(__m128(to_float(v)), _MM_FROUND_TO_NEAREST_INT);
#else
  Float16 bits[kLanes<double>];
  for (int lane = 0; lane < kLanes<double>; ++lane) bits[lane] = narrow<Float16>(v[lane]);
#endif
  std::memcpy(static_cast<void*>(to), &bits, size_t(kVectorBytes / 4));
}

// GCC 12 takes 16-bit vectors apart unless told the instruction.
inline Vec<uint32_t> widen_bits(VecOf<uint16_t, kVectorBytes / 2> v) {
#if defined(__AVX512F__)
  return Vec<uint32_t>(_mm512_maskz_cvtepu16_epi32(0xffff, __m256i(v)));
#elif defined(__AVX2__)
  return Vec<uint32_t>(_mm256_cvtepu16_epi32(__m128i(v)));
#else
  return __builtin_convertvector(v, Vec<uint32_t>);
#endif
}

// kLanes<C> consecutive elements, widened to the compute type.
template <class C, class In>
inline Vec<C> load(const In* p) {
  constexpr int kCount = kLanes<C>;
  if constexpr (std::is_same_v<C, In>) {
    Vec<C> out;
    std::memcpy(&out, p, sizeof out);
    return out;
  } else if constexpr (std::is_same_v<In, float>) {
    VecOf<float, kVectorBytes / 2> narrow;
    std::memcpy(&narrow, p, sizeof narrow);
    return to_double(narrow);
  } else if constexpr (std::is_same_v<In, BFloat16> && std::is_same_v<C, float>) {
    VecOf<uint16_t, kCount * 2> narrow;
    std::memcpy(&narrow, p, sizeof narrow);
    return Vec<C>(widen_bits(narrow) << 16);
#if defined(__AVX512F__)
  } else if constexpr (std::is_same_v<In, BFloat16>) {
    const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return to_double(VecOf<float, kVectorBytes / 2>(_mm256_slli_epi32(bits, 16)));
  } else if constexpr (std::is_same_v<In, Float16> && std::is_same_v<C, double>) {
    const __m256 floats = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return to_double(VecOf<float, kVectorBytes / 2>(floats));
  } else if constexpr (std::is_same_v<In, Float16> && std::is_same_v<C, float>) {
    return Vec<float>(_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__F16C__)
  } else if constexpr (std::is_same_v<In, BFloat16>) {
    const __m128i bits = _mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    return to_double(VecOf<float, kVectorBytes / 2>(_mm_slli_epi32(bits, 16)));
  } else if constexpr (std::is_same_v<In, Float16> && std::is_same_v<C, double>) {
    const __m128 floats = _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    return to_double(VecOf<float, kVectorBytes / 2>(floats));
  } else if constexpr (std::is_same_v<In, Float16> && std::is_same_v<C, float>) {
    return Vec<float>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#endif
  } else {
    Vec<C> out;
    for (int lane = 0; lane < kCount; ++lane) out[lane] = C(widen(p[lane]));
    return out;
  }
}

// The first `count` elements, zeros behind them: for the ragged end of a row.
template <class C, class In>
inline Vec<C> load_first(const In* p, int64_t count) {
  In padded[kLanes<C>];
  std::memset(static_cast<void*>(padded), 0, sizeof padded);
  std::memcpy(static_cast<void*>(padded), p, size_t(count) * sizeof(In));
  return load<C>(padded);
}

// Half of a vector: kWhich 0 is the lower one.
template <int kWhich, class T, int kBytes, size_t... kLane>
inline VecOf<T, kBytes / 2> half_of(VecOf<T, kBytes> v, std::index_sequence<kLane...>) {
  return __builtin_shufflevector(v, v, (kLane + kWhich * sizeof...(kLane))...);
}
template <int kWhich, class T, int kBytes>
inline VecOf<T, kBytes / 2> half(VecOf<T, kBytes> v) {
  return half_of<kWhich, T, kBytes>(v, std::make_index_sequence<kBytes / 2 / sizeof(T)>{});
}

// Lanes added pairwise, so in an order that depends on the width alone.
template <class T, int kBytes = kVectorBytes>
inline T add_lanes(VecOf<T, kBytes> v) {
  if constexpr (kBytes == 2 * sizeof(T)) {
    return v[0] + v[1];
  } else {
    return add_lanes<T, kBytes / 2>(half<0, T, kBytes>(v) + half<1, T, kBytes>(v));
  }
}

template <class T>
inline void add_in_place(T* to, Vec<T> v) {
  const Vec<T> sum = load<T>(to) + v;
  std::memcpy(to, &sum, sizeof sum);
}

// to[i] += from[i] for n numbers.
inline void add_widened(double* to, const double* from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] += from[i];
}
inline void add_widened(double* to, const float* from, int64_t n) {
  constexpr int V = kLanes<double>;
  int64_t i = 0;
  for (; i + V <= n; i += V) add_in_place(to + i, load<double>(from + i));
  for (; i < n; ++i) to[i] += double(from[i]);
}

// to[i] += scale · from[i] for n numbers.
template <class T>
inline void add_scaled(double* to, const T* from, double scale, int64_t n) {
  constexpr int V = kLanes<double>;
  int64_t i = 0;
  for (; i + V <= n; i += V) add_in_place(to + i, load<double>(from + i) * scale);
  for (; i < n; ++i) to[i] += double(from[i]) * scale;
}

// Calls body with a pointer of the element type that `dtype` names.
template <class Body>
inline void with_element_type(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::kFloat32:
      return body(static_cast<const float*>(nullptr));
    case DType::kFloat64:
      return body(static_cast<const double*>(nullptr));
    case DType::kBFloat16:
      return body(static_cast<const BFloat16*>(nullptr));
    case DType::kFloat16:
      return body(static_cast<const Float16*>(nullptr));
  }
}

}  // namespace
}  // namespace CONE_ISA
}  // namespace cone
