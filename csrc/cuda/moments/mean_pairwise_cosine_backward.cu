#include "cuda/common/block_sums.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/layers.cuh"
#include "cuda/moments/cosine_gradient.cuh"
#include "cuda/moments/gradients.cuh"

namespace cone {
namespace cuda {
namespace {

constexpr int kMostThreads = 512;  // wider rows are read twice
constexpr int kBlocksOfALayer = 512;

struct Params {
  Layers layers;
  MeanPairwiseCosineBackwardArgs args;
};

template <bool kVector>
__device__ __forceinline__ void load_units(const double* s, const OwnColumns<kVector>& columns,
                                           double (&own)[kColumns]) {
#pragma unroll
  for (int k = 0; k < kColumns; ++k) own[k] = columns.has(k) ? s[columns[k]] : 0.0;
}

// A block takes every gridDim.x-th row, each thread eight columns of it. The next row is on its way meanwhile.
// kWide: rows have more columns than the block, and are read twice.
template <class In, bool kVector, bool kWide>
__global__ void __launch_bounds__(kMostThreads)
    mean_pairwise_cosine_backward_kernel(const __grid_constant__ Params params) {
  const RowView& rows = params.args.rows;
  const int64_t layer = params.layers.first + blockIdx.y;
  const int d = int(rows.d), tile = int(blockDim.x) * kColumns;
  const In* base = static_cast<const In*>(params.layers.addresses[blockIdx.y]);
  In* out = static_cast<In*>(params.args.grad_rows) + layer * rows.n * d;
  const double* s = params.args.unit_sum + layer * d;
  const double scale = params.args.scale[layer];
  BlockSums<2, double> block_sums(shared_memory<unsigned char>());
  constexpr int kSecond = BlockSums<2, double>::kLanesPerSum;

  const OwnColumns<kVector> columns(0, min(d, tile));
  double units[kColumns];
  load_units(s, columns, units);
  Octet<In> next = {};
  if (blockIdx.x < rows.n) next = load_octet(base + blockIdx.x * rows.row_stride, columns, rows.col_stride);
  for (int64_t row = blockIdx.x; row < rows.n; row += gridDim.x) {
    const Octet<In> x = next;
    if (row + gridDim.x < rows.n)
      next = load_octet(base + (row + gridDim.x) * rows.row_stride, columns, rows.col_stride);
    double sums[2] = {};
    add_products(x, units, sums);
    if constexpr (kWide)
      for (int begin = tile; begin < d; begin += tile) {
        const OwnColumns<kVector> more(begin, min(begin + tile, d));
        double more_units[kColumns];
        load_units(s, more, more_units);
        add_products(load_octet(base + row * rows.row_stride, more, rows.col_stride), more_units, sums);
      }
    const double total = block_sums(sums);
    const double norm_sq = __shfl_sync(kAllLanes, total, 0), projection = __shfl_sync(kAllLanes, total, kSecond);
    const Direction direction = direction_of(norm_sq, projection, scale);
    store_octet(out + row * d, columns, gradient<false>(x, units, direction));
    if constexpr (kWide)
      for (int begin = tile; begin < d; begin += tile) {
        const OwnColumns<kVector> more(begin, min(begin + tile, d));
        double more_units[kColumns];
        load_units(s, more, more_units);
        const Octet<In> again = load_octet(base + row * rows.row_stride, more, rows.col_stride);
        store_octet(out + row * d, more, gradient<false>(again, more_units, direction));
      }
  }
}

}  // namespace

void mean_pairwise_cosine_backward(const MeanPairwiseCosineBackwardArgs& args, const Queue& queue) {
  const RowView& rows = args.rows;
  if (args.n_layers == 0 || rows.n == 0 || rows.d == 0) return;
  if (warps_take_rows(args)) return mean_pairwise_cosine_backward_by_warps(args, queue);
  const int64_t warps = (rows.d + kWarpColumns - 1) / kWarpColumns;
  const int threads = int(std::min(warps * kWarpSize, int64_t{kMostThreads}));
  const bool wide = rows.d > int64_t{kMostThreads} * kColumns;
  with_element_type(rows.dtype, [&](auto* element) {
    using In = std::remove_const_t<std::remove_pointer_t<decltype(element)>>;
    const bool vector =
        aligned_rows(rows.dtype, args.layers, args.n_layers, rows.d, rows.col_stride, rows.row_stride) &&
        aligned_rows(rows.dtype, &args.grad_rows, 1, rows.d, 1, rows.d);
    const auto kernel = vector ? (wide ? mean_pairwise_cosine_backward_kernel<In, true, true>
                                       : mean_pairwise_cosine_backward_kernel<In, true, false>)
                               : (wide ? mean_pairwise_cosine_backward_kernel<In, false, true>
                                       : mean_pairwise_cosine_backward_kernel<In, false, false>);
    for_layers(args.layers, args.n_layers, [&](const Layers& layers, unsigned count) {
      Stream("mean_pairwise_cosine_backward", queue.device, queue.stream)
          .launch(kernel, dim3(unsigned(std::min(rows.n, int64_t{kBlocksOfALayer})), count), threads,
                  BlockSums<2, double>::bytes(threads / kWarpSize), Params{layers, args});
    });
  });
}

}  // namespace cuda
}  // namespace cone
