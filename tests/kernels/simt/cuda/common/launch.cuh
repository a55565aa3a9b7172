// csrc/cuda/launch.cuh on the CPU: the same names, a launch runs the grid's blocks one after another.
#pragma once

#include <cuda_runtime.h>

#include <functional>
#include <stdexcept>
#include <string>

namespace simt {

// Runs body() for every thread of the grid. Throws where a barrier is divergent.
void run(const char* op, dim3 grid, unsigned threads, size_t shared_bytes, const std::function<void()>& body);
unsigned char* shared_memory();

}  // namespace simt

namespace cone {
namespace cuda {

inline void check(const char* op, cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(op) + ": " + cudaGetErrorString(error));
}

class Stream {
 public:
  Stream(const char* op, int, cudaStream_t) : op_(op) {}

  template <class... Params, class... Args>
  void launch(void (*kernel)(Params...), dim3 grid, int threads, size_t shared_bytes, const Args&... args) const {
    simt::run(op_, grid, unsigned(threads), shared_bytes, [&] { kernel(static_cast<Params>(args)...); });
  }

 private:
  const char* op_;
};

template <class T>
T* shared_memory() {
  return reinterpret_cast<T*>(simt::shared_memory());
}

}  // namespace cuda
}  // namespace cone
