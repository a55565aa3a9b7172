// cone_kernels._cuda: what the CUDA runtime says of this machine. Imports on a machine without a GPU.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

void bind_matrices(pybind11::module_& m);

namespace {

int device_count() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver) return 0;
  if (error != cudaSuccess) throw std::runtime_error(std::string("device_count: ") + cudaGetErrorString(error));
  return count;
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA side of cone_kernels.";
  m.def("device_count", &device_count, "GPUs that the CUDA runtime can use; 0 without a GPU or a driver.");
  bind_matrices(m);
  m.attr("runtime_version") = CUDART_VERSION;
}
