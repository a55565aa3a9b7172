// cone_kernels._cpu: the CPU kernels over raw pointers. Pointers come as integers, tensors' shapes and strides in
// elements; cone_kernels/kernels/cpu.py is the only caller and has checked them.
#include <memory>

#include "bindings/pointers.h"
#include "cone/gradients.h"
#include "cone/second_moment.h"
#include "cone/top_eigenvectors.h"
#include "cpu/isa.h"

namespace py = pybind11;

namespace {

using namespace cone::bindings;

// Means of float64 are float64; of all else float32.
cone::DType pooled_dtype(cone::DType dtype) { return dtype == cone::DType::kFloat64 ? dtype : cone::DType::kFloat32; }

void row_moments(const std::vector<Address>& layers, int dtype, int64_t n, int64_t d, int64_t row_stride,
                 int64_t col_stride, Address groups_of_rows, int64_t groups, const Pointers& sums, Address status,
                 int threads) {
  const auto pointers = layer_pointers(layers);
  cone::row_moments({pointers.data(),
                     int64_t(pointers.size()),
                     {nullptr, cone::DType(dtype), n, d, row_stride, col_stride},
                     at<const int64_t>(groups_of_rows),
                     moment_sums(sums, groups),
                     at<uint8_t>(status),
                     threads});
}

void mean_pairwise_cosine(const std::vector<Address>& layers, int dtype, int64_t n, int64_t d, int64_t row_stride,
                          int64_t col_stride, Address cosine, Address left_out, Address unit_sum, Address count,
                          int threads) {
  const auto pointers = layer_pointers(layers);
  cone::mean_pairwise_cosine({pointers.data(),
                              int64_t(pointers.size()),
                              {nullptr, cone::DType(dtype), n, d, row_stride, col_stride},
                              at<double>(cosine),
                              at<int64_t>(left_out),
                              at<double>(unit_sum),
                              at<int64_t>(count),
                              nullptr,
                              threads});
}

void pool_moments(const std::vector<Address>& layers, int dtype, int64_t n_sentences, int64_t n_tokens, int64_t d,
                  const Strides& strides, Address mask, Address cu_seqlens, Address groups_of_sentences, int64_t groups,
                  Address pooled, const Pointers& sums, Address status, int threads) {
  const auto pointers = layer_pointers(layers);
  cone::pool_moments({hidden_states(pointers, dtype, n_sentences, n_tokens, d, strides, mask, cu_seqlens),
                      at<const int64_t>(groups_of_sentences), at<void>(pooled), moment_sums(sums, groups),
                      field<double>(sums, "sentence_sq_sum"), field<double>(sums, "sentence_size_sq_sum"),
                      field<int64_t>(sums, "n_sentences"), field<double>(sums, "sentence_unit_sum"),
                      field<int64_t>(sums, "n_cancelled"), at<uint8_t>(status), threads});
}

void masked_mean_pool(const std::vector<Address>& layers, int dtype, int64_t n_sentences, int64_t n_tokens, int64_t d,
                      const Strides& strides, Address mask, Address cu_seqlens, Address pooled, int threads) {
  const auto pointers = layer_pointers(layers);
  cone::masked_mean_pool(
      {hidden_states(pointers, dtype, n_sentences, n_tokens, d, strides, mask, cu_seqlens), at<void>(pooled), threads});
}

void mean_pairwise_cosine_backward(const std::vector<Address>& layers, int dtype, int64_t n, int64_t d,
                                   int64_t row_stride, int64_t col_stride, Address unit_sum, Address scale,
                                   Address grad_rows, int threads) {
  const auto pointers = layer_pointers(layers);
  cone::mean_pairwise_cosine_backward({pointers.data(),
                                       int64_t(pointers.size()),
                                       {nullptr, cone::DType(dtype), n, d, row_stride, col_stride},
                                       at<const double>(unit_sum),
                                       at<const double>(scale),
                                       at<void>(grad_rows),
                                       threads});
}

void masked_mean_pool_backward(const std::vector<Address>& layers, int dtype, int64_t n, int64_t d, int64_t row_stride,
                               int64_t col_stride, int result_dtype, int64_t n_tokens, Address mask, Address cu_seqlens,
                               Address grad_hidden, int threads) {
  const auto pointers = layer_pointers(layers);
  cone::masked_mean_pool_backward({pointers.data(),
                                   int64_t(pointers.size()),
                                   {nullptr, cone::DType(dtype), n, d, row_stride, col_stride},
                                   cone::DType(result_dtype),
                                   n_tokens,
                                   at<const uint8_t>(mask),
                                   at<const int64_t>(cu_seqlens),
                                   at<void>(grad_hidden),
                                   threads});
}

// The mean pairwise cosine of one layer's sentences in one call, as a loss takes it of a small batch, where the calls
// take longer than the kernels: of the means of their tokens, or of the rows themselves (`n_sentences` of them, as far
// apart as the first stride says) where there is neither a mask nor cu_seqlens. Returns the cosine, how many rows were
// used, and the length of the shortest.
std::tuple<double, int64_t, double> pooled_cosine(Address layer, int dtype, int64_t n_sentences, int64_t n_tokens,
                                                  int64_t d, const Strides& strides, Address mask, Address cu_seqlens,
                                                  Address pooled, Address unit_sum, int threads) {
  const std::vector<const void*> layers{at<const void>(layer)};
  const void* rows = layers[0];
  cone::RowView view{nullptr, cone::DType(dtype), n_sentences, d, std::get<0>(strides), std::get<2>(strides)};
  if (mask != 0 || cu_seqlens != 0) {
    cone::masked_mean_pool(
        {hidden_states(layers, dtype, n_sentences, n_tokens, d, strides, mask, cu_seqlens), at<void>(pooled), threads});
    rows = at<const void>(pooled);
    view = {nullptr, pooled_dtype(cone::DType(dtype)), n_sentences, d, d, 1};
  }
  double cosine, shortest;
  int64_t left_out, count;
  cone::mean_pairwise_cosine({&rows, 1, view, &cosine, &left_out, at<double>(unit_sum), &count, &shortest, threads});
  return {cosine, count, shortest};
}

// The gradient of the hidden states, or of the rows, that `pooled_cosine` was of. `rows` are what it took the cosine
// of.
void pooled_cosine_backward(Address rows, int dtype, int64_t n, int64_t d, int64_t row_stride, int64_t col_stride,
                            Address unit_sum, double scale, int64_t n_tokens, Address mask, Address cu_seqlens,
                            Address grad_hidden, int threads) {
  const void* first = at<const void>(rows);
  const cone::RowView view{nullptr, cone::DType(dtype), n, d, row_stride, col_stride};
  if (mask == 0 && cu_seqlens == 0)
    return cone::mean_pairwise_cosine_backward(
        {&first, 1, view, at<const double>(unit_sum), &scale, at<void>(grad_hidden), threads});
  const cone::DType type = pooled_dtype(cone::DType(dtype));
  const size_t element = type == cone::DType::kFloat64 ? sizeof(double) : sizeof(float);
  const std::unique_ptr<char[]> grad_pooled(new char[size_t(n * d) * element]);
  cone::mean_pairwise_cosine_backward(
      {&first, 1, {nullptr, type, n, d, d, 1}, at<const double>(unit_sum), &scale, grad_pooled.get(), threads});
  const void* grad = grad_pooled.get();
  cone::masked_mean_pool_backward({&grad,
                                   1,
                                   {nullptr, type, n, d, d, 1},
                                   cone::DType(dtype),
                                   n_tokens,
                                   at<const uint8_t>(mask),
                                   at<const int64_t>(cu_seqlens),
                                   at<void>(grad_hidden),
                                   threads});
}

void second_moment(const std::vector<Address>& layers, int dtype, int64_t n, int64_t d, int64_t row_stride,
                   int64_t col_stride, Address use, Address weights, Address pilot, bool about_pilot, Address moment,
                   bool whole, int threads) {
  const auto pointers = layer_pointers(layers);
  cone::second_moment({pointers.data(),
                       int64_t(pointers.size()),
                       {nullptr, cone::DType(dtype), n, d, row_stride, col_stride},
                       at<const uint8_t>(use),
                       at<const double>(weights),
                       at<const double>(pilot),
                       about_pilot,
                       at<double>(moment),
                       threads,
                       whole});
}

void mean_of_rows(const std::vector<Address>& layers, int dtype, int64_t n, int64_t d, int64_t row_stride,
                  int64_t col_stride, Address weights, Address mean, int threads) {
  const auto pointers = layer_pointers(layers);
  cone::mean_of_rows({pointers.data(),
                      int64_t(pointers.size()),
                      {nullptr, cone::DType(dtype), n, d, row_stride, col_stride},
                      at<const double>(weights),
                      at<double>(mean),
                      threads});
}

void top_eigenvectors(const std::vector<Address>& layers, int dtype, int64_t n, int64_t d, int64_t row_stride,
                      int64_t col_stride, bool covariance, bool center, int64_t k, double tolerance,
                      int64_t max_iterations, Address start, int64_t block, Address values, Address vectors,
                      Address residuals, Address iterations, Address next_value, Address mean, Address converged,
                      int threads) {
  const auto pointers = layer_pointers(layers);
  cone::top_eigenvectors({pointers.data(),
                          int64_t(pointers.size()),
                          {nullptr, cone::DType(dtype), n, d, row_stride, col_stride},
                          covariance,
                          center,
                          k,
                          tolerance,
                          max_iterations,
                          at<const double>(start),
                          block,
                          at<double>(values),
                          at<double>(vectors),
                          at<double>(residuals),
                          at<int64_t>(iterations),
                          at<double>(next_value),
                          at<double>(mean),
                          at<uint8_t>(converged),
                          threads});
}

// The largest |C − Cᵀ| and the largest |C|.
std::pair<double, double> asymmetry(const std::vector<Address>& layers, int dtype, int64_t n, int64_t d,
                                    int64_t row_stride, int64_t col_stride, int threads) {
  const auto pointers = layer_pointers(layers);
  double apart, largest;
  cone::asymmetry({pointers.data(),
                   int64_t(pointers.size()),
                   {nullptr, cone::DType(dtype), n, d, row_stride, col_stride},
                   &apart,
                   &largest,
                   threads});
  return {apart, largest};
}

const std::vector<std::pair<std::string, cone::Isa>> kIsas = {
    {"baseline", cone::Isa::kBaseline}, {"avx2", cone::Isa::kAvx2}, {"avx512", cone::Isa::kAvx512}};

std::string active_isa() {
  for (const auto& [name, isa] : kIsas)
    if (isa == cone::active_isa()) return name;
  return "unknown";
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const auto& [name, isa] : kIsas)
    if (cone::isa_supported(isa)) names.push_back(name);
  return names;
}

