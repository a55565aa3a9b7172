#include "cuda/common/launch.cuh"
#include "cuda/common/layers.cuh"
#include "cuda/common/row_loads.cuh"
#include "cuda/moments/moments.cuh"

namespace cone {
namespace cuda {
namespace {

constexpr int kMostThreads = 256;
constexpr int kRowsPerFlush = 32;  // added in float32 before they are added to float64

struct Params {
  Layers layers;
  HiddenStates hidden;
  float* pooled;  // (L, B, d)
  TokenLists lists;
};

// The tokens of one sentence that count.
struct Sentence {
  const int32_t* positions;  // null: all of them
  int64_t offset, size;      // offset: of the first element, where positions count from

  __device__ __forceinline__ Sentence(const Params& params, int64_t sentence) {
    if (params.lists.padded()) {
      positions = params.lists.positions + sentence * params.hidden.n_tokens;
      offset = sentence * params.hidden.sentence_stride;
      size = __ldg(params.lists.sizes + sentence);
    } else {
      const int64_t start = __ldg(params.lists.cu_seqlens + sentence);
      positions = nullptr;
      offset = start * params.hidden.token_stride;
      size = __ldg(params.lists.cu_seqlens + sentence + 1) - start;
    }
  }
  __device__ __forceinline__ int64_t position(int64_t k) const {
    return positions != nullptr ? int64_t{__ldg(positions + k)} : k;
  }
};

// blockIdx: sentence, layer, columns. Each thread has its columns for itself, so that no thread waits for another.
template <class In, bool kVector>
__global__ void __launch_bounds__(kMostThreads) masked_mean_pool_kernel(const __grid_constant__ Params params) {
  constexpr int kRows = 128 / int(kColumns * sizeof(In));  // 128 bytes a thread are on their way at once
  const HiddenStates& hidden = params.hidden;
  const In* base = static_cast<const In*>(params.layers.addresses[blockIdx.y]);
  const int begin = int(blockIdx.z) * int(blockDim.x) * kColumns;
  const OwnColumns<kVector> columns(begin, int(min(int64_t{begin} + int(blockDim.x) * kColumns, hidden.d)));
  const Sentence sentence(params, blockIdx.x);
  const auto load = [&](int64_t k) {
    const int64_t offset = sentence.offset + sentence.position(k) * hidden.token_stride;
    return load_octet(base + offset, columns, hidden.col_stride);
  };
  double total[kColumns] = {};
  for (int64_t first = 0; first < sentence.size; first += kRowsPerFlush) {
    float sum[kColumns] = {};
    const int64_t past = min(first + kRowsPerFlush, sentence.size);
    for (int64_t at = first; at < past; at += kRows) {
      Octet<In> rows[kRows];
#pragma unroll
      for (int t = 0; t < kRows; ++t) {
        rows[t] = {};
        if (at + t < past) rows[t] = load(at + t);
      }
#pragma unroll
      for (int t = 0; t < kRows; ++t)
#pragma unroll
        for (int k = 0; k < kColumns; ++k) sum[k] += rows[t][k];
    }
#pragma unroll
    for (int k = 0; k < kColumns; ++k) total[k] += double(sum[k]);
  }
  const double size = double(sentence.size);  // a mean of nothing is 0/0, NaN
  bool finite = true;
#pragma unroll
  for (int k = 0; k < kColumns; ++k) finite = finite && isfinite(total[k]);
  if (!finite) {  // a sum that left float32 need not leave float64
#pragma unroll
    for (int k = 0; k < kColumns; ++k) total[k] = 0;
    for (int64_t at = 0; at < sentence.size; ++at) {
      const Octet<In> row = load(at);
#pragma unroll
      for (int k = 0; k < kColumns; ++k) total[k] += double(row[k]);
    }
  }
  Octet<float> mean = {};
#pragma unroll
  for (int k = 0; k < kColumns; ++k) mean.put(k, float(total[k] / size));
  const int64_t row = (params.layers.first + blockIdx.y) * hidden.n_sentences + blockIdx.x;
  store_octet(params.pooled + row * hidden.d, columns, mean);
}

}  // namespace

void masked_mean_pool(const MaskedMeanPoolArgs& args, const TokenLists& lists, const Queue& queue) {
  const HiddenStates& hidden = args.hidden;
  check_count("masked_mean_pool", "sentences", hidden.n_sentences);
  const int64_t warps = (hidden.d + kWarpColumns - 1) / kWarpColumns;
  const int threads = int(std::min(warps * kWarpSize, int64_t{kMostThreads}));
  const int64_t slabs = (hidden.d + threads * kColumns - 1) / (threads * kColumns);
  const bool vector = vector_loads(hidden);
  with_element_type(hidden.dtype, [&](auto* element) {
    using In = std::remove_const_t<std::remove_pointer_t<decltype(element)>>;
    for_layers(hidden.layers, hidden.n_layers, [&](const Layers& layers, unsigned count) {
      const Params params{layers, hidden, static_cast<float*>(args.pooled), lists};
      Stream("masked_mean_pool", queue.device, queue.stream)
          .launch(vector ? masked_mean_pool_kernel<In, true> : masked_mean_pool_kernel<In, false>,
                  dim3(unsigned(hidden.n_sentences), count, unsigned(slabs)), threads, 0, params);
    });
  });
}

}  // namespace cuda
}  // namespace cone
