#include "cuda/common/device.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/moments/list_sentences.cuh"
#include "cuda/moments/partial_rows.cuh"
#include "cuda/moments/warp_launch.cuh"
#include "cuda/moments/warp_moments.cuh"
#include "cuda/moments/warp_sums.cuh"

namespace cone {
namespace cuda {
namespace {

// The parts that share a group, and where each has left its sums.
struct SharedGroup {
  int first, last;

  __device__ __forceinline__ SharedGroup(const TokenPlan& plan, int group)
      : first(plan.parts_of[2 * group]), last(plan.parts_of[2 * group + 1]) {}

  __device__ __forceinline__ bool shared() const { return first < last; }
  __device__ __forceinline__ int64_t place(int64_t first_warp, int part) const {
    return 2 * (first_warp + part) + (part == first ? 1 : 0);
  }
};

// Parts without a sentence leave nothing.
__device__ __forceinline__ bool has_sentences(const TokenPlan& plan, int part) {
  return plan.cuts[part] < plan.cuts[part + 1];
}

// Σ u (`which` 0) or Σ g/‖g‖ (1) of a group that parts share, by one block.
__device__ void add_units(const WarpParams& params, int64_t number, int64_t first_warp, int group, int which) {
  const TokenPlan& plan = params.plan;
  const SharedGroup of(plan, group);
  if (!of.shared()) return;
  constexpr int kOwn = kMostWarpColumns / kTileThreads;  // columns of a thread, all read at once
  const int d = int(params.tokens.hidden.d);
  double* const sum = which == 0 ? params.tokens.sums.unit_sum : params.tokens.sentence_unit_sum;
  double* const to = sum + (number * params.tokens.sums.groups + group) * d;
  double totals[kOwn] = {};
#pragma unroll 2
  for (int part = of.first; part <= of.last; ++part) {
    if (!has_sentences(plan, part)) continue;
    const double* const from = params.partials.units + (2 * of.place(first_warp, part) + which) * d;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int column = i * kTileThreads + int(threadIdx.x);
      if (column < d) totals[i] += from[column];
    }
  }
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int column = i * kTileThreads + int(threadIdx.x);
    if (column < d) add_to(to + column, totals[i]);
  }
}

// 32 columns of Σ x, Σ x_j² or Σ u_j² of a layer, by one block.
__device__ void add_columns(const WarpParams& params, int64_t number, int layer, int field, int tile) {
  const MomentSums& totals = params.tokens.sums;
  const int64_t d = params.tokens.hidden.d, first_warp = int64_t{layer} * params.plan.parts;
  const int64_t first = first_warp / params.teams, last = (first_warp + params.plan.parts - 1) / params.teams;
  double* const to = field == 0 ? totals.sum : field == 1 ? totals.sq_sum : totals.unit_sq_sum;
  add_tile(to + number * d, params.partials.columns + ((first + layer) * 3 + field) * d, last - first + 1, 3 * d, d,
           nullptr, 0, int64_t{tile} * kTileColumns + lane_of_thread());
}

__device__ void add_scalars(const WarpParams& params, int64_t number, int64_t first_warp) {
  const TokenPlan& plan = params.plan;
  const int64_t groups = params.tokens.sums.groups;
  for (int group = int(threadIdx.x); group < groups; group += kTileThreads) {
    const SharedGroup of(plan, group);
    if (!of.shared()) continue;
    double scalars[kGroupScalars] = {};
    for (int part = of.first; part <= of.last; ++part)
      if (has_sentences(plan, part)) {
#pragma unroll
        for (int i = 0; i < kGroupScalars; ++i)
          scalars[i] += params.partials.scalars[of.place(first_warp, part) * kGroupScalars + i];
      }
    add_group_scalars(params.tokens, number * groups + group, scalars);
  }
  if (warp_of_thread() > 0) return;
  const double* const from = params.partials.norms + 2 * first_warp;
  const double norms = sum_by_lanes(from, plan.parts, 2), norms_sq = sum_by_lanes(from + 1, plan.parts, 2);
  if (lane_of_thread() > 0) return;
  add_to(params.tokens.sums.norm_sum + number, norms);
  add_to(params.tokens.sums.norm_sq_sum + number, norms_sq);
}

// blockIdx.y: the layer; blockIdx.x: tiles of its three sums by column, then Σ u and Σ g/‖g‖ of each group, then their
// scalars.
__global__ void __launch_bounds__(kTileThreads) add_warps_kernel(const __grid_constant__ WarpParams params) {
  const int layer = int(blockIdx.y), tiles = 3 * tiles_of(params.tokens.hidden.d), job = int(blockIdx.x);
  const int by_group = job - tiles;
  const int64_t number = params.layers.first + layer, first_warp = int64_t{layer} * params.plan.parts;
  if (job < tiles) {
    add_columns(params, number, layer, job % 3, job / 3);
  } else if (by_group < 2 * params.tokens.sums.groups) {
    add_units(params, number, first_warp, by_group / 2, by_group % 2);
  } else {
    add_scalars(params, number, first_warp);
  }
}

// Shared memory of a warp; it is the same for every element type.
int bytes_of_warp(int octets) {
  static_assert(WarpShape<float, 1>::kBytes == WarpShape<BFloat16, 1>::kBytes);
  static_assert(WarpShape<float, 1>::kBytes * kMostOctets == WarpShape<float, kMostOctets>::kBytes);
  return octets * WarpShape<float, 1>::kBytes + int(sizeof(WarpNotes));
}

int attribute(cudaDeviceAttr which, int device) { return device_attribute("pool_moments", which, device); }

// With fewer warps of a block they would wait for memory.
constexpr int kFewestWarps = 4;

// As in cone_kernels/kernels/segments.py: parts of all layers, and rows of each, as a part's sums take memory too.
constexpr int64_t kMostParts = 512, kLeastRows = 8;

// Warps of a block at most.
int most_teams(int octets, int device) {
  const int most_shared = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return std::min(most_warps(octets), most_shared / bytes_of_warp(octets));
}

// Places of tokens, masked ones included.
int64_t rows_of(const HiddenStates& hidden) {
  return hidden.cu_seqlens == nullptr ? hidden.n_sentences * hidden.n_tokens : hidden.n_tokens;
}

// The first element of the last row of a layer; strides are not negative.
int64_t last_row(const HiddenStates& hidden) {
  const int64_t last_token = std::max(int64_t{0}, hidden.n_tokens - 1) * hidden.token_stride;
  if (hidden.cu_seqlens != nullptr) return last_token;
  return last_token + std::max(int64_t{0}, hidden.n_sentences - 1) * hidden.sentence_stride;
}

// What a call is cut into on a device.
struct Cut {
  int octets, teams, parts;
  int64_t warps, blocks;  // of the launch with most layers
  int64_t layers;         // of that launch

