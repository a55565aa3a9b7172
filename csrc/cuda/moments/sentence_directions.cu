#include "cuda/common/block_sums.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/moments/sentence_directions.cuh"

namespace cone {
namespace cuda {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarpSize;

struct Params {
  const float* mean_units;
  int64_t n_sentences, groups, d;
  const int64_t *order, *starts;
  double* sentence_unit_sum;
  int64_t* n_cancelled;
};

// 1/‖m‖ of a mean unit vector, by a warp; 0 of one that has no direction, or of no token.
__device__ double inverse_norm(const float* mean_unit, int64_t d, bool& cancels) {
  double norm_sq = 0;
#pragma unroll 4
  for (int64_t column = lane_of_thread(); column < d; column += kWarpSize)
    norm_sq += double(mean_unit[column]) * double(mean_unit[column]);
  norm_sq = sum_of_lanes(norm_sq);
  cancels = norm_sq <= kLeastMeanUnit * kLeastMeanUnit;  // NaN does not
  return norm_sq > kLeastMeanUnit * kLeastMeanUnit ? 1 / sqrt(norm_sq) : 0;
}

// blockIdx: (group, layer). Eight sentences at a time: a warp takes the norm of one, then a thread its columns of all.
__global__ void __launch_bounds__(kThreads) add_directions_kernel(const __grid_constant__ Params params) {
  double* const inverses = shared_memory<double>();  // (kWarps)
  const int64_t group = blockIdx.x, layer = blockIdx.y, d = params.d;
  const float* const of_layer = params.mean_units + layer * params.n_sentences * d;
  double* const to = params.sentence_unit_sum + (layer * params.groups + group) * d;
  const int64_t end = params.starts[group + 1];
  int n_cancelled = 0;  // of this warp's sentences
  for (int64_t begin = params.starts[group]; begin < end; begin += kWarps) {
    const int64_t own = begin + warp_of_thread();
    bool cancels = false;
    double inverse = 0;
    if (own < end) inverse = inverse_norm(of_layer + params.order[own] * d, d, cancels);
    n_cancelled += cancels;
    if (lane_of_thread() == 0) inverses[warp_of_thread()] = inverse;
    __syncthreads();
    const int n = int(min(int64_t{kWarps}, end - begin));
    for (int64_t column = threadIdx.x; column < d; column += kThreads) {
      double total = 0;
      for (int i = 0; i < n; ++i)
        if (inverses[i] > 0) total += double(of_layer[params.order[begin + i] * d + column]) * inverses[i];
      to[column] += total;
    }
    __syncthreads();  // before any warp has the next norm
  }
  if (lane_of_thread() == 0) inverses[warp_of_thread()] = n_cancelled;
  __syncthreads();
  if (threadIdx.x > 0) return;
  double all = 0;
  for (int warp = 0; warp < kWarps; ++warp) all += inverses[warp];
  params.n_cancelled[layer * params.groups + group] += int64_t(all);
}

}  // namespace

void add_directions(const PoolMomentsArgs& args, const float* mean_units, const Segments& segments,
                    const Queue& queue) {
  const HiddenStates& hidden = args.hidden;
  const Params params{mean_units,     hidden.n_sentences, segments.groups,        hidden.d,
                      segments.order, segments.starts,    args.sentence_unit_sum, args.n_cancelled};
  Stream("pool_moments", queue.device, queue.stream)
      .launch(add_directions_kernel, dim3(unsigned(segments.groups), unsigned(hidden.n_layers)), kThreads,
              kWarps * sizeof(double), params);
}

}  // namespace cuda
}  // namespace cone
