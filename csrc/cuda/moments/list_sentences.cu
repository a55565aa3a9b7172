#include "cuda/common/block_sums.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/moments/list_sentences.cuh"

namespace cone {
namespace cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kAtOnce = 16;  // sentences whose masks are read before the first is counted

struct Params {
  const uint8_t* mask;        // (B, T); torch gives no address where T = 0
  const int64_t* cu_seqlens;  // (B + 1); null: padded
  int n_sentences, n_tokens, groups;
  uint32_t sentence_units, token_units;  // from one sentence, or token, to the next
  TokenPlan plan;
  bool both_levels;
  PooledList pooled;
};

// Of 32 tokens from `begin` on, which ones the mask keeps of each of kAtOnce sentences of the warp.
__device__ void read_masks(const Params& params, int sentence, int from, int begin, unsigned (&kept)[kAtOnce]) {
  const int token = begin + lane_of_thread();
  bool own[kAtOnce];
#pragma unroll
  for (int i = 0; i < kAtOnce; ++i) {
    const int64_t row = __shfl_sync(kAllLanes, sentence, from + i);
    own[i] = row >= 0 && token < params.n_tokens && params.mask[row * params.n_tokens + token] != 0;
  }
#pragma unroll
  for (int i = 0; i < kAtOnce; ++i) kept[i] = __ballot_sync(kAllLanes, own[i]);
}

// How many tokens the mask keeps of this lane's sentence, and which of the first 32.
struct Kept {
  int size;
  unsigned first;
};
__device__ Kept count_tokens(const Params& params, int sentence) {
  Kept found = {};
  for (int from = 0; from < kWarpSize; from += kAtOnce)
    for (int begin = 0; begin < params.n_tokens; begin += kWarpSize) {
      unsigned kept[kAtOnce];
      read_masks(params, sentence, from, begin, kept);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (lane_of_thread() != from + i) continue;
        found.size += __popc(kept[i]);
        if (begin == 0) found.first = kept[i];
      }
    }
  return found;
}

// Writes where the rows of the warp's sentences are, each lane having one sentence, or -1, and its place in the list.
__device__ void list_rows(const Params& params, int sentence, int place, const Kept& kept) {
  const int lane = lane_of_thread();
  const unsigned before = (1u << lane) - 1;
  uint32_t* const rows = params.plan.rows;
  for (int i = 0; i < kWarpSize; ++i) {
    const int number = __shfl_sync(kAllLanes, sentence, i);
    if (number < 0) return;  // as are all behind it
    int to = __shfl_sync(kAllLanes, place, i);
    if (params.cu_seqlens != nullptr) {
      const int size = __shfl_sync(kAllLanes, kept.size, i);
      const uint32_t first = uint32_t(params.cu_seqlens[number]);
      for (int token = lane; token < size; token += kWarpSize)
        rows[to + token] = (first + uint32_t(token)) * params.token_units;
      continue;
    }
    const uint32_t first = uint32_t(number) * params.sentence_units;
    unsigned all = __shfl_sync(kAllLanes, kept.first, i);
    for (int begin = 0; begin < params.n_tokens; begin += kWarpSize) {
      const int token = begin + lane;
      if (begin > 0)
        all = __ballot_sync(kAllLanes,
                            token < params.n_tokens && params.mask[int64_t{number} * params.n_tokens + token] != 0);
      if (all >> lane & 1) rows[to + __popc(all & before)] = first + uint32_t(token) * params.token_units;
      to += __popc(all);
    }
  }
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
    Kept kept = {};
    if (params.cu_seqlens == nullptr) {
      if (k - lane_of_thread() < n) kept = count_tokens(params, sentence);
    } else if (sentence >= 0) {
      kept.size = int(params.cu_seqlens[sentence + 1] - params.cu_seqlens[sentence]);
    }
    const int size = kept.size;
    const Counts sum = running_sum({size, size > 0}, of_warps);
    list_rows(params, sentence, before.tokens + sum.tokens - size, kept);
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
  const int64_t element_bytes = bytes_of(hidden.dtype);
  const Params params{hidden.mask,
                      hidden.cu_seqlens,
                      int(hidden.n_sentences),
                      int(hidden.n_tokens),
                      groups,
                      uint32_t(hidden.sentence_stride * element_bytes / kRowUnit),
                      uint32_t(hidden.token_stride * element_bytes / kRowUnit),
                      plan,
                      pooled != nullptr,
                      pooled != nullptr ? *pooled : PooledList{}};
  Stream("list_sentences", queue.device, queue.stream)
      .launch(list_sentences_kernel, dim3(1), kThreads, kThreads / kWarpSize * sizeof(Counts), params);
}

}  // namespace cuda
}  // namespace cone
