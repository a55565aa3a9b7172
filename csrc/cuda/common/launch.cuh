// Launches kernels on the caller's device and stream. An error of any CUDA call is thrown with the op's name.
// Kernels take all shared memory from shared_memory(), so that tests can run their bodies without a GPU.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace cone {
namespace cuda {

inline void check(const char* op, cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // the next call must not report this error again
  throw std::runtime_error(std::string(op) + ": " + cudaGetErrorName(error) + ": " + cudaGetErrorString(error));
}

// Where an op runs: torch's current stream of the tensors' device. A thread that was on another device is put back
// at the end. One that is on the device already is left alone, because setting a device creates a CUDA context on it.
class Stream {
 public:
  Stream(const char* op, int device, cudaStream_t stream) : op_(op), stream_(stream), device_(device) {
    check(op, cudaGetDevice(&before_));
    if (before_ != device) check(op, cudaSetDevice(device));
  }
  ~Stream() {
    if (before_ != device_) cudaSetDevice(before_);
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  // Runs kernel(args...) over the grid; args are converted to the kernel's parameter types.
  template <class... Params, class... Args>
  void launch(void (*kernel)(Params...), dim3 grid, int threads, size_t shared_bytes, const Args&... args) const {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
    launch_converted(kernel, grid, threads, shared_bytes, static_cast<Params>(args)...);
  }

 private:
  template <class... Params>
  void launch_converted(void (*kernel)(Params...), dim3 grid, int threads, size_t shared_bytes, Params... args) const {
    const void* function = reinterpret_cast<const void*>(kernel);
    if (shared_bytes > kDefaultSharedBytes) allow_most_shared_memory(function);
    void* pointers[] = {const_cast<void*>(static_cast<const void*>(&args))...};
    check(op_, cudaLaunchKernel(function, grid, dim3(unsigned(threads)), pointers, shared_bytes, stream_));
  }

  // The same at every launch of any size: threads that launch one kernel at once must not take from each other.
  void allow_most_shared_memory(const void* function) const {
    int most = 0;
    check(op_, cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device_));
    check(op_, cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
  }

  static constexpr size_t kDefaultSharedBytes = 48 << 10;
  const char* op_;
  cudaStream_t stream_;
  int device_, before_ = 0;
};

// The block's dynamic shared memory, as large as its launch asked for.
template <class T>
__device__ __forceinline__ T* shared_memory() {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  return reinterpret_cast<T*>(shared_bytes);
}

}  // namespace cuda
}  // namespace cone
