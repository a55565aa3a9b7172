#include "cuda/moments/moment_partials.cuh"
#include "cuda/moments/sentence_directions.cuh"

namespace cone {
namespace cuda {
namespace {

struct Params {
  Layers layers;
  PoolMomentsArgs tokens;
  TokenLists lists;
  Segments segments;
  MomentPartials partials;
  float* mean_units;
  int slab_columns;
};

template <class In, bool kVector>
struct Op {
  using Sums = RowSums<In, kVector, kTokenFields>;
  const Params& params;
  const int64_t layer;
  const TokenWalk<kBatchRows<In>>& walk;
  const RowSource<In>& source;
  Sums& sums;

  // Where (L, B, d) has a sentence's row.
  __device__ __forceinline__ int64_t row_of(int sentence) const {
    return (layer * params.tokens.hidden.n_sentences + sentence) * params.tokens.hidden.d;
  }
  __device__ __forceinline__ float* pooled(int sentence) const {
    return static_cast<float*>(params.tokens.pooled) + row_of(sentence);
  }

  __device__ __forceinline__ void write_status(int sentence, uint8_t status) const {
    if (threadIdx.x == 0 && blockIdx.z == 0)
      params.tokens.status[layer * params.tokens.hidden.n_sentences + sentence] = status;
  }

  __device__ __forceinline__ void end_run(int sentence) {
    if (sums.run_is_wide) sums.widen_run();
    const double share = 1 / double(walk.size(sentence));
    const double used_share = sums.run_used > 0 ? 1 / double(sums.run_used) : nan_of_no_token();
    double sentence_sq = 0;  // Σ g_j² of this thread's columns
    Octet<float> mean = {}, mean_unit = {};
#pragma unroll
    for (int k = 0; k < kColumns; ++k) {
      double g = sums.unit[k], x = sums.sum[k];
      if (sums.run_is_wide) {
        g = sums.wide(kRunUnit, k);
        x = sums.wide(kRunSum, k);
        sums.wide(kRunUnit, k) = sums.wide(kRunSum, k) = 0;
      }
      sentence_sq += g * g;
      sums.wide(kGroupUnit, k) += g;
      sums.wide(kSum, k) += x;
      mean.put(k, float(x * share));
      mean_unit.put(k, float(g * used_share));
    }
    store_octet(params.mean_units + row_of(sentence), sums.columns, mean_unit);
    sums.own_total() += sentence_sq;
    if (sums.run_seen & kNonfinite) mean = mean_of_all(sentence, share);
    store_octet(pooled(sentence), sums.columns, mean);
    write_status(sentence, sums.run_seen);
    if (threadIdx.x == 0) {
      GroupTally& tally = sums.tally();
      tally.sentence_size_sq_sum += double(sums.run_used) * double(sums.run_used);
      tally.n_sentences += sums.run_used > 0;
      tally.used += sums.run_used;
    }
    sums.clear_run();
    sums.run_is_wide = false;
    sums.run_used = 0;
    sums.run_seen = kUsed;
  }

  // The plain mean of a sentence with a token that is not finite.
  __device__ __forceinline__ Octet<float> mean_of_all(int sentence, double share) const {
    double total[kColumns] = {};
    const int n = walk.size(sentence);
    for (int i = 0; i < n; ++i) {
      const int64_t at = walk.offset(sentence, walk.position(sentence, i));
      const Octet<In> x = load_octet(source.base + at, sums.columns, source.col_stride);
#pragma unroll
      for (int k = 0; k < kColumns; ++k) total[k] += double(x[k]);
    }
    Octet<float> mean = {};
#pragma unroll
    for (int k = 0; k < kColumns; ++k) mean.put(k, float(total[k] * share));
    return mean;
  }

  __device__ __forceinline__ void end_group(int group) {
    take_units(sums, params.tokens.sums, params.partials, params.segments, layer, group, params.tokens.hidden.d);
    double* scalars = group_scalars(params.partials, params.segments, layer, group);
    const double sentence_sq = sums.block_total(sums.own_total());
    if (threadIdx.x == 0) scalars[kSentenceSqSum] = sentence_sq;
    sums.own_total() = 0;
    sums.take_tally(scalars, blockIdx.z == 0);
  }

