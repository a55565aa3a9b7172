// Block Krylov iteration with Rayleigh-Ritz for all layers at once: a product, then one small problem a layer.
#include <algorithm>

#include "cuda/matrices/block_product.cuh"
#include "cuda/matrices/krylov_step.cuh"
#include "cuda/matrices/top_eigenvectors.h"

namespace cone {
namespace cuda {
namespace {

constexpr int64_t kBasisBlocks = 5;  // the basis holds at most this many blocks
constexpr int64_t kBlocksWanted = 528, kLeastSegmentRows = 64, kPartialValues = int64_t(16) << 20;
constexpr int64_t kMostLayers = 256;  // at a time; a grid can have 65535 blocks in z

int64_t groups_of(int64_t block) { return (block + kVectors - 1) / kVectors; }

// Sizes and places of everything between the kernels: by shape alone.
struct Plan {
  Krylov krylov = {};
  int64_t groups, segments, values = 0;
  bool shared;

  explicit Plan(const TopEigenvectorsArgs& args) {
    const int64_t n = args.rows.n, d = args.rows.d, layers = args.n_layers;
    krylov.d = d;
    krylov.block = args.block;
    krylov.k = args.k;
    krylov.capacity = std::min(kBasisBlocks * args.block, d);
    krylov.ritz_rows = std::max(args.k + 1, args.block) + kRestartBlocks * args.block;
    krylov.done = args.done;
    groups = groups_of(args.block);
    shared = int64_t(sizeof(double)) * (kReduceValues + small_values(krylov.capacity)) <= args.most_shared;

    const int64_t partial = groups * kVectors * d;  // of one segment of one layer
    segments = std::min({(kBlocksWanted + layers * groups - 1) / (layers * groups),
                         (n + kLeastSegmentRows - 1) / kLeastSegmentRows, kPartialValues / (layers * partial)});
    segments = args.covariance ? 0 : std::max(int64_t(1), segments);
    if (segments > 0) {
      krylov.segment_rows = ((n + segments - 1) / segments + kBlockOfRows - 1) / kBlockOfRows * kBlockOfRows;
      segments = (n + krylov.segment_rows - 1) / krylov.segment_rows;
    }

    const auto take = [&](int64_t count) {
      double* taken = args.workspace + values;
      values += (count + 1) / 2 * 2;  // pairs are loaded together
      return taken;
    };
    krylov.basis = take(layers * krylov.capacity * d);
    krylov.image = take(layers * krylov.capacity * d);
    krylov.ritz = take(layers * krylov.ritz_rows * d);
    krylov.projected = take(layers * krylov.capacity * krylov.capacity);
    krylov.small = take(shared ? 0 : layers * small_values(krylov.capacity));
    krylov.states = reinterpret_cast<LayerState*>(take(layers * int64_t(sizeof(LayerState) / sizeof(double))));
    if (args.covariance) return;
    krylov.center_error = take(layers * d);
    krylov.partial = take(layers * segments * partial);
    krylov.center = reinterpret_cast<float*>(take((layers * d + 1) / 2));
  }

