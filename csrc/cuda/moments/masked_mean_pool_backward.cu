#include "cuda/common/block_sums.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/layers.cuh"
#include "cuda/moments/gradients.cuh"

namespace cone {
namespace cuda {
namespace {

constexpr int kMostThreads = 256;
constexpr int kTokensPerBlock = 64;

struct Params {
  Layers layers;
  MaskedMeanPoolBackwardArgs args;
  int chunks;  // blocks that share a sentence
};

// How many tokens of a sentence count; each warp counts for itself.
__device__ __forceinline__ int kept_tokens(const uint8_t* mask, int64_t n_tokens) {
  int kept = 0;
  for (int64_t token = lane_of_thread(); token < n_tokens; token += kWarpSize) kept += __ldg(mask + token);
  return sum_of_lanes(kept);
}

// blockIdx: sentence and chunk of its tokens, layer, columns.
template <class Out, bool kVector>
__global__ void __launch_bounds__(kMostThreads)
    masked_mean_pool_backward_kernel(const __grid_constant__ Params params) {
  const MaskedMeanPoolBackwardArgs& args = params.args;
  const int64_t d = args.grad.d, sentence = blockIdx.x / params.chunks, chunk = blockIdx.x % params.chunks;
  const bool packed = args.cu_seqlens != nullptr;
  const uint8_t* mask = packed ? nullptr : args.mask + sentence * args.n_tokens;
  const int64_t first = packed ? args.cu_seqlens[sentence] : sentence * args.n_tokens;
  const int64_t rows = packed ? args.cu_seqlens[sentence + 1] - first : args.n_tokens;
  const double one_share = 1 / double(packed ? rows : kept_tokens(mask, args.n_tokens));

  const int begin = int(blockIdx.z) * int(blockDim.x) * kColumns;
  const OwnColumns<kVector> columns(begin, int(min(int64_t{begin} + int(blockDim.x) * kColumns, d)));
  const float* grad = static_cast<const float*>(params.layers.addresses[blockIdx.y]) + sentence * args.grad.row_stride;
  float shares[kColumns] = {};
#pragma unroll
  for (int k = 0; k < kColumns; ++k)
    if (columns.has(k)) shares[k] = float(double(grad[columns[k] * args.grad.col_stride]) * one_share);
  const Octet<Out> share = rounded<Out>(shares);

  const int64_t layer_rows = (packed ? 1 : args.grad.n) * args.n_tokens;
  Out* to = static_cast<Out*>(args.grad_hidden) + ((params.layers.first + blockIdx.y) * layer_rows + first) * d;
  for (int64_t from = chunk * kTokensPerBlock; from < rows; from += int64_t{params.chunks} * kTokensPerBlock) {
    const int64_t past = min(from + kTokensPerBlock, rows);
    for (int64_t token = from; token < past; ++token) {
      const uint32_t kept = packed || __ldg(mask + token) != 0 ? ~0u : 0;
      Octet<Out> row;
#pragma unroll
      for (int i = 0; i < Octet<Out>::kWords; ++i) row.words[i] = share.words[i] & kept;
      store_octet(to + token * d, columns, row);
    }
  }
}

}  // namespace

void masked_mean_pool_backward(const MaskedMeanPoolBackwardArgs& args, const Queue& queue) {
  const int64_t d = args.grad.d, n = args.grad.n, warps = (d + kWarpColumns - 1) / kWarpColumns;
  const int threads = int(std::min(warps * kWarpSize, int64_t{kMostThreads}));
  const int64_t slabs = (d + threads * kColumns - 1) / (threads * kColumns);
  // So many that the tokens of few long sentences keep the GPU busy too, by shape alone.
  const int64_t tokens = args.cu_seqlens != nullptr ? args.n_tokens / std::max(n, int64_t{1}) : args.n_tokens;
  check_count("masked_mean_pool_backward", "sentences", n);
  const int64_t wanted = std::max((tokens + kTokensPerBlock - 1) / kTokensPerBlock, int64_t{1});
  const int chunks = int(std::min(wanted, kMostNumbered / std::max(n, int64_t{1})));
  with_element_type(args.dtype, [&](auto* element) {
    using Out = std::remove_const_t<std::remove_pointer_t<decltype(element)>>;
    const bool vector = aligned_rows(args.dtype, &args.grad_hidden, 1, d, 1, d);
    for_layers(args.layers, args.n_layers, [&](const Layers& layers, unsigned count) {
      Stream("masked_mean_pool_backward", queue.device, queue.stream)
          .launch(vector ? masked_mean_pool_backward_kernel<Out, true> : masked_mean_pool_backward_kernel<Out, false>,
                  dim3(unsigned(n * chunks), count, unsigned(slabs)), threads, 0, Params{layers, args, chunks});
    });
  });
}

}  // namespace cuda
}  // namespace cone