  __device__ __forceinline__ void left_out(int, int, Status) {}

  static __device__ __forceinline__ float nan_of_no_token() { return __uint_as_float(0x7fc00000u); }

  __device__ __forceinline__ void empty(int sentence) {
    Octet<float> nan = {};
#pragma unroll
    for (int k = 0; k < kColumns; ++k) nan.put(k, nan_of_no_token());
    store_octet(pooled(sentence), sums.columns, nan);
    store_octet(params.mean_units + row_of(sentence), sums.columns, nan);
    write_status(sentence, kEmpty);
  }
};

template <class In, bool kVector>
__global__ void __launch_bounds__(most_threads(kVector), 1) pool_moments_kernel(const __grid_constant__ Params params) {
  const HiddenStates& hidden = params.tokens.hidden;
  const int64_t layer = params.layers.first + blockIdx.y;
  RowSums<In, kVector, kTokenFields> sums(own_columns<kVector>(hidden.d, params.slab_columns),
                                          shared_memory<unsigned char>());
  const int64_t rows = params.lists.padded() ? hidden.n_sentences * hidden.n_tokens : hidden.n_tokens;
  const double* norms_sq = params.partials.norms_sq;
  const RowSource<In> source{static_cast<const In*>(params.layers.addresses[blockIdx.y]),
                             norms_sq != nullptr ? norms_sq + layer * rows : nullptr, hidden.col_stride};
  TokenWalk<kBatchRows<In>> walk(params.segments, hidden, params.lists);
  Op<In, kVector> op{params, layer, walk, source, sums};
  add_rows(walk, source, sums, op);
  write_columns(sums, params.partials, layer, hidden.d);
}

// Norms of padded tokens are taken where the mask keeps them, of packed tokens of all.
void write_token_norms(const HiddenStates& hidden, double* norms_sq, const Queue& queue) {
  const bool padded = hidden.cu_seqlens == nullptr;
  write_row_norms("pool_moments",
                  {hidden.layers, hidden.n_layers, padded ? hidden.n_sentences * hidden.n_tokens : hidden.n_tokens,
                   hidden.d, hidden.dtype, std::max(hidden.n_tokens, int64_t{1}), padded ? hidden.sentence_stride : 0,
                   hidden.token_stride, hidden.col_stride, hidden.mask, norms_sq},
                  queue);
}

}  // namespace

int pool_moment_slabs(const HiddenStates& hidden, int device) {
  return column_slabs(hidden.d, kTokenFields, vector_loads(hidden), device);
}

void pool_moments(const PoolMomentsLaunch& launch, const Queue& queue) {
  const PoolMomentsArgs& args = launch.tokens;
  const HiddenStates& hidden = args.hidden;
  const MomentPartials& partials = launch.partials;
  check_count("pool_moments", "sentences", hidden.n_sentences);
  check_count("pool_moments", "tokens", hidden.n_tokens);
  if (partials.slabs > 1) write_token_norms(hidden, partials.norms_sq, queue);
  const BlockShape shape(hidden.d, partials.slabs);
  const bool vector = vector_loads(hidden);
  with_element_type(hidden.dtype, [&](auto* element) {
    using In = std::remove_const_t<std::remove_pointer_t<decltype(element)>>;
    for_layers(hidden.layers, hidden.n_layers, [&](const Layers& layers, unsigned count) {
      const Params params{layers, args, launch.lists, launch.segments, partials, launch.mean_units, shape.slab_columns};
      Stream("pool_moments", queue.device, queue.stream)
          .launch(vector ? pool_moments_kernel<In, true> : pool_moments_kernel<In, false>,
                  dim3(unsigned(launch.segments.parts()), count, unsigned(partials.slabs)), shape.threads,
                  moment_shared_bytes(kTokenFields, shape.threads), params);
    });
  });
  add_partials("pool_moments", args.sums, args.sentence_sq_sum, args.sentence_size_sq_sum, args.n_sentences,
               launch.segments, partials, hidden.n_layers, hidden.d, queue);
  add_directions(args, launch.mean_units, launch.segments, queue);
}

}  // namespace cuda
}  // namespace cone
