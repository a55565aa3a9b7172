// pool_moments where a warp takes whole rows: a norm takes sums over lanes, and no block barrier. Every layer is shared
// out among the same number of warps, with about as much work each, in one wave of blocks.
#pragma once

#include "cuda/common/launch.cuh"
#include "cuda/moments/row_ring.cuh"
#include "cuda/moments/warp_launch.cuh"

namespace cone {
namespace cuda {
namespace {

__device__ __forceinline__ int number_of_warp() { return int(blockIdx.x) * warps_of_block() + warp_of_thread(); }

// A part of a layer: its sentences, group after group.
template <class In, int kOctets>
class Part {
 public:
  using Sums = WarpSums<In, kOctets>;
  using Ring = RowRing<In, kOctets, ListedRows, WarpShape<In, kOctets>::kRows>;

  __device__ __forceinline__ Part(const WarpParams& params, int layer, Sums& sums, WarpNotes& notes)
      : params_(params),
        hidden_(params.tokens.hidden),
        layer_(layer),
        end_(params.plan.cuts[part() + 1]),
        sums_(sums),
        notes_(notes) {
    if (lane_of_thread() == 0)
      for (int i = 0; i < kMostBatch; ++i) notes_.norm_sum[i] = notes_.norm_sq_sum[i] = 0;
    start_group();
  }

  __device__ __forceinline__ void add_all(unsigned char* ring_memory) {
    const TokenPlan& plan = params_.plan;
    const int begin = plan.cuts[part()];
    if (begin < end_) {
      const int first = plan.first[begin], n = plan.first[end_] - first;
      Ring ring(ring_memory, first_row(), ListedRows(plan.rows + first), n, hidden_.d);
      // Lane i: number, tokens and group of sentence i of the next 32.
      int sentences = 0, sizes = 0, groups = 0, group = -1;
      for (int k = begin; k < end_; ++k) {
        const int at = (k - begin) % kWarpSize;
        if (at == 0) {
          const int own = min(k + lane_of_thread(), end_ - 1);
          sentences = int(__ldg(plan.order + own));
          sizes = plan.first[own + 1] - plan.first[own];
          groups = int(__ldg(params_.tokens.groups + sentences));
        }
        const int next_group = __shfl_sync(kAllLanes, groups, at);
        if (next_group != group && group >= 0) end_group(group);
        group = next_group;
        add_sentence(__shfl_sync(kAllLanes, sentences, at), __shfl_sync(kAllLanes, sizes, at), ring);
      }
      end_group(group);
      wait_for_copies<0>();
    }
    __syncwarp();
    if (lane_of_thread() > 0) return;
    double* const to = params_.partials.norms + 2 * int64_t{number_of_warp()};
    to[0] = sum_of(notes_.norm_sum);
    to[1] = sum_of(notes_.norm_sq_sum);
  }

 private:
  __device__ __forceinline__ int part() const { return number_of_warp() % params_.plan.parts; }
  __device__ __forceinline__ int64_t number() const { return params_.layers.first + layer_; }
  __device__ __forceinline__ const In* first_row() const {
    return static_cast<const In*>(params_.layers.addresses[layer_]);
  }

  __device__ __forceinline__ void add_sentence(int sentence, int size, Ring& ring) {
    if (size > kMostTerms) sums_.begin_long_run();
    for (int left = size; left > 0; left -= kMostTerms) {
      if (left < size) sums_.share_run();
      ring.add(sums_, min(left, kMostTerms));
    }
    uint8_t status = sums_.seen;
    const int used = size - sums_.left_out;
    if (size == 0) {
      status = kEmpty;
      write_nan(sentence);
    } else if (sums_.is_long()) {
      const double share = 1 / double(size);
      sums_.end_long_run(used, [&](int octet, const double (&sums)[kColumns]) {
        float means[kColumns];
#pragma unroll
        for (int k = 0; k < kColumns; ++k) means[k] = float(sums[k] * share);
        write_pooled(sentence, octet, means);
      });
    } else {
      const float n = float(size), share = 1 / n;
      sums_.end_short_run(used, [&](int octet, const float (&sums)[kColumns]) {
        float means[kColumns];
#pragma unroll
        for (int k = 0; k < kColumns; ++k) {
          const float quotient = sums[k] * share;
          means[k] = fmaf(fmaf(-quotient, n, sums[k]), share, quotient);  // rounded once, but for a last bit at times
        }
        write_pooled(sentence, octet, means);
      });
    }
    if (status & kNonfinite) write_mean_of_all(sentence, 1 / double(size));
    if (lane_of_thread() == 0) {
      const int64_t at = number() * hidden_.n_sentences + sentence;
      params_.tokens.status[at] = status;
      if (params_.pooled_status != nullptr) params_.pooled_status[at] = status & kEmpty;
      notes_.used += used;
      notes_.n_sentences += used > 0;
      notes_.n_cancelled += used > 0 && sums_.cancels;
      notes_.size_squares += double(used) * double(used);
    }
    sums_.left_out = 0;
    sums_.seen = kUsed;
  }

