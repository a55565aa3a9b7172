// Small kernels that show that the shim does what a GPU does, and finds what it is there to find.
#include <string>

#include "cuda/common/launch.cuh"
#include "cuda/common/ptx.cuh"

namespace {

// One block per row: the sum by shuffles within warps and shared memory between them.
__global__ void sum_rows(const float* rows, int n, float* sums) {
  float* of_warps = cone::cuda::shared_memory<float>();
  float total = 0;
  for (int j = int(threadIdx.x); j < n; j += int(blockDim.x)) total += rows[int64_t(blockIdx.x) * n + j];
  for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(0xffffffffu, total, step);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = total;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (unsigned warp = 1; warp < blockDim.x / 32; ++warp) total += of_warps[warp];
  sums[blockIdx.x] = total;
}

__global__ void some_threads_skip_a_barrier() {
  if (threadIdx.x < 40) __syncthreads();
}

__global__ void two_barriers_at_once() {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
}

__global__ void half_a_warp_shuffles(int* values) {
  if (threadIdx.x < 16) values[threadIdx.x] = __shfl_xor_sync(0xffffffffu, int(threadIdx.x), 1);
}

__global__ void reads_shared_memory_before_writing(float* value) { *value = cone::cuda::shared_memory<float>()[0]; }

// Two warps exchange the number of the turn, without a second barrier: a race, for one may write while the other reads.
__global__ void one_buffer_for_two_turns(int* seen) {
  int* last = cone::cuda::shared_memory<int>();
  for (int turn = 0; turn < 2; ++turn) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) last[threadIdx.x / 32] = turn;
    __syncthreads();
    if (threadIdx.x % 32 == 0) seen[threadIdx.x / 32 * 2 + turn] = last[1 - threadIdx.x / 32];
    __syncwarp();
  }
}

__global__ void lanes(int* down, int* from_third, unsigned* ballot) {
  const int lane = int(threadIdx.x);
  down[lane] = __shfl_down_sync(0xffffffffu, lane, 3);
  from_third[lane] = __shfl_sync(0xffffffffu, lane, 3, 8);
  const unsigned bits = __ballot_sync(0xffffffffu, lane % 3 == 0);
  if (lane == 0) *ballot = bits;
}

// 1 and 16 products of 2^-12 and 2^exponent in one entry of a warp's matrix product.
__global__ void one_and_small_products(int exponent, float* sum) {
  const unsigned small = unsigned(cone::cuda::float_to_float16(std::ldexp(1.0f, exponent))) * 0x10001u;
  const unsigned other = unsigned(cone::cuda::float_to_float16(0x1p-12f)) * 0x10001u;
  const unsigned left[4] = {small, small, small, small}, right[2] = {other, other};
  float entries[4] = {1, 1, 1, 1};
  cone::cuda::multiply_add<cone::cuda::MatrixType::kFloat16>(left, right, entries);
  if (threadIdx.x == 0) *sum = entries[0];
}

__global__ void does_nothing() {}

__global__ void adds(double* to, unsigned numbers) { cone::cuda::add_to(to + threadIdx.x % numbers, 1.0); }

std::string message;

template <class Body>
const char* told(const Body& body) {
  message.clear();
  try {
    body(cone::cuda::Stream("self_test", 0, nullptr));
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT const char* run_sum_rows(const float* rows, int n_rows, int n, float* sums, int threads) {
  return told([&](const auto& stream) {
    stream.launch(sum_rows, dim3(unsigned(n_rows)), threads, sizeof(float) * threads / 32, rows, n, sums);
  });
}
EXPORT const char* run_some_threads_skip_a_barrier() {
  return told([](const auto& stream) { stream.launch(some_threads_skip_a_barrier, dim3(2), 64, 0); });
}
EXPORT const char* run_two_barriers_at_once() {
  return told([](const auto& stream) { stream.launch(two_barriers_at_once, dim3(1), 64, 0); });
}
EXPORT const char* run_half_a_warp_shuffles(int* values) {
  return told([&](const auto& stream) { stream.launch(half_a_warp_shuffles, dim3(1), 32, 0, values); });
}
EXPORT const char* run_reads_shared_memory_before_writing(float* value) {
  return told([&](const auto& stream) { stream.launch(reads_shared_memory_before_writing, dim3(1), 32, 4, value); });
}
EXPORT const char* run_lanes(int* down, int* from_third, unsigned* ballot) {
  return told([&](const auto& stream) { stream.launch(lanes, dim3(1), 32, 0, down, from_third, ballot); });
}
EXPORT const char* run_one_buffer_for_two_turns(int* seen) {
  return told([&](const auto& stream) { stream.launch(one_buffer_for_two_turns, dim3(1), 64, 8, seen); });
}
EXPORT const char* run_threads(int threads) {
  return told([&](const auto& stream) { stream.launch(two_barriers_at_once, dim3(1), threads, 0); });
}
EXPORT const char* run_one_and_small_products(int exponent, float* sum) {
  return told([&](const auto& stream) { stream.launch(one_and_small_products, dim3(1), 32, 0, exponent, sum); });
}
EXPORT const char* run_adds(double* to, unsigned numbers) {
  return told([&](const auto& stream) { stream.launch(adds, dim3(1), 32, 0, to, numbers); });
}
EXPORT const char* run_grid(unsigned x, unsigned y, unsigned z) {
  return told([&](const auto& stream) { stream.launch(does_nothing, dim3(x, y, z), 32, 0); });
}