void force_isa(const std::string& wanted) {
  for (const auto& [name, isa] : kIsas)
    if (name == wanted && cone::isa_supported(isa)) return cone::force_isa(isa);
  throw py::value_error("isa: got '" + wanted + "'; it must be built in and known to this processor");
}

constexpr bool kThreads =
#ifdef _OPENMP
    true;
#else
    false;
#endif

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "CPU kernels of cone_kernels, over raw pointers.";
  m.def("row_moments", &row_moments, py::kw_only(), py::arg("layers"), py::arg("dtype"), py::arg("n"), py::arg("d"),
        py::arg("row_stride"), py::arg("col_stride"), py::arg("groups_of_rows"), py::arg("groups"), py::arg("sums"),
        py::arg("status"), py::arg("threads"), Unlocked());
  m.def("mean_pairwise_cosine", &mean_pairwise_cosine, py::kw_only(), py::arg("layers"), py::arg("dtype"), py::arg("n"),
        py::arg("d"), py::arg("row_stride"), py::arg("col_stride"), py::arg("cosine"), py::arg("left_out"),
        py::arg("unit_sum"), py::arg("count"), py::arg("threads"), Unlocked());
  m.def("pool_moments", &pool_moments, py::kw_only(), py::arg("layers"), py::arg("dtype"), py::arg("n_sentences"),
        py::arg("n_tokens"), py::arg("d"), py::arg("strides"), py::arg("mask"), py::arg("cu_seqlens"),
        py::arg("groups_of_sentences"), py::arg("groups"), py::arg("pooled"), py::arg("sums"), py::arg("status"),
        py::arg("threads"), Unlocked());
  m.def("masked_mean_pool", &masked_mean_pool, py::kw_only(), py::arg("layers"), py::arg("dtype"),
        py::arg("n_sentences"), py::arg("n_tokens"), py::arg("d"), py::arg("strides"), py::arg("mask"),
        py::arg("cu_seqlens"), py::arg("pooled"), py::arg("threads"), Unlocked());
  m.def("mean_pairwise_cosine_backward", &mean_pairwise_cosine_backward, py::kw_only(), py::arg("layers"),
        py::arg("dtype"), py::arg("n"), py::arg("d"), py::arg("row_stride"), py::arg("col_stride"), py::arg("unit_sum"),
        py::arg("scale"), py::arg("grad_rows"), py::arg("threads"), Unlocked());
  m.def("masked_mean_pool_backward", &masked_mean_pool_backward, py::kw_only(), py::arg("layers"), py::arg("dtype"),
        py::arg("n"), py::arg("d"), py::arg("row_stride"), py::arg("col_stride"), py::arg("result_dtype"),
        py::arg("n_tokens"), py::arg("mask"), py::arg("cu_seqlens"), py::arg("grad_hidden"), py::arg("threads"),
        Unlocked());
  m.def("pooled_cosine", &pooled_cosine, Unlocked());
  m.def("pooled_cosine_backward", &pooled_cosine_backward, Unlocked());
  m.def("second_moment", &second_moment, py::kw_only(), py::arg("layers"), py::arg("dtype"), py::arg("n"), py::arg("d"),
        py::arg("row_stride"), py::arg("col_stride"), py::arg("use"), py::arg("weights"), py::arg("pilot"),
        py::arg("about_pilot"), py::arg("moment"), py::arg("whole"), py::arg("threads"), Unlocked());
  m.def("top_eigenvectors", &top_eigenvectors, py::kw_only(), py::arg("layers"), py::arg("dtype"), py::arg("n"),
        py::arg("d"), py::arg("row_stride"), py::arg("col_stride"), py::arg("covariance"), py::arg("center"),
        py::arg("k"), py::arg("tolerance"), py::arg("max_iterations"), py::arg("start"), py::arg("block"),
        py::arg("values"), py::arg("vectors"), py::arg("residuals"), py::arg("iterations"), py::arg("next_value"),
        py::arg("mean"), py::arg("converged"), py::arg("threads"), Unlocked());
  m.def("mean_of_rows", &mean_of_rows, py::kw_only(), py::arg("layers"), py::arg("dtype"), py::arg("n"), py::arg("d"),
        py::arg("row_stride"), py::arg("col_stride"), py::arg("weights"), py::arg("mean"), py::arg("threads"),
        Unlocked());
  m.def("asymmetry", &asymmetry, py::kw_only(), py::arg("layers"), py::arg("dtype"), py::arg("n"), py::arg("d"),
        py::arg("row_stride"), py::arg("col_stride"), py::arg("threads"), Unlocked());
  m.def("isa", &active_isa, "The instruction set in force.");
  m.def("supported_isas", &supported_isas, "The instruction sets built in and known to this processor.");
  m.def("force_isa", &force_isa, py::arg("isa"), "Makes every kernel run with this instruction set.");
  m.attr("threads") = kThreads;
}
