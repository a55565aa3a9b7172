// The cosine of aligned rows in two launches: warps add up unit vectors, then tiles of columns are added up over
// blocks, and the last tile of a layer to be done makes the cosine of them.
#include "cuda/common/device.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/layers.cuh"
#include "cuda/moments/partial_rows.cuh"
#include "cuda/moments/row_ring.cuh"

namespace cone {
namespace cuda {
namespace {

constexpr int kWarps = 12;        // of a block, of which there is one on a multiprocessor
constexpr int kLeastRows = 4;     // of a warp, as its sums take memory too
constexpr int kBlockScalars = 2;  // Σ‖u‖², and how many rows are left out

struct CosinePartials {
  double* columns;  // (L, blocks, d) Σ u
  double* scalars;  // (L, blocks, kBlockScalars)
  double* squares;  // (L, tiles) of ‖Σ u‖²
  unsigned* done;   // (L) how many tiles are
};

struct CosineParams {
  Layers layers;
  RowView rows;
  int64_t row_bytes;  // from one row to the next
  CosineResults results;
  CosinePartials partials;
  int blocks;  // of a layer
};

// Σ u of one warp, each lane eight columns of every 256: in float32 for 32 rows, then in float64.
template <class In, int kOctets>
class CosineSums {
 public:
  double total[kOctets][kColumns] = {};
  double unit_sq = 0;  // of this lane
  int left_out = 0;

  template <class Row>
  __device__ __forceinline__ void add(const Row& row, float inverse) {
#pragma unroll
    for (int o = 0; o < kOctets; ++o) {
      const Octet<In> octet = row(o);
#pragma unroll
      for (int k = 0; k < kColumns; ++k) unit_[o][k] = fmaf(octet[k], inverse, unit_[o][k]);
    }
  }

  // A row whose squares do not fit float32, or one that is left out.
  template <class Row>
  __device__ __forceinline__ void add_unsafe(const Row& row) {
    const double norm_sq = exact_norm_sq<In, kOctets>(row);
    if (!(norm_sq <= DBL_MAX && norm_sq >= DBL_MIN)) {
      ++left_out;
      return;
    }
    const double inverse = 1 / sqrt(norm_sq);
    if (lane_of_thread() == 0) unit_sq += norm_sq * inverse * inverse;
#pragma unroll
    for (int o = 0; o < kOctets; ++o) {
      const Octet<In> octet = row(o);
#pragma unroll
      for (int k = 0; k < kColumns; ++k) total[o][k] += double(octet[k]) * inverse;
    }
  }

  __device__ __forceinline__ void note_norm(int, float, float) {}
  __device__ __forceinline__ void note_unit_sq(int, float value) { unit_sq += double(value); }

  __device__ __forceinline__ void make_room() {
#pragma unroll
    for (int o = 0; o < kOctets; ++o)
#pragma unroll
      for (int k = 0; k < kColumns; ++k) {
        total[o][k] += double(unit_[o][k]);
        unit_[o][k] = 0;
      }
  }

