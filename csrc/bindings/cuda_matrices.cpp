// The matrix kernels of cone_kernels._cuda, over raw pointers. Pointers and the stream come as integers, shapes and
// strides in elements; cone_kernels/kernels/cuda_matrices.py is the only caller and has checked them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cuda/second_moment.h"

namespace py = pybind11;

namespace {

using Address = uintptr_t;
using Three = std::tuple<int64_t, int64_t, int64_t>;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

cone::cuda::MatrixArgs matrix(Address data, int dtype, const Three& shape, const Three& strides) {
  return {at<const void>(data), cone::DType(dtype),   std::get<0>(shape),   std::get<1>(shape),
          std::get<2>(shape),   std::get<0>(strides), std::get<1>(strides), std::get<2>(strides)};
}

int64_t second_moment_workspace(Address data, int dtype, const Three& shape, const Three& strides, Address weights,
                                Address pilot) {
  return cone::cuda::second_moment_workspace({matrix(data, dtype, shape, strides), nullptr, at<const double>(weights),
                                              at<const double>(pilot), false, nullptr, nullptr});
}

void second_moment(Address data, int dtype, const Three& shape, const Three& strides, Address use, Address weights,
                   Address pilot, bool about_pilot, Address moment, Address workspace, int device, Address stream) {
  cone::cuda::second_moment({matrix(data, dtype, shape, strides), at<const uint8_t>(use), at<const double>(weights),
                             at<const double>(pilot), about_pilot, at<double>(moment), at<double>(workspace)},
                            {device, at<void>(stream)});
}

}  // namespace

void bind_matrices(py::module_& m) {
  using Unlocked = py::call_guard<py::gil_scoped_release>;
  m.def("second_moment_workspace", &second_moment_workspace, py::kw_only(), py::arg("data"), py::arg("dtype"),
        py::arg("shape"), py::arg("strides"), py::arg("weights"), py::arg("pilot"));
  m.def("second_moment", &second_moment, py::kw_only(), py::arg("data"), py::arg("dtype"), py::arg("shape"),
        py::arg("strides"), py::arg("use"), py::arg("weights"), py::arg("pilot"), py::arg("about_pilot"),
        py::arg("moment"), py::arg("workspace"), py::arg("device"), py::arg("stream"), Unlocked());
}
