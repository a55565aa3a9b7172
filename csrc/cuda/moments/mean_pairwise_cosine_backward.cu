#include <cfloat>

#include "cuda/common/block_sums.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/layers.cuh"
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

// What a row's gradient is made of: scale · (s − along · x). Both are zero for rows that are left out.
struct Direction {
  double scale, along;

  // of = (‖x‖², s·x)
  __device__ __forceinline__ Direction(double norm_sq, double projection, double layer_scale) : scale(0), along(0) {
    if (!(norm_sq <= DBL_MAX) || norm_sq < DBL_MIN) return;
    // One factor 1/‖x‖ at a time: its powers may leave float64.
    const double inverse = 1 / sqrt(norm_sq);
    scale = layer_scale * inverse;
    along = projection * inverse * inverse;
  }
};

template <class In>
__device__ __forceinline__ Octet<In> gradient(const Octet<In>& x, const double (&s)[kColumns], const Direction& row) {
  Octet<In> result = {};
  const bool left_out = row.scale == 0;
#pragma unroll
  for (int k = 0; k < kColumns; ++k)
    if (!left_out) result.put(k, narrow<In>(float(row.scale * (s[k] - double(x[k]) * row.along))));
  return result;
}

template <bool kVector>
__device__ __forceinline__ void load_units(const double* s, const OwnColumns<kVector>& columns,
                                           double (&own)[kColumns]) {
#pragma unroll
  for (int k = 0; k < kColumns; ++k) own[k] = columns.has(k) ? s[columns[k]] : 0.0;
}

template <class In>
__device__ __forceinline__ void add_products(const Octet<In>& x, const double (&s)[kColumns], double (&sums)[2]) {
#pragma unroll
  for (int k = 0; k < kColumns; ++k) {
    const double value = double(x[k]);
    sums[0] = fma(value, value, sums[0]);
    sums[1] = fma(value, s[k], sums[1]);
  }
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
    const Direction direction(__shfl_sync(kAllLanes, total, 0), __shfl_sync(kAllLanes, total, kSecond), scale);
    store_octet(out + row * d, columns, gradient(x, units, direction));
    if constexpr (kWide)
      for (int begin = tile; begin < d; begin += tile) {
        const OwnColumns<kVector> more(begin, min(begin + tile, d));
        double more_units[kColumns];
        load_units(s, more, more_units);
        const Octet<In> again = load_octet(base + row * rows.row_stride, more, rows.col_stride);
        store_octet(out + row * d, more, gradient(again, more_units, direction));
      }
  }
}

}  // namespace

void mean_pairwise_cosine_backward(const MeanPairwiseCosineBackwardArgs& args, const Queue& queue) {
  const RowView& rows = args.rows;
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
