#include "cone/parallel.h"
#include "cpu/isa.h"
#include "cpu/shared_sums.h"

namespace cone {
namespace CONE_ISA {
namespace {

double squared_norm(const double* s, int64_t d) {
  constexpr int V = kLanes<double>;
  Vec<double> squares{};
  for (int64_t j = 0; j < d; j += V) {
    const Vec<double> v = j + V <= d ? load<double>(s + j) : load_first<double>(s + j, d - j);
    squares += v * v;
  }
  return add_lanes<double>(squares);
}

// Takes the rows of a run: its sum is added to the task's.
struct FinishRun {
  int64_t d;
  double* unit_sum;
  RowTally& total;

  template <class T>
  void operator()(int64_t, const RowTally& tally, const T* unit, const T*) const {
    add_widened(unit_sum, unit, d);
    total.add(tally);
  }
};

// Adds rows [begin, end) of one layer to `unit_sum` and `total`.
template <class In>
void add_rows(const MeanPairwiseCosineArgs& args, int64_t layer, int64_t begin, int64_t end, double* unit_sum,
              RowTally& total) {
  const RowView& x = args.rows;
  const In* base = static_cast<const In*>(args.layers[layer]);
  const FinishRun finish{x.d, unit_sum, total};
  RowPipeline<In, kUnitSum, FinishRun> pipeline(x.d, x.col_stride, nullptr, nullptr, finish);
  for (int64_t from = begin; from < end; from += kRowsPerFlush)
    pipeline.add(
        0, from + kRowsPerFlush < end ? kRowsPerFlush : end - from, [&](int64_t k) { return from + k; },
        [&](int64_t row) { return base + row * x.row_stride; });
  pipeline.drain();
}

// Adds the sums of a layer's tasks, in their order, to those of the first, and makes the cosine of them.
void finish_layer(const MeanPairwiseCosineArgs& args, int64_t layer, double* unit_sums, RowTally* tallies,
                  int64_t tasks) {
  const int64_t d = args.rows.d;
  double* s = unit_sums;
  RowTally& all = tallies[0];
  for (int64_t task = 1; task < tasks; ++task) {
    add_widened(s, unit_sums + task * d, d);
    all.add(tallies[task]);
  }
  const double n = double(all.count);
  args.cosine[layer] = n > 1 ? (squared_norm(s, d) - all.unit_sq) / (n * (n - 1)) : NAN;
  if (args.left_out == nullptr) return;
  std::memcpy(args.unit_sum + layer * d, s, size_t(d) * sizeof(double));
  args.left_out[layer] = all.n_zero + all.n_nonfinite;
  args.count[layer] = all.count;
  if (args.shortest != nullptr) args.shortest[layer] = all.least_norm;
}

template <class In>
void add_layers(const MeanPairwiseCosineArgs& args) {
  const int64_t n = args.rows.n, d = args.rows.d, tasks = tasks_of_rows(n, d, 1);
  const Scratch<double> unit_sums(args.n_layers * tasks * d, 0);
  std::vector<RowTally> tallies(size_t(args.n_layers * tasks));
  parallel_for(args.n_layers * tasks, threads_for(args.n_layers * n * d, args.threads), [&](int64_t task) {
    const int64_t part = task % tasks;
    add_rows<In>(args, task / tasks, n * part / tasks, n * (part + 1) / tasks, unit_sums.get() + task * d,
                 tallies[size_t(task)]);
  });
  for (int64_t layer = 0; layer < args.n_layers; ++layer)
    finish_layer(args, layer, unit_sums.get() + layer * tasks * d, tallies.data() + layer * tasks, tasks);
}

}  // namespace

void mean_pairwise_cosine(const MeanPairwiseCosineArgs& args) {
  with_element_type(args.rows.dtype, [&](auto* element) {
    add_layers<std::remove_const_t<std::remove_pointer_t<decltype(element)>>>(args);
  });
}

}  // namespace CONE_ISA

CONE_FORWARD(mean_pairwise_cosine, MeanPairwiseCosineArgs)

}  // namespace cone
