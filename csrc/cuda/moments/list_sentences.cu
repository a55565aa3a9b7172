#include "cuda/common/block_sums.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/moments/list_sentences.cuh"

namespace cone {
namespace cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kAtOnce = 8;  // sentences whose masks are read before the first is counted

struct Params {
  const uint8_t* mask;        // (B, T); torch gives no address where T = 0
  const int64_t* cu_seqlens;  // (B + 1); null: padded
  int n_sentences, n_tokens, groups;
  TokenPlan plan;
  bool both_levels;
  PooledList pooled;
};

// How many tokens the mask keeps of this lane's sentence.
__device__ int count_tokens(const Params& params, int sentence) {
  int size = 0;
  for (int from = 0; from < kWarpSize; from += kAtOnce) {
    int sizes[kAtOnce] = {};
    for (int begin = 0; begin < params.n_tokens; begin += kWarpSize) {
      const int token = begin + lane_of_thread();
      bool kept[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int64_t row = __shfl_sync(kAllLanes, sentence, from + i);
        kept[i] = row >= 0 && token < params.n_tokens && params.mask[row * params.n_tokens + token] != 0;
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) sizes[i] += __popc(__ballot_sync(kAllLanes, kept[i]));
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
      if (lane_of_thread() == from + i) size = sizes[i];
  }
  return size;
}

// Tokens, and sentences that have some: counted together, in one sum over the block.
struct Counts {
  int tokens, sentences;
};

// The sum over the threads up to this one; of_warps keeps the sums of warps.
__device__ Counts running_sum(Counts own, Counts* of_warps) {
  Counts sum = own;
#pragma unroll
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const int tokens = __shfl_up_sync(kAllLanes, sum.tokens, distance);
    const int sentences = __shfl_up_sync(kAllLanes, sum.sentences, distance);
    if (lane_of_thread() < distance) continue;
    sum.tokens += tokens;
    sum.sentences += sentences;
  }
  __syncthreads();
  if (lane_of_thread() == kWarpSize - 1) of_warps[warp_of_thread()] = sum;
  __syncthreads();
  for (int warp = 0; warp < warp_of_thread(); ++warp) {
    sum.tokens += of_warps[warp].tokens;
    sum.sentences += of_warps[warp].sentences;
  }
  return sum;
}

// The first sentence before which at least so much work is done. The end of a sentence is as much work as a token.
__device__ int sentence_at(const int32_t* first, int n_sentences, int64_t work) {
  int low = 0, high = n_sentences;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (int64_t{first[middle]} + middle < work) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// The part that takes a sentence of the plan's order.
__device__ int part_of(const TokenPlan& plan, int64_t sentence) {
  int low = 0, high = plan.parts;  // cuts[low] <= sentence < cuts[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (plan.cuts[middle] <= sentence) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// What the pooled vectors need, once all sentences are counted.
__device__ void list_pooled(const Params& params) {
  const PooledList& pooled = params.pooled;
  for (int group = int(threadIdx.x); group <= params.groups; group += kThreads)
    pooled.starts[group] = pooled.before[params.plan.starts[group]];
  for (int64_t i = threadIdx.x; i < pooled.n_layers * params.groups; i += kThreads) {
    const int64_t begin = params.plan.starts[i % params.groups], end = params.plan.starts[i % params.groups + 1];
    pooled.n_empty[i] += end - begin - (pooled.before[end] - pooled.before[begin]);
  }
  for (int64_t i = threadIdx.x; i < pooled.n_zeros; i += kThreads) pooled.zeros[i] = 0;
}

__global__ void __launch_bounds__(kThreads) list_sentences_kernel(const __grid_constant__ Params params) {
  Counts* of_warps = shared_memory<Counts>();
  const TokenPlan& plan = params.plan;
  const PooledList& pooled = params.pooled;
  const int n = params.n_sentences;
  Counts before = {0, 0};
  for (int begin = 0; begin < n; begin += kThreads) {
    const int k = begin + int(threadIdx.x);
    const int sentence = k < n ? int(plan.order[k]) : -1;
    int size = 0;
    if (params.cu_seqlens == nullptr) {
      size = count_tokens(params, sentence);
    } else if (sentence >= 0) {
      size = int(params.cu_seqlens[sentence + 1] - params.cu_seqlens[sentence]);
    }
    const Counts sum = running_sum({size, size > 0}, of_warps);
    if (k < n) {
      plan.first[k] = before.tokens + sum.tokens - size;
      if (params.both_levels) {
        const int place = before.sentences + sum.sentences - (size > 0);
        pooled.before[k] = place;
        if (size > 0) pooled.order[place] = sentence;
      }
    }
    __syncthreads();
    for (int warp = 0; warp < warps_of_block(); ++warp) {
      before.tokens += of_warps[warp].tokens;
      before.sentences += of_warps[warp].sentences;
    }
  }
  if (threadIdx.x == 0) {
    plan.first[n] = before.tokens;
    if (params.both_levels) pooled.before[n] = before.sentences;
  }
  __syncthreads();
  const int64_t work = int64_t{before.tokens} + n;
  for (int part = int(threadIdx.x); part <= plan.parts; part += kThreads)
    plan.cuts[part] = sentence_at(plan.first, n, work * part / plan.parts);
  __syncthreads();
  for (int group = int(threadIdx.x); group < params.groups; group += kThreads) {
    const int64_t start = plan.starts[group], end = plan.starts[group + 1];
    plan.parts_of[2 * group] = start < end ? part_of(plan, start) : 0;
    plan.parts_of[2 * group + 1] = start < end ? part_of(plan, end - 1) : 0;
  }
  if (params.both_levels) list_pooled(params);
}

}  // namespace

void list_sentences(const HiddenStates& hidden, int groups, const TokenPlan& plan, const PooledList* pooled,
                    const Queue& queue) {
  const Params params{hidden.mask,
                      hidden.cu_seqlens,
                      int(hidden.n_sentences),
                      int(hidden.n_tokens),
                      groups,
                      plan,
                      pooled != nullptr,
                      pooled != nullptr ? *pooled : PooledList{}};
  Stream("list_sentences", queue.device, queue.stream)
      .launch(list_sentences_kernel, dim3(1), kThreads, kThreads / kWarpSize * sizeof(Counts), params);
}

}  // namespace cuda
}  // namespace cone