  __device__ __forceinline__ void write_pooled(int sentence, int octet, const float (&means)[kColumns]) const {
    float* to = static_cast<float*>(params_.tokens.pooled) + (number() * hidden_.n_sentences + sentence) * hidden_.d;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int column = first_of_four<In>(octet, half, read_lane());
      const float* const four = means + 4 * half;
      if (column < int(hidden_.d)) store_four(to + column, four[0], four[1], four[2], four[3]);
    }
  }

  __device__ __forceinline__ void write_nan(int sentence) const {
    float means[kColumns];
#pragma unroll
    for (int k = 0; k < kColumns; ++k) means[k] = __uint_as_float(0x7fc00000u);
#pragma unroll 1
    for (int o = 0; o < kOctets; ++o) write_pooled(sentence, o, means);
  }

  // The plain mean of a sentence with a token that is not finite.
  __device__ __forceinline__ void write_mean_of_all(int sentence, double share) const {
#pragma unroll 1
    for (int o = 0; o < kOctets; ++o) {
      double total[kColumns] = {};
      const bool padded = hidden_.cu_seqlens == nullptr;
      const int64_t begin = padded ? 0 : hidden_.cu_seqlens[sentence];
      const int64_t end = padded ? hidden_.n_tokens : hidden_.cu_seqlens[sentence + 1];
      for (int64_t token = begin; token < end; ++token) {
        if (padded && hidden_.mask[sentence * hidden_.n_tokens + token] == 0) continue;
        const In* row = first_row() + (padded ? sentence * hidden_.sentence_stride : 0) + token * hidden_.token_stride;
        Octet<In> octet = {};
#pragma unroll
        for (int k = 0; k < kColumns; ++k) {
          const int column = first_of_four<In>(o, k / 4, lane_of_thread()) + k % 4;
          if (column < int(hidden_.d)) octet.put(k, row[column]);
        }
#pragma unroll
        for (int k = 0; k < kColumns; ++k) total[k] += double(octet[k]);
      }
      float means[kColumns];
#pragma unroll
      for (int k = 0; k < kColumns; ++k) means[k] = float(total[k] * share);
      write_pooled(sentence, o, means);
    }
  }

  // Adds the group to the totals where no other part has sentences of it; else leaves it for the end.
  __device__ __forceinline__ void end_group(int group) {
    const int64_t* starts = params_.plan.starts;
    const bool begun_before = starts[group] < params_.plan.cuts[part()];
    const bool goes_on = starts[group + 1] > end_;
    const MomentSums& totals = params_.tokens.sums;
    const int64_t at = number() * totals.groups + group, place = 2 * int64_t{number_of_warp()} + (begun_before ? 0 : 1);
    const bool whole = !begun_before && !goes_on;
    const int64_t d = hidden_.d;
    double* const units = whole ? totals.unit_sum + at * d : params_.partials.units + 2 * place * d;
    double* const directions =
        whole ? params_.tokens.sentence_unit_sum + at * d : params_.partials.units + (2 * place + 1) * d;
    const double sentence_sq = sum_of_lanes(sums_.sentence_sq);
    __syncwarp();  // all lanes have noted what they had
    if (lane_of_thread() == 0) {
      const double unit_sq = sum_of(notes_.unit_sq);
      const double scalars[] = {
          double(notes_.used), double(notes_.n_zero), double(notes_.n_nonfinite), unit_sq,
          sentence_sq,         notes_.size_squares,   double(notes_.n_sentences), double(notes_.n_cancelled)};
      if (whole) {
        add_group_scalars(params_.tokens, at, scalars);
      } else {
#pragma unroll
        for (int i = 0; i < kGroupScalars; ++i) params_.partials.scalars[place * kGroupScalars + i] = scalars[i];
      }
    }
    const auto give = [&](double* to) {
      return [=](int column, double value) {
        if (column >= int(d)) return;
        if (whole) {
          add_to(to + column, value);
        } else {
          to[column] = value;
        }
      };
    };
    sums_.end_group(give(units), give(directions));
    start_group();
  }

