// The matrix kernels of cone_kernels._cuda, over raw pointers. Pointers and the stream come as integers, shapes and
// strides in elements; cone_kernels/kernels/cuda/matrices.py is the only caller and has checked them.
#include "bindings/queue.h"
#include "cuda/matrices/second_moment.h"
#include "cuda/matrices/top_eigenvectors.h"

namespace py = pybind11;

namespace {

using namespace cone::bindings;

using Three = std::tuple<int64_t, int64_t, int64_t>;

// Rows (n, d) of each layer, of `shape` and `strides` (layers, rows, columns).
cone::RowView rows_of(Address data, int dtype, const Three& shape, const Three& strides) {
  return {at<const void>(data), cone::DType(dtype),   std::get<1>(shape),
          std::get<2>(shape),   std::get<1>(strides), std::get<2>(strides)};
}

int64_t second_moment_workspace(Address data, int dtype, const Three& shape, const Three& strides, Address weights,
                                Address pilot) {
  return cone::cuda::second_moment_workspace(
      {{nullptr, std::get<0>(shape), rows_of(data, dtype, shape, strides), nullptr, at<const double>(weights),
        at<const double>(pilot), false, nullptr, 0},
       std::get<0>(strides),
       nullptr,
       0});
}

void second_moment(Address data, int dtype, const Three& shape, const Three& strides, Address use, Address weights,
                   Address pilot, bool about_pilot, Address moment, Address workspace, int64_t most_shared,
                   const DeviceAndStream& queue) {
  cone::cuda::second_moment({{nullptr, std::get<0>(shape), rows_of(data, dtype, shape, strides), at<const uint8_t>(use),
                              at<const double>(weights), at<const double>(pilot), about_pilot, at<double>(moment), 0},
                             std::get<0>(strides),
                             at<double>(workspace),
                             most_shared},
                            queue_of(queue));
}

// The arguments of the iteration, the same for its workspace, its beginning and its steps.
class TopEigenvectors {
 public:
  TopEigenvectors(Address data, int dtype, const Three& shape, const Three& strides, bool covariance, bool center,
                  int64_t k, double tolerance, int64_t max_iterations, Address start, int64_t block,
                  const Pointers& results, int64_t most_shared)
      : args_{{{nullptr, std::get<0>(shape), rows_of(data, dtype, shape, strides), covariance, center, k, tolerance,
                max_iterations, at<const double>(start), block, at<double>(results.at("values")),
                at<double>(results.at("vectors")), at<double>(results.at("residuals")),
                at<int64_t>(results.at("iterations")), at<double>(results.at("next_value")),
                at<double>(results.at("mean")), at<uint8_t>(results.at("converged")), 0},
               std::get<0>(strides),
               nullptr,
               most_shared},
              at<uint8_t>(results.at("done"))} {}

  int64_t workspace() const { return cone::cuda::top_eigenvectors_workspace(args_); }

  void begin(Address workspace, const DeviceAndStream& queue) {
    args_.workspace = at<double>(workspace);
    cone::cuda::top_eigenvectors_begin(args_, queue_of(queue));
  }

  void steps(int64_t count, const DeviceAndStream& queue) const {
    cone::cuda::top_eigenvectors_steps(args_, count, queue_of(queue));
  }

 private:
  cone::cuda::TopEigenvectorsArgs args_;
};

}  // namespace

void bind_matrices(py::module_& m) {
  m.def("most_shared_memory", &cone::cuda::most_shared_memory, py::arg("device"),
        "Bytes of shared memory that a block can have.");
  m.def("second_moment_workspace", &second_moment_workspace, py::kw_only(), py::arg("data"), py::arg("dtype"),
        py::arg("shape"), py::arg("strides"), py::arg("weights"), py::arg("pilot"));
  m.def("second_moment", &second_moment, py::kw_only(), py::arg("data"), py::arg("dtype"), py::arg("shape"),
        py::arg("strides"), py::arg("use"), py::arg("weights"), py::arg("pilot"), py::arg("about_pilot"),
        py::arg("moment"), py::arg("workspace"), py::arg("most_shared"), py::arg("queue"), Unlocked());
  py::class_<TopEigenvectors>(m, "TopEigenvectors")
      .def(py::init<Address, int, const Three&, const Three&, bool, bool, int64_t, double, int64_t, Address, int64_t,
                    const Pointers&, int64_t>(),
           py::kw_only(), py::arg("data"), py::arg("dtype"), py::arg("shape"), py::arg("strides"),
           py::arg("covariance"), py::arg("center"), py::arg("k"), py::arg("tolerance"), py::arg("max_iterations"),
           py::arg("start"), py::arg("block"), py::arg("results"), py::arg("most_shared"))
      .def("workspace", &TopEigenvectors::workspace)
      .def("begin", &TopEigenvectors::begin, py::kw_only(), py::arg("workspace"), py::arg("queue"), Unlocked())
      .def("steps", &TopEigenvectors::steps, py::arg("count"), py::kw_only(), py::arg("queue"), Unlocked());
}
