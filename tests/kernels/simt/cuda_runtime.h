// What the kernels and launchers use of CUDA, on the CPU: qualifiers, vector types, thread numbers, barriers, shuffles.
// A block's threads are fibers of one system thread; see simt.cpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) alignas(bytes)

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

using cudaStream_t = struct SimtStream*;
enum cudaError_t { cudaSuccess = 0, cudaErrorNoDevice = 100, cudaErrorInsufficientDriver = 35 };
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 0;
  return cudaErrorNoDevice;
}
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };
namespace simt {
extern int most_shared;  // bytes of a block
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? 3 : simt::most_shared;
  return cudaSuccess;
}
inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = 0;
  return cudaSuccess;
}
#define CUDART_VERSION 0
#define __CUDA_ARCH_LIST__

namespace simt {

constexpr unsigned kWarp = 32;

// The running thread's place in the grid.
struct Place {
  dim3 thread, block, block_size, grid;
};
extern const Place* running;
inline const Place& place() { return *running; }
inline unsigned lane() { return place().thread.x % kWarp; }

// Each stops the running thread until all of its block, or all lanes of `mask`, have come to the same line.
void block_barrier(int line);
// Notes that the running thread adds to a number in global memory.
void note_adder(const void* address);
constexpr unsigned kAllLanes = 0xffffffff;
void warp_barrier(unsigned mask, int line);

// What lanes give to their warp: two slots each, which take turns. A lane writes into the one that was read before its
// last barrier, so no lane waits for the others to have read.
constexpr unsigned kSlotBytes = 64;
constexpr unsigned kMostThreads = 1024;
extern unsigned char slots[2][kMostThreads][kSlotBytes];
extern unsigned turns[kMostThreads];

// What `lane` of the running thread's warp gave last, until the running thread gives again.
inline const unsigned char* given(unsigned lane) {
  const unsigned thread = place().thread.x;
  return slots[turns[thread]][thread / kWarp * kWarp + lane];
}

// Gives a value to the warp, and goes on when all lanes have given theirs.
template <class T>
void give(unsigned mask, const T& value, int line) {
  static_assert(sizeof(T) <= kSlotBytes && std::is_trivially_copyable_v<T>);
  const unsigned thread = place().thread.x;
  turns[thread] ^= 1;
  std::memcpy(slots[turns[thread]][thread], &value, sizeof(T));
  warp_barrier(mask, line);
}

// The value that lane `source` gives.
template <class T>
T exchange(unsigned mask, const T& value, unsigned source, int line) {
  give(mask, value, line);
  T taken;
  std::memcpy(&taken, given(source), sizeof(T));
  return taken;
}

}  // namespace simt

#define threadIdx (simt::place().thread)
#define blockIdx (simt::place().block)
#define blockDim (simt::place().block_size)
#define gridDim (simt::place().grid)

inline void __syncthreads(int line = __builtin_LINE()) { simt::block_barrier(line); }
inline void __syncwarp(unsigned mask = simt::kAllLanes, int line = __builtin_LINE()) { simt::warp_barrier(mask, line); }

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, int line = __builtin_LINE()) {
  const unsigned first = simt::lane() & ~(unsigned(width) - 1);
  return simt::exchange(mask, value, first + (unsigned(source) & (unsigned(width) - 1)), line);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, int line = __builtin_LINE()) {
  const unsigned first = simt::lane() & ~(unsigned(width) - 1), other = simt::lane() ^ unsigned(bits);
  return simt::exchange(mask, value, other < first + unsigned(width) ? other : simt::lane(), line);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32, int line = __builtin_LINE()) {
  const unsigned last = simt::lane() | (unsigned(width) - 1), other = simt::lane() + distance;
  return simt::exchange(mask, value, other <= last ? other : simt::lane(), line);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32, int line = __builtin_LINE()) {
  const unsigned first = simt::lane() & ~(unsigned(width) - 1);
  return simt::exchange(mask, value, simt::lane() >= first + distance ? simt::lane() - distance : simt::lane(), line);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  unsigned bits = 0;
  simt::give(mask, unsigned(predicate != 0), line);
  for (unsigned lane = 0; lane < simt::kWarp; ++lane) {
    unsigned other = 0;
    std::memcpy(&other, simt::given(lane), sizeof other);
    bits |= other << lane;
  }
  return bits;
}
inline int __any_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return __ballot_sync(mask, predicate, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return __ballot_sync(mask, predicate, line) == mask;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline int __float_as_int(float value) { return int(__float_as_uint(value)); }
inline double __hiloint2double(int high, int low) {
  const uint64_t bits = uint64_t(unsigned(high)) << 32 | unsigned(low);
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class T>
T __ldcg(const T* address) {
  return *address;
}
// Blocks run one after the other, and a thread is left only where it waits.
inline unsigned atomicAdd(unsigned* address, unsigned value) {
  const unsigned before = *address;
  *address += value;
  return before;
}
inline void __threadfence() {}
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
using std::fabs;
using std::fmaf;
using std::isfinite;
using std::isnan;
using std::max;
using std::min;
using std::sqrt;
