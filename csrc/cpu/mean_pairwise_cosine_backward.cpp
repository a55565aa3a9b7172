#include "cone/gradients.h"
#include "cone/parallel.h"
#include "cpu/huge_pages.h"
#include "cpu/isa.h"
#include "cpu/row_access.h"
#include "cpu/scratch.h"

namespace cone {
namespace CONE_ISA {
namespace {

constexpr int64_t kElementsPerTask = int64_t{1} << 16;

// ‖x‖² and s·x of one contiguous row.
template <class In>
void norm_and_projection(const In* x, const double* s, int64_t d, double* norm_sq, double* projection) {
  constexpr int V = kLanes<double>;
  Vec<double> squares[2] = {}, products[2] = {};
  int64_t j = 0;
  for (; j + 2 * V <= d; j += 2 * V)
    for (int k = 0; k < 2; ++k) {
      const Vec<double> v = load<double>(x + j + k * V);
      squares[k] += v * v;
      products[k] += v * load<double>(s + j + k * V);
    }
  for (; j < d; j += V) {
    const Vec<double> v = j + V <= d ? load<double>(x + j) : load_first<double>(x + j, d - j);
    squares[0] += v * v;
    products[0] += v * (j + V <= d ? load<double>(s + j) : load_first<double>(s + j, d - j));
  }
  *norm_sq = add_lanes<double>(squares[0] + squares[1]);
  *projection = add_lanes<double>(products[0] + products[1]);
}

// out = scale · (s − along · x), fetching the row that comes next.
template <class In>
void write_gradient(const In* x, const double* s, double scale, double along, int64_t d, const In* next, In* out) {
  constexpr int V = kLanes<double>;
  int64_t j = 0;
  for (; j + V <= d; j += V) {
    __builtin_prefetch(next + j);
    store(out + j, (load<double>(s + j) - load<double>(x + j) * along) * scale);
  }
  for (; j < d; ++j) out[j] = narrow<In>(scale * (s[j] - double(widen(x[j])) * along));
}

// Rows [begin, end) of one layer.
template <class In>
void backward_rows(const MeanPairwiseCosineBackwardArgs& args, int64_t layer, int64_t begin, int64_t end) {
  const RowView& rows = args.rows;
  const int64_t d = rows.d;
  const In* base = static_cast<const In*>(args.layers[layer]);
  const double* s = args.unit_sum + layer * d;
  In* out = static_cast<In*>(args.grad_rows) + layer * rows.n * d;
  const Scratch<In> copy(rows.col_stride == 1 ? 0 : d);
  for (int64_t i = begin; i < end; ++i) {
    const In* x = base + i * rows.row_stride;
    const In* next = base + (i + 1 < end ? i + 1 : i) * rows.row_stride;
    if (rows.col_stride != 1) {
      for (int64_t j = 0; j < d; ++j) copy[j] = x[j * rows.col_stride];
      x = next = copy.get();
    }
    double norm_sq, projection;
    norm_and_projection(x, s, d, &norm_sq, &projection);
    if (status_of(norm_sq) != kUsed) {
      std::memset(static_cast<void*>(out + i * d), 0, size_t(d) * sizeof(In));
      continue;
    }
    // One factor 1/‖x‖ at a time: its powers may leave float64.
    const double inverse = 1 / __builtin_sqrt(norm_sq);
    write_gradient(x, s, args.scale[layer] * inverse, projection * inverse * inverse, d, next, out + i * d);
  }
}

template <class In>
void backward_layers(const MeanPairwiseCosineBackwardArgs& args) {
  const int64_t n = args.rows.n, rows_per_task = 1 + kElementsPerTask / args.rows.d;
  const int64_t tasks = (n + rows_per_task - 1) / rows_per_task;
  ask_for_huge_pages(args.grad_rows, size_t(args.n_layers * n * args.rows.d) * sizeof(In));
  const int threads = threads_for(args.n_layers * n * args.rows.d, args.threads);
  parallel_for(args.n_layers * tasks, threads, [&](int64_t task) {
    const int64_t begin = task % tasks * rows_per_task, past = begin + rows_per_task;
    backward_rows<In>(args, task / tasks, begin, past < n ? past : n);
  });
}

}  // namespace

void mean_pairwise_cosine_backward(const MeanPairwiseCosineBackwardArgs& args) {
  with_element_type(args.rows.dtype, [&](auto* element) {
    backward_layers<std::remove_const_t<std::remove_pointer_t<decltype(element)>>>(args);
  });
}

}  // namespace CONE_ISA

CONE_FORWARD(mean_pairwise_cosine_backward, MeanPairwiseCosineBackwardArgs)

}  // namespace cone
