// mean_pairwise_cosine_backward of aligned rows of up to 1024 columns: a warp takes whole rows, so that no barrier
// stands between a row's two sums and its gradient.
#include "cuda/common/device.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/layers.cuh"
#include "cuda/moments/cosine_gradient.cuh"
#include "cuda/moments/gradients.cuh"
#include "cuda/moments/warp_sums.cuh"

namespace cone {
namespace cuda {
namespace {

constexpr int kWarps = 4;
// So that a layer's unit sum, of which each lane keeps its columns, is read for several rows.
constexpr int kLeastRows = 4;

// Blocks that a multiprocessor has registers for: a lane keeps an octet of unit sums in float64, of this row and of the
// next for every 256 columns.
constexpr int blocks_at_once(int element_bytes, int octets) {
  return element_bytes == 4 ? (octets == 1 ? 6 : 6 - octets) : (octets == 1 ? 8 : 7 - octets);
}

struct Params {
  Layers layers;
  MeanPairwiseCosineBackwardArgs args;
};

// A lane's columns are pieces of 16 bytes, side by side with those of the other lanes.
template <class In>
struct Pieces {
  static constexpr int kOfOctet = Octet<In>::kWords / 4;

  static __device__ __forceinline__ Octet<In> load(const In* row, int o, int lane, int d) {
    Octet<In> octet = {};
#pragma unroll
    for (int half = 0; half < kOfOctet; ++half) {
      const int column = first_of_four<In>(o, half, lane);
      if (column >= d) continue;
      const uint4 four = __ldg(reinterpret_cast<const uint4*>(row + column));
      octet.words[4 * half] = four.x;
      octet.words[4 * half + 1] = four.y;
      octet.words[4 * half + 2] = four.z;
      octet.words[4 * half + 3] = four.w;
    }
    return octet;
  }

  static __device__ __forceinline__ void store(In* row, int o, int lane, int d, const Octet<In>& octet) {
#pragma unroll
    for (int half = 0; half < kOfOctet; ++half) {
      const int column = first_of_four<In>(o, half, lane);
      const uint32_t* const words = octet.words + 4 * half;
      if (column < d) *reinterpret_cast<uint4*>(row + column) = make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
};

// The next row is on its way while one is worked on.
template <class In, int kOctets>
__global__ void __launch_bounds__(kWarps* kWarpSize, blocks_at_once(sizeof(In), kOctets))
    warp_cosine_backward_kernel(const __grid_constant__ Params params) {
  const RowView& rows = params.args.rows;
  const int64_t layer = params.layers.first + blockIdx.y;
  const int d = int(rows.d), lane = lane_of_thread();
  const In* const base = static_cast<const In*>(params.layers.addresses[blockIdx.y]);
  In* const out = static_cast<In*>(params.args.grad_rows) + layer * rows.n * d;
  const double scale = params.args.scale[layer];

  double units[kOctets][kColumns];
#pragma unroll
  for (int o = 0; o < kOctets; ++o)
#pragma unroll
    for (int k = 0; k < kColumns; ++k) {
      const int column = first_of_four<In>(o, k / 4, lane) + k % 4;
      units[o][k] = column < d ? params.args.unit_sum[layer * d + column] : 0.0;
    }

  const int step = int(gridDim.x) * kWarps;
  int row = int(blockIdx.x) * kWarps + warp_of_thread();
  Octet<In> next[kOctets] = {};
  const auto load = [&](int number) {
#pragma unroll
    for (int o = 0; o < kOctets; ++o) next[o] = Pieces<In>::load(base + number * rows.row_stride, o, lane, d);
  };
  if (row < rows.n) load(row);
  for (; row < rows.n; row += step) {
    Octet<In> x[kOctets];
    double sums[2] = {};
#pragma unroll
    for (int o = 0; o < kOctets; ++o) x[o] = next[o];
    if (row + step < rows.n) load(row + step);
#pragma unroll
    for (int o = 0; o < kOctets; ++o) add_products(x[o], units[o], sums);
    const double total = sums_of_lanes(sums);
    const double norm_sq = __shfl_sync(kAllLanes, total, 0);
    const double projection = __shfl_sync(kAllLanes, total, kWarpSize / 2);
    In* const to = out + int64_t{row} * d;
    if (norm_sq >= kLeastQuickNormSq && norm_sq <= kMostQuickNormSq) {
      const Direction direction = quick_direction(norm_sq, projection, scale);
#pragma unroll
      for (int o = 0; o < kOctets; ++o) Pieces<In>::store(to, o, lane, d, gradient<true>(x[o], units[o], direction));
    } else {
      const Direction direction = direction_of(norm_sq, projection, scale);
#pragma unroll
      for (int o = 0; o < kOctets; ++o) Pieces<In>::store(to, o, lane, d, gradient<false>(x[o], units[o], direction));
    }
  }
}

template <class In>
auto kernel_of(int64_t d) {
  switch (octets_of(d)) {
    case 1:
      return warp_cosine_backward_kernel<In, 1>;
    case 2:
      return warp_cosine_backward_kernel<In, 2>;
    case 3:
      return warp_cosine_backward_kernel<In, 3>;
    default:
      return warp_cosine_backward_kernel<In, 4>;
  }
}

}  // namespace

bool warps_take_rows(const MeanPairwiseCosineBackwardArgs& args) {
  const RowView& rows = args.rows;
  return rows.d <= kMostWarpColumns && rows.n <= kMostNumbered &&
         aligned_rows(rows.dtype, args.layers, args.n_layers, rows.d, rows.col_stride, rows.row_stride) &&
         aligned_rows(rows.dtype, &args.grad_rows, 1, rows.d, 1, rows.d);
}

void mean_pairwise_cosine_backward_by_warps(const MeanPairwiseCosineBackwardArgs& args, const Queue& queue) {
  const char* const op = "mean_pairwise_cosine_backward";
  const RowView& rows = args.rows;
  const int64_t most = (rows.n + kWarps * kLeastRows - 1) / (kWarps * kLeastRows);
  const int processors = device_attribute(op, cudaDevAttrMultiProcessorCount, queue.device);
  const int blocks =
      blocks_of_layer(args.n_layers, most, processors * blocks_at_once(bytes_of(rows.dtype), octets_of(rows.d)));
  with_element_type(rows.dtype, [&](auto* element) {
    using In = std::remove_const_t<std::remove_pointer_t<decltype(element)>>;
    for_layers(args.layers, args.n_layers, [&](const Layers& layers, unsigned count) {
      Stream(op, queue.device, queue.stream)
          .launch(kernel_of<In>(rows.d), dim3(unsigned(blocks), count), kWarps * kWarpSize, 0, Params{layers, args});
    });
  });
}

}  // namespace cuda
}  // namespace cone