 private:
  float unit_[kOctets][kColumns] = {};
};

// Shared memory of a warp: its ring, then its sums in the same place.
template <class In, int kOctets>
struct CosineShape {
  using Rows = WarpShape<In, kOctets>;
  static constexpr int kRows = 16 / int(sizeof(In));
  static constexpr int kRing = kRows * Rows::kRowBytes, kSums = Rows::kColumns * int(sizeof(double));
  static constexpr int kBytes = kRing > kSums ? kRing : kSums;
};
constexpr int kScalarBytes = kWarps * kBlockScalars * int(sizeof(double));  // behind those of all warps

template <class In, int kOctets>
__global__ void __launch_bounds__(kWarps* kWarpSize, 1)
    add_unit_vectors_kernel(const __grid_constant__ CosineParams params) {
  using Shape = CosineShape<In, kOctets>;
  constexpr int kBytes = Shape::kBytes;
  unsigned char* const memory = shared_memory<unsigned char>();
  double* const scalars = reinterpret_cast<double*>(memory + kWarps * kBytes);
  const int64_t layer = params.layers.first + blockIdx.y, n = params.rows.n, parts = int64_t{params.blocks} * kWarps;
  const int warp = warp_of_thread(), lane = lane_of_thread(), d = int(params.rows.d);
  const int64_t part = int64_t{blockIdx.x} * kWarps + warp;
  const int64_t begin = n * part / parts, end = n * (part + 1) / parts;
  CosineSums<In, kOctets> sums;
  if (begin < end) {
    RowRing<In, kOctets, RowsApart, Shape::kRows> ring(
        memory + warp * kBytes, static_cast<const In*>(params.layers.addresses[blockIdx.y]),
        {begin * params.row_bytes, params.row_bytes}, int(end - begin), d);
    ring.add(sums, int(end - begin));
    sums.make_room();
    wait_for_copies<0>();
  }
  __syncthreads();
  double* const of_warps = reinterpret_cast<double*>(memory);  // (warps, columns)
  constexpr int kOfWarp = kOctets * kWarpColumns;
#pragma unroll
  for (int o = 0; o < kOctets; ++o)
#pragma unroll
    for (int k = 0; k < kColumns; ++k)
      of_warps[warp * kOfWarp + first_of_four<In>(o, k / 4, lane) + k % 4] = sums.total[o][k];
  const double unit_sq = sum_of_lanes(sums.unit_sq);
  if (lane == 0) {
    scalars[kBlockScalars * warp] = unit_sq;
    scalars[kBlockScalars * warp + 1] = double(sums.left_out);
  }
  __syncthreads();
  const int64_t row = layer * params.blocks + blockIdx.x;
  for (int column = int(threadIdx.x); column < d; column += kWarps * kWarpSize) {
    double total = 0;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) total += of_warps[i * kOfWarp + column];
    params.partials.columns[row * d + column] = total;
  }
  if (threadIdx.x < kBlockScalars) {
    double total = 0;
    for (int i = 0; i < kWarps; ++i) total += scalars[kBlockScalars * i + int(threadIdx.x)];
    params.partials.scalars[row * kBlockScalars + threadIdx.x] = total;
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) params.partials.done[layer] = 0;
}

// The sum of n numbers that other blocks have written meanwhile, in every lane of a warp.
__device__ double sum_of_written(const double* from, int64_t n) {
  double sum = 0;
  for (int64_t i = lane_of_thread(); i < n; i += kWarpSize) sum += __ldcg(from + i);
  return sum_of_lanes(sum);
}

// blockIdx.x: a tile of columns; blockIdx.y: the layer.
__global__ void __launch_bounds__(kTileThreads) finish_cosine_kernel(const __grid_constant__ CosineParams params) {
  const int64_t layer = params.layers.first + blockIdx.y, d = params.rows.d, blocks = params.blocks;
  const int64_t column = int64_t{blockIdx.x} * kTileColumns + lane_of_thread();
  const double own = sum_of_tile(params.partials.columns + layer * blocks * d, blocks, d, d, nullptr, 0, column);
  if (warp_of_thread() > 0) return;
  if (column < d) params.results.unit_sum[layer * d + column] = own;
  const double square = sum_of_lanes(own * own);
  double* const squares = params.partials.squares + layer * gridDim.x;
  unsigned before = 0;
  if (lane_of_thread() == 0) {
    squares[blockIdx.x] = square;
    __threadfence();
    before = atomicAdd(params.partials.done + layer, 1u);
  }
  if (__shfl_sync(kAllLanes, before, 0) + 1 < gridDim.x) return;
  __syncwarp();
  __threadfence();
  const double* const scalars = params.partials.scalars + layer * blocks * kBlockScalars;
  const double of_sum = sum_of_written(squares, gridDim.x), of_units = sum_by_lanes(scalars, blocks, kBlockScalars);
  const double left_out = sum_by_lanes(scalars + 1, blocks, kBlockScalars);
  if (lane_of_thread() > 0) return;
  const double n = double(params.rows.n) - left_out;
  params.results.cosine[layer] = n > 1 ? (of_sum - of_units) / (n * (n - 1)) : double(__uint_as_float(0x7fc00000u));
  params.results.left_out[layer] = int64_t(left_out);
  params.results.count[layer] = int64_t(n);
}

int attribute(cudaDeviceAttr which, int device) { return device_attribute("mean_pairwise_cosine", which, device); }

// A block fills a multiprocessor.
int blocks_of(int64_t n_layers, int64_t n, int device) {
  const int64_t most = (n + kWarps * kLeastRows - 1) / (kWarps * kLeastRows);
  return blocks_of_layer(n_layers, most, attribute(cudaDevAttrMultiProcessorCount, device));
}

// Lays out the memory; null: counts it alone.
int64_t lay_out(int64_t n_layers, int64_t d, int blocks, double* memory, CosinePartials& partials) {
  const int64_t rows = n_layers * blocks, columns = rows * d, scalars = rows * kBlockScalars;
  const int64_t squares = n_layers * tiles_of(d);
  if (memory != nullptr)
    partials = {memory, memory + columns, memory + columns + scalars,
                reinterpret_cast<unsigned*>(memory + columns + scalars + squares)};
  return (columns + scalars + squares) * int64_t(sizeof(double)) + n_layers * int64_t(sizeof(unsigned));
}

template <class In>
void launch(const CosineParams& params, unsigned layers, const Stream& stream) {
  const auto with = [&](void (*kernel)(CosineParams), int of_warp) {
    stream.launch(kernel, dim3(unsigned(params.blocks), layers), kWarps * kWarpSize, kWarps * of_warp + kScalarBytes,
                  params);
  };
  switch (octets_of(params.rows.d)) {
    case 1:
      return with(add_unit_vectors_kernel<In, 1>, CosineShape<In, 1>::kBytes);
    case 2:
      return with(add_unit_vectors_kernel<In, 2>, CosineShape<In, 2>::kBytes);
    case 3:
      return with(add_unit_vectors_kernel<In, 3>, CosineShape<In, 3>::kBytes);
    default:
      return with(add_unit_vectors_kernel<In, 4>, CosineShape<In, 4>::kBytes);
  }
}

}  // namespace

int64_t mean_pairwise_cosine_workspace(const void* const* layers, int64_t n_layers, const RowView& rows, int device) {
  const bool aligned = aligned_rows(rows.dtype, layers, n_layers, rows.d, rows.col_stride, rows.row_stride);
  if (!aligned || rows.d == 0 || rows.d > kMostWarpColumns || n_layers == 0 || rows.n > kMostNumbered) return 0;
  static_assert(CosineShape<float, kMostOctets>::kBytes == kMostOctets * CosineShape<BFloat16, 1>::kBytes);
  const int bytes = kWarps * octets_of(rows.d) * CosineShape<float, 1>::kBytes + kScalarBytes;
  if (attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device) < bytes) return 0;
  CosinePartials none;
  return lay_out(n_layers, rows.d, blocks_of(n_layers, rows.n, device), nullptr, none);
}

void mean_pairwise_cosine(const void* const* layers, int64_t n_layers, const RowView& rows,
                          const CosineResults& results, void* memory, const Queue& queue) {
  const int blocks = blocks_of(n_layers, rows.n, queue.device);
  CosinePartials partials;
  lay_out(n_layers, rows.d, blocks, static_cast<double*>(memory), partials);
  const Stream stream("mean_pairwise_cosine", queue.device, queue.stream);
  with_element_type(rows.dtype, [&](auto* element) {
    using In = std::remove_const_t<std::remove_pointer_t<decltype(element)>>;
    for_layers(layers, n_layers, [&](const Layers& some, unsigned count) {
      const CosineParams params{some, rows, rows.row_stride * int64_t(sizeof(In)), results, partials, blocks};
      launch<In>(params, count, stream);
      stream.launch(finish_cosine_kernel, dim3(unsigned(tiles_of(rows.d)), count), kTileThreads,
                    kTileThreads * sizeof(double), params);
    });
  });
}

}  // namespace cuda
}  // namespace cone