  Cut(const HiddenStates& hidden, int device)
      : octets(octets_of(hidden.d)),
        teams(most_teams(octets, device)),
        layers(std::min(hidden.n_layers, int64_t{Layers::kMost})) {
    const int multiprocessors = attribute(cudaDevAttrMultiProcessorCount, device);
    const int64_t in_a_wave = int64_t{multiprocessors} * teams;
    const int64_t most = std::min(hidden.n_sentences, (rows_of(hidden) + kLeastRows - 1) / kLeastRows);
    parts = int(std::max(int64_t{1}, std::min(in_a_wave / layers, most)));
    warps = layers * parts;
    // Few warps are spread over all multiprocessors.
    teams = int(std::min(int64_t{teams}, (warps + multiprocessors - 1) / multiprocessors));
    blocks = blocks_of(layers);
  }

  int64_t blocks_of(int64_t count) const { return (count * parts + teams - 1) / teams; }
};

// Shares out one piece of memory.
class Memory {
 public:
  explicit Memory(void* begin) : begin_(reinterpret_cast<uintptr_t>(begin)) {}

  template <class T>
  T* take(int64_t count) {
    T* const taken = reinterpret_cast<T*>(begin_ + bytes_);
    bytes_ += (count * int64_t(sizeof(T)) + 15) / 16 * 16;
    return taken;
  }
  int64_t bytes() const { return bytes_; }

 private:
  const uintptr_t begin_;  // 0 where bytes are only counted
  int64_t bytes_ = 0;
};

// How row_moments takes the pooled vectors: as cone_kernels/kernels/segments.py cuts rows.
Segments pooled_segments(const HiddenStates& hidden, int64_t groups, const PooledList& list) {
  int64_t parts = 1;
  while (parts * 2 * hidden.n_layers <= kMostParts && parts * 2 * kLeastRows <= hidden.n_sentences) parts *= 2;
  return {hidden.n_sentences, groups,     int(std::min(parts, groups)), int(std::max(int64_t{1}, parts / groups)),
          list.order,         list.starts};
}

struct Workspace {
  int64_t *order, *starts;
  TokenPlan plan;
  WarpPartials partials;
  PooledList pooled = {};
  Segments segments = {};
  MomentPartials of_pooled = {};
  int64_t bytes;

