// The bindings of cone_kernels._cuda as one translation unit: pybind11's headers take most of the time of each.
#include "bindings/cuda.cpp"
#include "bindings/cuda_matrices.cpp"