  __device__ __forceinline__ void start_group() {
    if (lane_of_thread() == 0) {
      for (int i = 0; i < kMostBatch; ++i) notes_.unit_sq[i] = 0;
      notes_.size_squares = 0;
      notes_.used = notes_.n_sentences = notes_.n_cancelled = notes_.n_zero = notes_.n_nonfinite = 0;
    }
    __syncwarp();
  }

  __device__ __forceinline__ static double sum_of(const double (&values)[kMostBatch]) {
    return (values[0] + values[1]) + (values[2] + values[3]);
  }

  const WarpParams& params_;
  const HiddenStates& hidden_;
  const int layer_;  // of this launch
  const int end_;    // of its sentences in the plan's order
  Sums& sums_;
  WarpNotes& notes_;
};

// Adds up what the warps of a block leave in shared memory, layer by layer, in the order of the warps.
template <class In, int kOctets>
__device__ __forceinline__ void write_columns(const WarpParams& params, const unsigned char* memory,
                                              const WarpNotes* notes) {
  using Shape = WarpShape<In, kOctets>;
  const int teams = warps_of_block();
  const int64_t d = params.tokens.hidden.d;
  const int64_t of_warp = int64_t{kWideFields} * Shape::kColumns;
  for (int first = 0; first < teams && notes[first].layer >= 0;) {
    const int layer = notes[first].layer;
    int end = first;
    while (end < teams && notes[end].layer == layer) ++end;
    double* to = params.partials.columns + (int64_t{blockIdx.x} + layer) * 3 * d;
    for (int i = int(threadIdx.x); i < 3 * Shape::kColumns; i += int(blockDim.x)) {
      // Element i of a warp's fields in shared memory is column `column` of field `field`.
      const int field = i / Shape::kColumns, place = i % Shape::kColumns;
      const int half = place / (4 * kWarpSize), lane = place / 4 % kWarpSize;
      const int column = first_of_four<In>(half / 2, half % 2, lane) + place % 4;
      const int in_field = (half / 2 * kColumns + half % 2 * 4 + place % 4) * kWarpSize + lane;
      double total = 0;
      for (int warp = first; warp < end; ++warp) {
        total += double(reinterpret_cast<const float*>(memory + warp * Shape::kBytes)[i]);
        if (notes[warp].in_wide >> field & 1)
          total +=
              params.partials.wide[(int64_t{blockIdx.x} * teams + warp) * of_warp + field * Shape::kColumns + in_field];
      }
      if (column < d) to[field * d + column] = total;
    }
    first = end;
  }
}

template <class In, int kOctets>
__global__ void __launch_bounds__(most_warps(kOctets) * kWarpSize, 1)
    warp_moments_kernel(const __grid_constant__ WarpParams params) {
  using Shape = WarpShape<In, kOctets>;
  unsigned char* const memory = shared_memory<unsigned char>();
  WarpNotes* const notes = reinterpret_cast<WarpNotes*>(memory + warps_of_block() * Shape::kBytes);
  WarpNotes& noted = notes[warp_of_thread()];
  const int layer = number_of_warp() / params.plan.parts;
  int in_wide = 0;
  if (layer < params.n_layers) {
    unsigned char* const own = memory + warp_of_thread() * Shape::kBytes;
    double* const wide = params.partials.wide + int64_t{number_of_warp()} * kWideFields * Shape::kColumns;
    WarpSums<In, kOctets> sums(own, wide, noted);
    Part<In, kOctets>(params, layer, sums, noted).add_all(own + kSharedFields * Shape::kFieldBytes);
    in_wide = sums.end();
  }
  if (lane_of_thread() == 0) {
    noted.layer = layer < params.n_layers ? layer : -1;
    noted.in_wide = in_wide;
  }
  __syncthreads();
  write_columns<In, kOctets>(params, memory, notes);
}

}  // namespace

template <class In>
void launch_warps(const WarpParams& params, int octets, unsigned blocks, size_t shared_bytes, const Queue& queue) {
  void (*const kernels[])(WarpParams) = {warp_moments_kernel<In, 1>, warp_moments_kernel<In, 2>,
                                         warp_moments_kernel<In, 3>, warp_moments_kernel<In, 4>};
  Stream("pool_moments", queue.device, queue.stream)
      .launch(kernels[octets - 1], dim3(blocks), params.teams * kWarpSize, shared_bytes, params);
}

}  // namespace cuda
}  // namespace cone