  int threads() const { return krylov.d > 256 ? kMostWarps * 32 : 128; }
  size_t shared_bytes() const {
    return sizeof(double) * size_t(kReduceValues + (shared ? small_values(krylov.capacity) : 0));
  }
};

// Calls body(args, plan) for as many layers at a time as go together; each part has a workspace of its own.
template <class Body>
void for_parts(TopEigenvectorsArgs args, int64_t element_size, const Body& body) {
  const int64_t k = args.k, d = args.rows.d;
  for (int64_t left = args.n_layers; left > 0; left -= kMostLayers) {
    const int64_t layers = args.n_layers = std::min(left, kMostLayers);
    const Plan plan(args);
    body(args, plan);
    args.rows.data = static_cast<const char*>(args.rows.data) + layers * args.layer_stride * element_size;
    args.values += layers * k;
    args.vectors += layers * k * d;
    args.residuals += layers * k;
    args.iterations += layers;
    args.next_value += layers;
    if (args.mean) args.mean += layers * d;
    args.converged += layers;
    args.done += layers;
    args.workspace += plan.values;
  }
}

template <class Body>
void with_rows(const TopEigenvectorsArgs& args, const Queue& queue, const Body& body) {
  const Stream stream("top_eigenvectors", queue.device, queue.stream);
  with_element_type(args.rows.dtype, [&](const auto* element) {
    using In = std::remove_const_t<std::remove_pointer_t<decltype(element)>>;
    for_parts(args, sizeof(In), [&](const TopEigenvectorsArgs& part, const Plan& plan) {
      body(stream, part, plan, rows_of<In>(part.rows, part.layer_stride));
    });
  });
}

template <class In>
void multiply(const Stream& stream, const TopEigenvectorsArgs& args, const Plan& plan, Rows<In> x) {
  const unsigned layers = unsigned(args.n_layers), groups = unsigned(plan.groups);
  RowView matrix = args.rows;
  if (args.covariance) {
    if (x.row_stride == 1) std::swap(x.row_stride, x.col_stride), std::swap(matrix.row_stride, matrix.col_stride);
    const dim3 grid(unsigned((x.d + kBlockOfRows - 1) / kBlockOfRows), groups, layers);
    stream.launch(multiply_covariance<In>, grid, kProductThreads, sizeof(double) * kVectors * kCovarianceChunk, x,
                  loads_together(matrix, args.layer_stride, sizeof(In), 2), plan.krylov);
    return;
  }
  constexpr size_t kShared = sizeof(float) * ((kVectors + 1) * kDataChunk + kBlockOfRows * kVectors);
  stream.launch(multiply_data<In>, dim3(unsigned(plan.segments), groups, layers), kProductThreads, kShared, x,
                loads_together(matrix, args.layer_stride, sizeof(In), 2), plan.krylov);
  stream.launch(add_segments, dim3(unsigned((x.d + kProductThreads - 1) / kProductThreads), groups, layers),
                kProductThreads, sizeof(double) * kVectors, plan.krylov, plan.segments, double(x.n),
                double(args.center ? x.n - 1 : x.n));
}

}  // namespace

int64_t top_eigenvectors_workspace(const TopEigenvectorsArgs& args) {
  int64_t values = 0;
  for_parts(args, 0, [&](const TopEigenvectorsArgs&, const Plan& plan) { values += plan.values; });
  return values;
}

void top_eigenvectors_begin(const TopEigenvectorsArgs& given, const Queue& queue) {
  with_rows(given, queue, [&](const Stream& stream, const TopEigenvectorsArgs& args, const Plan& plan, const auto& x) {
    using In = std::remove_const_t<std::remove_pointer_t<decltype(x.data)>>;
    const unsigned layers = unsigned(args.n_layers);
    if (!args.covariance) {
      const dim3 grid(unsigned((x.d + kProductThreads - 1) / kProductThreads), unsigned(plan.segments), layers);
      stream.launch(sum_columns<In>, grid, kProductThreads, 0, x, plan.krylov);
    }
    stream.launch(begin_layers<In>, dim3(layers), plan.threads(), plan.shared_bytes(), x, args, plan.krylov,
                  plan.segments, plan.shared);
  });
}

void top_eigenvectors_steps(const TopEigenvectorsArgs& given, int64_t steps, const Queue& queue) {
  with_rows(given, queue, [&](const Stream& stream, const TopEigenvectorsArgs& args, const Plan& plan, const auto& x) {
    for (int64_t step = 0; step < steps; ++step) {
      multiply(stream, args, plan, x);
      stream.launch(step_layers, dim3(unsigned(args.n_layers)), plan.threads(), plan.shared_bytes(), args, plan.krylov,
                    plan.shared);
    }
  });
}

}  // namespace cuda
}  // namespace cone
