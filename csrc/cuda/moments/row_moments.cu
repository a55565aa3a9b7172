#include "cuda/moments/moment_partials.cuh"

namespace cone {
namespace cuda {
namespace {

struct Params {
  Layers layers;
  RowView rows;
  MomentSums totals;
  uint8_t* status;
  Segments segments;
  MomentPartials partials;
  int slab_columns;
};

template <class In, bool kVector, int kFields>
struct Op {
  using Sums = RowSums<In, kVector, kFields>;
  const Params& params;
  const int64_t layer;
  Sums& sums;

  __device__ __forceinline__ void end_run(int) {
    sums.widen_run();
    if (threadIdx.x == 0) sums.tally().used += sums.run_used;
    sums.run_used = 0;
  }

  __device__ __forceinline__ void end_group(int group) {
    take_units(sums, params.totals, params.partials, params.segments, layer, group, params.rows.d);
    sums.take_tally(group_scalars(params.partials, params.segments, layer, group), blockIdx.z == 0);
  }

  __device__ __forceinline__ void left_out(int, int row, Status status) {
    if (params.status != nullptr && blockIdx.z == 0 && threadIdx.x == 0)
      params.status[layer * params.rows.n + row] = status;
  }

  __device__ __forceinline__ void empty(int) {}
};

template <class In, bool kVector, int kFields>
__global__ void __launch_bounds__(most_threads(kVector), 1) row_moments_kernel(const __grid_constant__ Params params) {
  const RowView& rows = params.rows;
  const int64_t layer = params.layers.first + blockIdx.y;
  RowSums<In, kVector, kFields> sums(own_columns<kVector>(rows.d, params.slab_columns), shared_memory<unsigned char>());
  const double* norms_sq = params.partials.norms_sq;
  const RowSource<In> source{static_cast<const In*>(params.layers.addresses[blockIdx.y]),
                             norms_sq != nullptr ? norms_sq + layer * rows.n : nullptr, rows.col_stride};
  RowWalk<kBatchRows<In>> walk(params.segments, rows);
  Op<In, kVector, kFields> op{params, layer, sums};
  add_rows(walk, source, sums, op);
  if constexpr (kFields == kRowFields) write_columns(sums, params.partials, layer, rows.d);
}

template <class In, bool kVector>
void (*kernel_for(int fields))(Params) {
  return fields == kRowFields ? row_moments_kernel<In, kVector, kRowFields>
                              : row_moments_kernel<In, kVector, kCosineFields>;
}

int fields_of(const RowMomentsArgs& args) { return args.sums.unit_sq_sum != nullptr ? kRowFields : kCosineFields; }

bool vector_loads(const RowMomentsArgs& args) {
  return aligned_rows(args.rows.dtype, args.layers, args.n_layers, args.rows.d, args.rows.col_stride,
                      args.rows.row_stride);
}

}  // namespace

int row_moment_slabs(const RowMomentsArgs& args, int device) {
  return column_slabs(args.rows.d, fields_of(args), vector_loads(args), device);
}

void row_moments(const RowMomentsLaunch& launch, const Queue& queue) {
  const RowMomentsArgs& args = launch.rows;
  const RowView& rows = args.rows;
  const MomentPartials& partials = launch.partials;
  check_count("row_moments", "rows", rows.n);
  if (partials.slabs > 1)
    write_row_norms("row_moments",
                    {args.layers, args.n_layers, rows.n, rows.d, rows.dtype, std::max(rows.n, int64_t{1}), 0,
                     rows.row_stride, rows.col_stride, nullptr, partials.norms_sq},
                    queue);
  const int fields = fields_of(args);
  const bool vector = vector_loads(args);
  const BlockShape shape(rows.d, partials.slabs);
  with_element_type(rows.dtype, [&](auto* element) {
    using In = std::remove_const_t<std::remove_pointer_t<decltype(element)>>;
    for_layers(args.layers, args.n_layers, [&](const Layers& layers, unsigned count) {
      const Params params{layers, rows, args.sums, args.status, launch.segments, partials, shape.slab_columns};
      Stream("row_moments", queue.device, queue.stream)
          .launch(vector ? kernel_for<In, true>(fields) : kernel_for<In, false>(fields),
                  dim3(unsigned(launch.segments.parts()), count, unsigned(partials.slabs)), shape.threads,
                  moment_shared_bytes(fields, shape.threads), params);
    });
  });
  add_partials("row_moments", args.sums, nullptr, nullptr, nullptr, launch.segments, partials, args.n_layers, rows.d,
               queue);
}

}  // namespace cuda
}  // namespace cone
