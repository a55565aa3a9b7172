// cone_kernels._cuda: the CUDA kernels over raw pointers, and what the CUDA runtime says of this machine. Imports on a
// machine without a GPU. cone_kernels/kernels/cuda/moments.py is the only caller and has checked what it passes.
#include <cuda_runtime_api.h>

#include <stdexcept>

#include "bindings/queue.h"
#include "cuda/moments/gradients.cuh"
#include "cuda/moments/moments.cuh"
#include "cuda/moments/warp_moments.cuh"

namespace py = pybind11;

void bind_matrices(py::module_& m);  // csrc/bindings/cuda_matrices.cpp

namespace {

using namespace cone::bindings;

using Items = std::tuple<int64_t, int64_t, int, int, Address, Address>;
using Partials = std::tuple<Address, Address, Address, Address, int>;
using Lists = std::tuple<Address, Address, Address>;

cone::cuda::Segments segments_of(const Items& items) {
  const auto& [n, groups, group_parts, slices, order, starts] = items;
  return {n, groups, group_parts, slices, at<const int64_t>(order), at<const int64_t>(starts)};
}

cone::cuda::MomentPartials partials_of(const Partials& partials) {
  const auto& [columns, units, scalars, norms_sq, slabs] = partials;
  return {at<double>(columns), at<double>(units), at<double>(scalars), at<double>(norms_sq), slabs};
}

cone::cuda::TokenLists lists_of(const Lists& lists) {
  const auto& [positions, sizes, cu_seqlens] = lists;
  return {at<const int32_t>(positions), at<const int32_t>(sizes), at<const int64_t>(cu_seqlens)};
}

cone::RowMomentsArgs row_args(const std::vector<const void*>& layers, int dtype, int64_t n, int64_t d,
                              int64_t row_stride, int64_t col_stride, const Pointers& sums, int64_t groups,
                              Address status) {
  return {layers.data(),
          int64_t(layers.size()),
          {nullptr, cone::DType(dtype), n, d, row_stride, col_stride},
          nullptr,
          moment_sums(sums, groups),
          at<uint8_t>(status),
          0};
}

int row_moment_slabs(const std::vector<Address>& layers, int dtype, int64_t n, int64_t d, int64_t row_stride,
                     int64_t col_stride, const Pointers& sums, int device) {
  const auto pointers = layer_pointers(layers);
  return cone::cuda::row_moment_slabs(row_args(pointers, dtype, n, d, row_stride, col_stride, sums, 0, 0), device);
}

int pool_moment_slabs(const std::vector<Address>& layers, int dtype, int64_t n_sentences, int64_t n_tokens, int64_t d,
                      const Strides& strides, Address mask, Address cu_seqlens, int device) {
  const auto pointers = layer_pointers(layers);
  return cone::cuda::pool_moment_slabs(
      hidden_states(pointers, dtype, n_sentences, n_tokens, d, strides, mask, cu_seqlens), device);
}

void row_moments(const std::vector<Address>& layers, int dtype, int64_t n, int64_t d, int64_t row_stride,
                 int64_t col_stride, const Items& segments, const Pointers& sums, const Partials& partials,
                 Address status, const DeviceAndStream& queue) {
  const auto pointers = layer_pointers(layers);
  const int64_t groups = std::get<1>(segments);
  cone::cuda::row_moments({row_args(pointers, dtype, n, d, row_stride, col_stride, sums, groups, status),
                           segments_of(segments), partials_of(partials)},
                          queue_of(queue));
}

int64_t mean_pairwise_cosine_workspace(const std::vector<Address>& layers, int dtype, int64_t n, int64_t d,
                                       int64_t row_stride, int64_t col_stride, int device) {
  const auto pointers = layer_pointers(layers);
  return cone::cuda::mean_pairwise_cosine_workspace(
      pointers.data(), int64_t(pointers.size()), {nullptr, cone::DType(dtype), n, d, row_stride, col_stride}, device);
}

void mean_pairwise_cosine(const std::vector<Address>& layers, int dtype, int64_t n, int64_t d, int64_t row_stride,
                          int64_t col_stride, Address cosine, Address left_out, Address unit_sum, Address count,
                          Address workspace, const DeviceAndStream& queue) {
  const auto pointers = layer_pointers(layers);
  cone::cuda::mean_pairwise_cosine(
      pointers.data(), int64_t(pointers.size()), {nullptr, cone::DType(dtype), n, d, row_stride, col_stride},
      {at<double>(cosine), at<int64_t>(left_out), at<double>(unit_sum), at<int64_t>(count)}, at<void>(workspace),
      queue_of(queue));
}

void pool_moments(const std::vector<Address>& layers, int dtype, int64_t n_sentences, int64_t n_tokens, int64_t d,
                  const Strides& strides, Address mask, Address cu_seqlens, const Lists& lists, const Items& segments,
                  Address pooled, Address mean_units, const Pointers& sums, const Partials& partials, Address status,
                  const DeviceAndStream& queue) {
  const auto pointers = layer_pointers(layers);
  cone::cuda::pool_moments(
      {{hidden_states(pointers, dtype, n_sentences, n_tokens, d, strides, mask, cu_seqlens), nullptr, at<void>(pooled),
        moment_sums(sums, std::get<1>(segments)), field<double>(sums, "sentence_sq_sum"),
        field<double>(sums, "sentence_size_sq_sum"), field<int64_t>(sums, "n_sentences"),
        field<double>(sums, "sentence_unit_sum"), field<int64_t>(sums, "n_cancelled"), at<uint8_t>(status), 0},
       lists_of(lists),
       segments_of(segments),
       partials_of(partials),
       at<float>(mean_units)},
      queue_of(queue));
}

int64_t warp_moments_workspace(const std::vector<Address>& layers, int dtype, int64_t n_sentences, int64_t n_tokens,
                               int64_t d, const Strides& strides, Address mask, Address cu_seqlens, int64_t groups,
                               bool both_levels, int device) {
  const auto pointers = layer_pointers(layers);
  return cone::cuda::warp_moments_workspace(
      hidden_states(pointers, dtype, n_sentences, n_tokens, d, strides, mask, cu_seqlens), groups, both_levels, device);
}

void warp_moments(const std::vector<Address>& layers, int dtype, int64_t n_sentences, int64_t n_tokens, int64_t d,
                  const Strides& strides, Address mask, Address cu_seqlens, Address group_of, int64_t groups,
                  Address pooled, const Pointers& sums, Address status, const Pointers& pooled_sums,
                  Address pooled_status, Address workspace, const DeviceAndStream& queue) {
  const auto pointers = layer_pointers(layers);
  const cone::cuda::SentenceLevel sentences{moment_sums(pooled_sums, groups), field<int64_t>(pooled_sums, "n_empty"),
                                            at<uint8_t>(pooled_status)};
  cone::cuda::warp_moments(
      {hidden_states(pointers, dtype, n_sentences, n_tokens, d, strides, mask, cu_seqlens), at<const int64_t>(group_of),
       at<void>(pooled), moment_sums(sums, groups), field<double>(sums, "sentence_sq_sum"),
       field<double>(sums, "sentence_size_sq_sum"), field<int64_t>(sums, "n_sentences"),
       field<double>(sums, "sentence_unit_sum"), field<int64_t>(sums, "n_cancelled"), at<uint8_t>(status), 0},
      pooled_sums.empty() ? nullptr : &sentences, at<void>(workspace), queue_of(queue));
}

void masked_mean_pool(const std::vector<Address>& layers, int dtype, int64_t n_sentences, int64_t n_tokens, int64_t d,
                      const Strides& strides, Address mask, Address cu_seqlens, const Lists& lists, Address pooled,
                      const DeviceAndStream& queue) {
  const auto pointers = layer_pointers(layers);
  cone::cuda::masked_mean_pool(
      {hidden_states(pointers, dtype, n_sentences, n_tokens, d, strides, mask, cu_seqlens), at<void>(pooled), 0},
      lists_of(lists), queue_of(queue));
}

void list_tokens(Address mask, int64_t n_sentences, int64_t n_tokens, Address positions, Address sizes,
                 const DeviceAndStream& queue) {
  cone::cuda::list_tokens(at<const uint8_t>(mask), n_sentences, n_tokens, at<int32_t>(positions), at<int32_t>(sizes),
                          queue_of(queue));
}

void list_items(Address group_of, int64_t items, int64_t groups, Address order, Address starts,
                const DeviceAndStream& queue) {
  cone::cuda::list_items(at<const int64_t>(group_of), items, groups, at<int64_t>(order), at<int64_t>(starts),
                         queue_of(queue));
}

void mean_pairwise_cosine_backward(const std::vector<Address>& layers, int dtype, int64_t n, int64_t d,
                                   int64_t row_stride, int64_t col_stride, Address unit_sum, Address scale,
                                   Address grad_rows, const DeviceAndStream& queue) {
  const auto pointers = layer_pointers(layers);
  cone::cuda::mean_pairwise_cosine_backward({pointers.data(),
                                             int64_t(pointers.size()),
                                             {nullptr, cone::DType(dtype), n, d, row_stride, col_stride},
                                             at<const double>(unit_sum),
                                             at<const double>(scale),
                                             at<void>(grad_rows),
                                             0},
                                            queue_of(queue));
}

void masked_mean_pool_backward(const std::vector<Address>& layers, int dtype, int64_t n, int64_t d, int64_t row_stride,
                               int64_t col_stride, int result_dtype, int64_t n_tokens, Address mask, Address cu_seqlens,
                               Address grad_hidden, const DeviceAndStream& queue) {
  const auto pointers = layer_pointers(layers);
  cone::cuda::masked_mean_pool_backward({pointers.data(),
                                         int64_t(pointers.size()),
                                         {nullptr, cone::DType(dtype), n, d, row_stride, col_stride},
                                         cone::DType(result_dtype),
                                         n_tokens,
                                         at<const uint8_t>(mask),
                                         at<const int64_t>(cu_seqlens),
                                         at<void>(grad_hidden),
                                         0},
                                        queue_of(queue));
}

void bind_moments(py::module_& m) {
  m.def("row_moments", &row_moments, py::kw_only(), py::arg("layers"), py::arg("dtype"), py::arg("n"), py::arg("d"),
        py::arg("row_stride"), py::arg("col_stride"), py::arg("segments"), py::arg("sums"), py::arg("partials"),
        py::arg("status"), py::arg("queue"), Unlocked());
  m.def("mean_pairwise_cosine_workspace", &mean_pairwise_cosine_workspace, py::kw_only(), py::arg("layers"),
        py::arg("dtype"), py::arg("n"), py::arg("d"), py::arg("row_stride"), py::arg("col_stride"), py::arg("device"),
        "Bytes that mean_pairwise_cosine takes; 0 where it does not take these rows.");
  m.def("mean_pairwise_cosine", &mean_pairwise_cosine, py::kw_only(), py::arg("layers"), py::arg("dtype"), py::arg("n"),
        py::arg("d"), py::arg("row_stride"), py::arg("col_stride"), py::arg("cosine"), py::arg("left_out"),
        py::arg("unit_sum"), py::arg("count"), py::arg("workspace"), py::arg("queue"), Unlocked());
  m.def("pool_moments", &pool_moments, py::kw_only(), py::arg("layers"), py::arg("dtype"), py::arg("n_sentences"),
        py::arg("n_tokens"), py::arg("d"), py::arg("strides"), py::arg("mask"), py::arg("cu_seqlens"), py::arg("lists"),
        py::arg("segments"), py::arg("pooled"), py::arg("mean_units"), py::arg("sums"), py::arg("partials"),
        py::arg("status"), py::arg("queue"), Unlocked());
  m.def("warp_moments_workspace", &warp_moments_workspace, py::kw_only(), py::arg("layers"), py::arg("dtype"),
        py::arg("n_sentences"), py::arg("n_tokens"), py::arg("d"), py::arg("strides"), py::arg("mask"),
        py::arg("cu_seqlens"), py::arg("groups"), py::arg("both_levels"), py::arg("device"),
        "Bytes that warp_moments takes; 0 where it does not take these tokens.");
  m.def("warp_moments", &warp_moments, py::kw_only(), py::arg("layers"), py::arg("dtype"), py::arg("n_sentences"),
        py::arg("n_tokens"), py::arg("d"), py::arg("strides"), py::arg("mask"), py::arg("cu_seqlens"),
        py::arg("group_of"), py::arg("groups"), py::arg("pooled"), py::arg("sums"), py::arg("status"),
        py::arg("pooled_sums"), py::arg("pooled_status"), py::arg("workspace"), py::arg("queue"), Unlocked());
  m.def("masked_mean_pool", &masked_mean_pool, py::kw_only(), py::arg("layers"), py::arg("dtype"),
        py::arg("n_sentences"), py::arg("n_tokens"), py::arg("d"), py::arg("strides"), py::arg("mask"),
        py::arg("cu_seqlens"), py::arg("lists"), py::arg("pooled"), py::arg("queue"), Unlocked());
  m.def("list_tokens", &list_tokens, py::kw_only(), py::arg("mask"), py::arg("n_sentences"), py::arg("n_tokens"),
        py::arg("positions"), py::arg("sizes"), py::arg("queue"), Unlocked());
  m.def("list_items", &list_items, py::kw_only(), py::arg("group_of"), py::arg("items"), py::arg("groups"),
        py::arg("order"), py::arg("starts"), py::arg("queue"), Unlocked());
  m.def("row_moment_slabs", &row_moment_slabs, py::kw_only(), py::arg("layers"), py::arg("dtype"), py::arg("n"),
        py::arg("d"), py::arg("row_stride"), py::arg("col_stride"), py::arg("sums"), py::arg("device"),
        "Slabs of columns that row_moments takes these rows in.");
  m.def("pool_moment_slabs", &pool_moment_slabs, py::kw_only(), py::arg("layers"), py::arg("dtype"),
        py::arg("n_sentences"), py::arg("n_tokens"), py::arg("d"), py::arg("strides"), py::arg("mask"),
        py::arg("cu_seqlens"), py::arg("device"), "Slabs of columns that pool_moments takes these tokens in.");
  m.attr("scalars") = int(cone::cuda::kScalars);
}

void bind_gradients(py::module_& m) {
  m.def("mean_pairwise_cosine_backward", &mean_pairwise_cosine_backward, py::kw_only(), py::arg("layers"),
        py::arg("dtype"), py::arg("n"), py::arg("d"), py::arg("row_stride"), py::arg("col_stride"), py::arg("unit_sum"),
        py::arg("scale"), py::arg("grad_rows"), py::arg("queue"), Unlocked());
  m.def("masked_mean_pool_backward", &masked_mean_pool_backward, py::kw_only(), py::arg("layers"), py::arg("dtype"),
        py::arg("n"), py::arg("d"), py::arg("row_stride"), py::arg("col_stride"), py::arg("result_dtype"),
        py::arg("n_tokens"), py::arg("mask"), py::arg("cu_seqlens"), py::arg("grad_hidden"), py::arg("queue"),
        Unlocked());
}

int device_count() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver) return 0;
  if (error != cudaSuccess) throw std::runtime_error(std::string("device_count: ") + cudaGetErrorString(error));
  return count;
}

int driver_version() {
  int version = 0;
  cudaDriverGetVersion(&version);
  return version;
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of cone_kernels, over raw pointers.";
  m.def("device_count", &device_count, "GPUs that the CUDA runtime can use; 0 without a GPU or a driver.");
  m.def("driver_version", &driver_version, "The CUDA version that the driver has, as 13000; 0 without a driver.");
  m.attr("runtime_version") = CUDART_VERSION;
  m.attr("architectures") = cone::cuda::architectures();
  bind_moments(m);
  bind_gradients(m);
  bind_matrices(m);
}
