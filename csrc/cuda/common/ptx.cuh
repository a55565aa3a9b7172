// Instructions that CUDA C++ has no name for: matrix products of a warp, their loads from shared memory, asynchronous
// copies into it, stores of neighbours. tests/kernels/simt/cuda/common/ptx.cuh stands in for them on the CPU.
#pragma once

#include <cstdint>

namespace cone {
namespace cuda {

enum class MatrixType { kFloat16, kBFloat16 };

// c (16, 8) += a (16, 16) b (16, 8) in float32; fragments as in the PTX manual's mma.m16n8k16.
template <MatrixType kType>
__device__ __forceinline__ void multiply_add(const unsigned (&a)[4], const unsigned (&b)[2], float (&c)[4]) {
  if constexpr (kType == MatrixType::kFloat16)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// c (16, 8) += a (16, 8) b (8, 8) in float32; fragments as in the PTX manual's mma.m16n8k8.
template <MatrixType kType>
__device__ __forceinline__ void multiply_add(const unsigned (&a)[2], unsigned b, float (&c)[4]) {
  if constexpr (kType == MatrixType::kFloat16)
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b));
  else
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b));
}

// Four transposed 8x8 matrices of 16-bit values: lane 8 q + r gives the address of row r of matrix q in shared memory,
// and gets of matrix q the values (2 t, g) and (2 t + 1, g), where g = lane / 4 and t = lane % 4.
__device__ __forceinline__ void load_transposed(const uint16_t* row, unsigned (&matrices)[4]) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(address)
               : "memory");
}

// The thread's lane, read anew: what is computed of it takes no register outside the code that needs it.
__device__ __forceinline__ int read_lane() {
  int lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}

// Starts a copy of 16 bytes into shared memory, `bytes` of them from `from` and zeros behind; both 16-byte aligned.
__device__ __forceinline__ void copy_async(void* shared, const void* from, int bytes) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
}
// Closes a group of the copies that this thread has started.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for this thread's groups, all but the newest kNewest.
template <int kNewest>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kNewest) : "memory");
}

// Has the memory at an address brought near, and waits for nothing.
__device__ __forceinline__ void prefetch(const void* address) {
  asm volatile("prefetch.global.L1 [%0];" ::"l"(address));
}

// Adds to a number in global memory that no other thread adds to, and does not wait for it.
__device__ __forceinline__ void add_to(double* to, double value) {
  asm volatile("red.relaxed.gpu.global.add.f64 [%0], %1;" ::"l"(to), "d"(value) : "memory");
}
__device__ __forceinline__ void add_to(int64_t* to, int64_t value) {
  asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
}

// Neighbours in one store, which the compiler would make two of.
__device__ __forceinline__ void store_four(float* to, float first, float second, float third, float fourth) {
  asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(first), "f"(second), "f"(third), "f"(fourth)
               : "memory");
}
__device__ __forceinline__ void store_two(unsigned* to, unsigned first, unsigned second) {
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(first), "r"(second) : "memory");
}

}  // namespace cuda
}  // namespace cone
