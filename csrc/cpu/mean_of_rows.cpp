#include "cone/parallel.h"
#include "cone/second_moment.h"
#include "cpu/isa.h"
#include "cpu/row_access.h"

namespace cone {
namespace CONE_ISA {
namespace {

constexpr int64_t kStrip = 128;  // columns of a task

template <class In>
void add_strip(const MeanOfRowsArgs& args, int64_t layer, int64_t j0) {
  using C = ComputeOf<In>;
  const RowView& view = args.rows;
  const int64_t width = view.d - j0 < kStrip ? view.d - j0 : kStrip;
  const In* first = static_cast<const In*>(args.layers[layer]) + j0 * view.col_stride;
  const double* weights = args.weights ? args.weights + layer * view.n : nullptr;
  C row[kStrip];
  double sums[kStrip] = {};
  for (int64_t i = 0; i < view.n; ++i) {
    widen_row<C>(first + i * view.row_stride, view.col_stride, width, row);
    if (weights)
      add_scaled(sums, row, weights[i], width);
    else
      add_widened(sums, row, width);
  }
  for (int64_t j = 0; j < width; ++j) args.mean[layer * view.d + j0 + j] = sums[j] / double(view.n);
}

}  // namespace

void mean_of_rows(const MeanOfRowsArgs& args) {
  const int64_t d = args.rows.d, strips = (d + kStrip - 1) / kStrip;
  const int threads = threads_for(args.n_layers * args.rows.n * d, args.threads);
  with_element_type(args.rows.dtype, [&](const auto* element) {
    using In = std::remove_const_t<std::remove_pointer_t<decltype(element)>>;
    parallel_for(args.n_layers * strips, threads,
                 [&](int64_t task) { add_strip<In>(args, task / strips, task % strips * kStrip); });
  });
}

}  // namespace CONE_ISA

CONE_FORWARD(mean_of_rows, MeanOfRowsArgs)

}  // namespace cone
