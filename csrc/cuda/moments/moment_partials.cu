#include "cuda/common/device.cuh"
#include "cuda/moments/moment_partials.cuh"
#include "cuda/moments/partial_rows.cuh"

namespace cone {
namespace cuda {
namespace {

constexpr int64_t kMostTiles = 512;  // side by side; a grid can have 65535 blocks in y

struct Totals {
  MomentSums sums;
  double *sentence_sq_sum, *sentence_size_sq_sum;
  int64_t* n_sentences;
  Segments segments;
  MomentPartials partials;
  int64_t n_layers, d;
};

// One group's scalars added up over slices and slabs, by one warp: a group may have hundreds.
__device__ void add_group(const Totals& totals, int64_t at) {
  double sum[kScalars] = {};
  const int n = totals.segments.slices * totals.partials.slabs;
  const double* from = totals.partials.scalars + at * n * kScalars;
  for (int i = lane_of_thread(); i < n; i += kWarpSize)
#pragma unroll
    for (int scalar = 0; scalar < kScalars; ++scalar) sum[scalar] += from[i * kScalars + scalar];
#pragma unroll
  for (int scalar = 0; scalar < kScalars; ++scalar) sum[scalar] = sum_of_lanes(sum[scalar]);
  if (lane_of_thread() > 0) return;
  add_to(totals.sums.count + at, int64_t(sum[kCount]));
  add_to(totals.sums.n_zero + at, int64_t(sum[kZeroRows]));
  add_to(totals.sums.n_nonfinite + at, int64_t(sum[kNonfiniteRows]));
  add_to(totals.sums.unit_sq_total + at, sum[kUnitSqTotal]);
  if (totals.sentence_sq_sum == nullptr) return;
  add_to(totals.sentence_sq_sum + at, sum[kSentenceSqSum]);
  add_to(totals.sentence_size_sq_sum + at, sum[kSentenceSizeSqSum]);
  add_to(totals.n_sentences + at, int64_t(sum[kSentences]));
}

// The scalars of a layer, by the blocks in y: a warp a group, and the first warp the norms.
__device__ void add_scalars(const Totals& totals, int64_t layer) {
  const int64_t groups = totals.segments.groups;
  for (int64_t group = int64_t{blockIdx.y} * warps_of_block() + warp_of_thread(); group < groups;
       group += int64_t{gridDim.y} * warps_of_block())
    add_group(totals, layer * groups + group);
  if (totals.sums.norm_sum == nullptr || threadIdx.x >= kWarpSize || blockIdx.y > 0) return;
  const int64_t n = groups * totals.segments.slices * totals.partials.slabs;
  const double* from = totals.partials.scalars + layer * n * kScalars;
  const double norms = sum_by_lanes(from + kNormSum, n, kScalars);
  const double norms_sq = sum_by_lanes(from + kNormSqSum, n, kScalars);
  if (threadIdx.x > 0) return;
  add_to(totals.sums.norm_sum + layer, norms);
  add_to(totals.sums.norm_sq_sum + layer, norms_sq);
}

// As add_tile, for all columns.
__device__ void add_tiles(double* to, const double* from, int64_t n, int64_t row_stride, int64_t d,
                          const double* scalars, int64_t scalar_stride) {
  for (int64_t tile = blockIdx.y; tile * kTileColumns < d; tile += gridDim.y) {
    add_tile(to, from, n, row_stride, d, scalars, scalar_stride, tile * kTileColumns + lane_of_thread());
    __syncthreads();
  }
}

// blockIdx.x: a layer's scalars, then its three sums by column, then Σ u of each of its groups; blockIdx.y: columns.
__global__ void __launch_bounds__(kTileThreads) add_partials_kernel(const __grid_constant__ Totals totals) {
  const int64_t groups = totals.segments.groups, slices = totals.segments.slices, d = totals.d;
  const int64_t jobs = gridDim.x / totals.n_layers, layer = blockIdx.x / jobs, job = blockIdx.x % jobs;
  if (job == 0) return add_scalars(totals, layer);
  const int64_t column_jobs = totals.partials.columns != nullptr ? 3 : 0;
  if (job <= column_jobs) {
    double* const to = job == 1 ? totals.sums.sum : job == 2 ? totals.sums.sq_sum : totals.sums.unit_sq_sum;
    const int64_t parts = totals.segments.parts();
    const double* from = totals.partials.columns + (layer * parts * 3 + job - 1) * d;
    return add_tiles(to + layer * d, from, parts, 3 * d, d, nullptr, 0);
  }
  const int64_t at = layer * groups + job - 1 - column_jobs, slabs = totals.partials.slabs;
  add_tiles(totals.sums.unit_sum + at * d, totals.partials.units + at * slices * d, slices, d, d,
            totals.partials.scalars + at * slices * slabs * kScalars, slabs * kScalars);
}

// One warp a row.
template <class In, bool kVector>
__global__ void __launch_bounds__(kWarpSize)
    row_norms_kernel(const __grid_constant__ Layers layers, const __grid_constant__ RowNorms norms) {
  const int64_t row = blockIdx.x, layer = layers.first + blockIdx.y;
  if (norms.mask != nullptr && norms.mask[row] == 0) return;
  const In* from = static_cast<const In*>(layers.addresses[blockIdx.y]) +
                   row / norms.rows_of_sentence * norms.sentence_stride +
                   row % norms.rows_of_sentence * norms.row_stride;
  double norm_sq = 0;
  for (int64_t begin = 0; begin < norms.d; begin += kWarpColumns) {
    const OwnColumns<kVector> columns(int(begin), int(norms.d));
    const Octet<In> x = load_octet(from, columns, norms.col_stride);
#pragma unroll
    for (int k = 0; k < kColumns; ++k) norm_sq += double(x[k]) * double(x[k]);
  }
  norm_sq = sum_of_lanes(norm_sq);
  if (threadIdx.x == 0) norms.norms_sq[layer * norms.rows + row] = norm_sq;
}

}  // namespace

int column_slabs(int64_t d, int fields, bool vector, int device) {
  const int threads = BlockShape(d, 1).threads;
  if (d <= most_threads(vector) * kColumns) {
    const int most_shared = device_attribute("column_slabs", cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (moment_shared_bytes(fields, threads) <= most_shared) return 1;
  }
  return int((d + kSlabColumns - 1) / kSlabColumns);
}

void add_partials(const char* op, const MomentSums& sums, double* sentence_sq_sum, double* sentence_size_sq_sum,
                  int64_t* n_sentences, const Segments& segments, const MomentPartials& partials, int64_t n_layers,
                  int64_t d, const Queue& queue) {
  if (n_layers == 0) return;
  const Totals totals{sums, sentence_sq_sum, sentence_size_sq_sum, n_sentences, segments, partials, n_layers, d};
  const int64_t jobs = 1 + (partials.columns != nullptr ? 3 : 0) + (segments.slices > 1 ? segments.groups : 0);
  const int64_t tiles = jobs > 1 ? std::min(int64_t{tiles_of(d)}, kMostTiles) : 1;
  const dim3 grid(unsigned(n_layers * jobs), unsigned(tiles));
  Stream(op, queue.device, queue.stream)
      .launch(add_partials_kernel, grid, kTileThreads, kTileThreads * sizeof(double), totals);
}

void write_row_norms(const char* op, const RowNorms& norms, const Queue& queue) {
  check_count(op, "rows", norms.rows);
  with_element_type(norms.dtype, [&](auto* element) {
    using In = std::remove_const_t<std::remove_pointer_t<decltype(element)>>;
    const bool vector = aligned_rows(norms.dtype, norms.layers, norms.n_layers, norms.d, norms.col_stride,
                                     norms.row_stride, norms.sentence_stride);
    for_layers(norms.layers, norms.n_layers, [&](const Layers& layers, unsigned count) {
      Stream(op, queue.device, queue.stream)
          .launch(vector ? row_norms_kernel<In, true> : row_norms_kernel<In, false>, dim3(unsigned(norms.rows), count),
                  kWarpSize, 0, layers, norms);
    });
  });
}

}  // namespace cuda
}  // namespace cone
