// csrc/cuda/ptx.cuh on the CPU. Products truncate as tensor cores do; asynchronous copies land when they are waited for
// and no sooner, so that a wait that is missing shows.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <vector>

#include "cuda/common/float16.cuh"

namespace cone {
namespace cuda {

enum class MatrixType { kFloat16, kBFloat16 };

namespace emulated {

template <MatrixType kType>
float value_of(unsigned pair, unsigned half) {
  const uint16_t bits = uint16_t(pair >> 16 * half);
  return kType == MatrixType::kBFloat16 ? __uint_as_float(unsigned(bits) << 16) : float16_to_float(bits);
}

// Of a finite value; subnormal numbers are not shifted up to their first digit, and zeros count for nothing.
template <MatrixType kType>
int exponent_of(float value) {
  const unsigned bits = __float_as_uint(value) & 0x7fffffff;
  return bits == 0 ? -1024 : std::max(int(bits >> 23) - 127, kType == MatrixType::kFloat16 ? -14 : -126);
}

inline double power_of_two(int exponent) {
  const uint64_t bits = uint64_t(exponent + 1023) << 52;
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float truncated(double value) {
  const float nearest = float(value);
  return std::isfinite(nearest) && std::fabs(double(nearest)) > std::fabs(value) ? std::nextafterf(nearest, 0.0f)
                                                                                 : nearest;
}

// c + Σ left · right as the hardware with the fewest digits adds (compute capability 8.0): all terms are aligned to the
// largest exponent among them, with one bit more than float32 has, and what falls off is cut off of each.
template <MatrixType kType>
float add_products(float c, const float (&left)[8], const float (&right)[8], const int (&left_exponents)[8],
                   const int (&right_exponents)[8]) {
  constexpr int kExtraBits = 1;
  double products[8], exact = c;
  int largest = std::max(exponent_of<MatrixType::kBFloat16>(c), -126);
  for (unsigned k = 0; k < 8; ++k) {
    products[k] = double(left[k]) * double(right[k]);
    exact += products[k];
    largest = std::max(largest, left_exponents[k] + right_exponents[k]);
  }
  if (!std::isfinite(exact)) return float(exact);
  const int last_bit = largest - 23 - kExtraBits;
  const double per_unit = power_of_two(-last_bit);
  int64_t units = int64_t(double(c) * per_unit);  // cuts off; no term has more than 26 bits
  for (const double product : products) units += int64_t(product * per_unit);
  return truncated(double(units) * power_of_two(last_bit));
}

struct Copy {
  void* to;
  const void* from;
  int bytes;
};
// Of each thread of the block: groups of copies under way, the last one still open.
struct Copies {
  std::deque<std::vector<Copy>> groups;
  std::vector<Copy> open;
};
inline Copies& copies() {
  static std::vector<Copies> of_threads(1024);
  return of_threads[threadIdx.x];
}

}  // namespace emulated

// Eight products are added at a time: kParts times.
template <MatrixType kType, unsigned kParts>
void multiply_add_parts(const unsigned (&a)[2 * kParts], const unsigned (&b)[kParts], float (&c)[4], int line) {
  struct Given {
    float a[2 * kParts][2], b[kParts][2];
  };
  Given own;
  for (unsigned half = 0; half < 2; ++half) {
    for (unsigned i = 0; i < 2 * kParts; ++i) own.a[i][half] = emulated::value_of<kType>(a[i], half);
    for (unsigned i = 0; i < kParts; ++i) own.b[i][half] = emulated::value_of<kType>(b[i], half);
  }
  simt::give(simt::kAllLanes, own, line);
  const unsigned g = simt::lane() / 4, t = simt::lane() % 4;
  const auto given = [](unsigned lane) { return reinterpret_cast<const Given*>(simt::given(lane)); };
  for (unsigned part = 0; part < kParts; ++part) {
    float left[2][8], right[2][8];  // rows g and g + 8 of a, columns 2 t and 2 t + 1 of b; k = 8 part ..
    int left_exponents[2][8], right_exponents[2][8];
    for (unsigned s = 0; s < 2; ++s)
      for (unsigned k = 0; k < 8; ++k) {
        left[s][k] = given(4 * g + k / 2)->a[2 * part + s][k % 2];
        right[s][k] = given(4 * (2 * t + s) + k / 2)->b[part][k % 2];
        left_exponents[s][k] = emulated::exponent_of<kType>(left[s][k]);
        right_exponents[s][k] = emulated::exponent_of<kType>(right[s][k]);
      }
    for (unsigned i = 0; i < 4; ++i)
      c[i] =
          emulated::add_products<kType>(c[i], left[i / 2], right[i % 2], left_exponents[i / 2], right_exponents[i % 2]);
  }
}

template <MatrixType kType>
void multiply_add(const unsigned (&a)[4], const unsigned (&b)[2], float (&c)[4], int line = __builtin_LINE()) {
  multiply_add_parts<kType, 2>(a, b, c, line);
}
template <MatrixType kType>
void multiply_add(const unsigned (&a)[2], unsigned b, float (&c)[4], int line = __builtin_LINE()) {
  const unsigned only[1] = {b};
  multiply_add_parts<kType, 1>(a, only, c, line);
}

inline void load_transposed(const uint16_t* row, unsigned (&matrices)[4], int line = __builtin_LINE()) {
  struct Row {
    uint16_t values[8];
  } own;
  std::memcpy(&own, row, sizeof own);
  simt::give(simt::kAllLanes, own, line);
  const unsigned g = simt::lane() / 4, t = simt::lane() % 4;
  for (unsigned q = 0; q < 4; ++q) {
    uint16_t pair[2];
    for (unsigned s = 0; s < 2; ++s) std::memcpy(&pair[s], simt::given(8 * q + 2 * t + s) + 2 * g, sizeof pair[s]);
    std::memcpy(&matrices[q], pair, sizeof pair);
  }
}

inline void prefetch(const void*) {}
// Throws where a thread adds to what another one has added to in the same launch: the result would depend on the order.
template <class T>
void add_to(T* to, T value) {
  simt::note_adder(to);
  *to += value;
}

inline int read_lane() { return int(simt::lane()); }

inline void copy_async(void* shared, const void* from, int bytes) {
  if (bytes < 0 || bytes > 16 || (uintptr_t(shared) | uintptr_t(from)) % 16 != 0)
    throw std::logic_error("copy_async: misaligned, or not 0 to 16 bytes");
  emulated::copies().open.push_back({shared, from, bytes});
}
inline void commit_copies() {
  emulated::Copies& copies = emulated::copies();
  copies.groups.push_back(std::move(copies.open));
  copies.open.clear();
}
template <int kNewest>
void wait_for_copies() {
  auto& groups = emulated::copies().groups;
  for (; groups.size() > kNewest; groups.pop_front())
    for (const emulated::Copy& copy : groups.front()) {
      std::memset(copy.to, 0, 16);
      std::memcpy(copy.to, copy.from, size_t(copy.bytes));
    }
}

template <class T, class... Values>
void store_neighbours(T* to, Values... values) {
  if (uintptr_t(to) % (sizeof...(values) * sizeof(T)) != 0) throw std::logic_error("a store of neighbours: misaligned");
  ((*to++ = values), ...);
}
inline void store_two(unsigned* to, unsigned first, unsigned second) { store_neighbours(to, first, second); }
inline void store_four(float* to, float first, float second, float third, float fourth) {
  store_neighbours(to, first, second, third, fourth);
}

}  // namespace cuda
}  // namespace cone