  Workspace(const HiddenStates& hidden, int64_t groups, const Cut& cut, bool both_levels, void* begin) {
    Memory memory(begin);
    const int64_t n = hidden.n_sentences, d = hidden.d;
    order = memory.take<int64_t>(n);
    starts = memory.take<int64_t>(groups + 1);
    int32_t* const first = memory.take<int32_t>(n + 1);
    int32_t* const cuts = memory.take<int32_t>(cut.parts + 1);
    uint32_t* const rows = memory.take<uint32_t>(rows_of(hidden));
    plan = {cut.parts, order, starts, first, cuts, rows, memory.take<int32_t>(2 * groups)};
    partials.units = memory.take<double>(cut.warps * 2 * 2 * d);
    partials.scalars = memory.take<double>(cut.warps * 2 * kGroupScalars);
    partials.norms = memory.take<double>(cut.warps * 2);
    partials.columns = memory.take<double>((cut.blocks + cut.layers) * 3 * d);
    partials.wide = memory.take<double>(cut.blocks * cut.teams * kWideFields * cut.octets * kWarpColumns);
    if (both_levels) {
      pooled.order = memory.take<int64_t>(n);
      pooled.starts = memory.take<int64_t>(groups + 1);
      pooled.before = memory.take<int32_t>(n + 1);
      segments = pooled_segments(hidden, groups, pooled);
      const int64_t by_slice = hidden.n_layers * groups * segments.slices;
      of_pooled.columns = memory.take<double>(hidden.n_layers * segments.parts() * 3 * d);
      of_pooled.units = segments.slices > 1 ? memory.take<double>(by_slice * d) : nullptr;
      of_pooled.scalars = pooled.zeros = memory.take<double>(by_slice * kScalars);
      of_pooled.slabs = 1;
      pooled.n_zeros = by_slice * kScalars;
      pooled.n_layers = hidden.n_layers;
    }
    bytes = memory.bytes();
  }
};

// row_moments of the pooled vectors.
void add_pooled(const PoolMomentsArgs& args, const SentenceLevel& sentences, const Workspace& workspace,
                const Queue& queue) {
  const HiddenStates& hidden = args.hidden;
  std::vector<const void*> layers;
  for (int64_t layer = 0; layer < hidden.n_layers; ++layer)
    layers.push_back(static_cast<const float*>(args.pooled) + layer * hidden.n_sentences * hidden.d);
  const RowView rows{nullptr, DType::kFloat32, hidden.n_sentences, hidden.d, hidden.d, 1};
  row_moments({{layers.data(), hidden.n_layers, rows, nullptr, sentences.sums, sentences.status, 0},
               workspace.segments,
               workspace.of_pooled},
              queue);
}

}  // namespace

int64_t warp_moments_workspace(const HiddenStates& hidden, int64_t groups, bool both_levels, int device) {
  if (!vector_loads(hidden) || hidden.d == 0 || hidden.d > kMostWarpColumns || hidden.n_layers == 0) return 0;
  if (last_row(hidden) * bytes_of(hidden.dtype) / kRowUnit > std::numeric_limits<uint32_t>::max()) return 0;
  if (rows_of(hidden) > kMostNumbered || most_teams(octets_of(hidden.d), device) < kFewestWarps) return 0;
  const Cut cut(hidden, device);
  return Workspace(hidden, groups, cut, both_levels, nullptr).bytes;
}

void warp_moments(const PoolMomentsArgs& args, const SentenceLevel* sentences, void* memory, const Queue& queue) {
  const HiddenStates& hidden = args.hidden;
  check_count("pool_moments", "sentences", hidden.n_sentences);
  const Cut cut(hidden, queue.device);
  Workspace workspace(hidden, args.sums.groups, cut, sentences != nullptr, memory);
  if (sentences != nullptr) workspace.pooled.n_empty = sentences->n_empty;
  list_items(args.groups, hidden.n_sentences, args.sums.groups, workspace.order, workspace.starts, queue);
  list_sentences(hidden, int(args.sums.groups), workspace.plan, sentences != nullptr ? &workspace.pooled : nullptr,
                 queue);
  const Stream stream("pool_moments", queue.device, queue.stream);
  const unsigned jobs = unsigned(3 * tiles_of(hidden.d) + 2 * args.sums.groups + 1);
  with_element_type(hidden.dtype, [&](auto* element) {
    using In = std::remove_const_t<std::remove_pointer_t<decltype(element)>>;
    for_layers(hidden.layers, hidden.n_layers, [&](const Layers& layers, unsigned count) {
      const WarpParams params{layers,
                              int(count),
                              cut.teams,
                              args,
                              workspace.plan,
                              workspace.partials,
                              sentences != nullptr ? sentences->status : nullptr};
      launch_warps<In>(params, cut.octets, unsigned(cut.blocks_of(count)),
                       size_t(cut.teams) * bytes_of_warp(cut.octets), queue);
      stream.launch(add_warps_kernel, dim3(jobs, count), kTileThreads, kTileThreads * sizeof(double), params);
    });
  });
  if (sentences != nullptr) add_pooled(args, *sentences, workspace, queue);
}

}  // namespace cuda
}  // namespace cone
