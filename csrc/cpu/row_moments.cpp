#include "cone/parallel.h"
#include "cpu/isa.h"
#include "cpu/shared_sums.h"

namespace cone {
namespace CONE_ISA {
namespace {

// Rows sorted by group at a time: with 64 groups about 8 rows of each.
constexpr int64_t kWindowRows = 512;

// The rows of a window in the order they are visited: group by group.
class Window {
 public:
  Window(const int64_t* groups_of_rows, int64_t groups)
      : groups_of_rows_(groups_of_rows), groups_(groups), starts_(size_t(groups) + 1), order_(kWindowRows) {}

  void sort(int64_t begin, int64_t end) {
    for (int64_t& start : starts_) start = 0;
    for (int64_t i = begin; i < end; ++i)
      if (group_of(i) >= 0) ++starts_[size_t(group_of(i)) + 1];
    for (int64_t g = 0; g < groups_; ++g) starts_[size_t(g) + 1] += starts_[size_t(g)];
    size_ = starts_[size_t(groups_)];
    for (int64_t i = begin; i < end; ++i)
      if (group_of(i) >= 0) order_[size_t(starts_[size_t(group_of(i))]++)] = i;
  }

  int64_t size() const { return size_; }
  int64_t row(int64_t k) const { return order_[size_t(k)]; }
  int64_t group_of(int64_t row) const { return groups_of_rows_ ? groups_of_rows_[row] : row % groups_; }

  // How many rows from k on are of one group, at most kRowsPerFlush.
  int64_t run(int64_t k) const {
    int64_t n = 1;
    while (n < kRowsPerFlush && k + n < size_ && group_of(row(k + n)) == group_of(row(k))) ++n;
    return n;
  }

 private:
  const int64_t* groups_of_rows_;
  int64_t groups_, size_ = 0;
  std::vector<int64_t> starts_, order_;
};

// Sums by group of one task: the layer's own where it has one task, else added to them in task order.
struct GroupSums {
  double* unit_sum = nullptr;        // (G, d)
  std::vector<double> own_unit_sum;  // where several tasks share a layer
  std::vector<RowTally> tallies;
};

// Takes a run of rows of one group, whose segment number is its group.
template <Wanted kWanted>
struct FinishRun {
  int64_t d;
  GroupSums& own;
  double* sum;

  template <class T>
  void operator()(int64_t group, const RowTally& tally, const T* unit, const T* plain) const {
    add_widened(own.unit_sum + group * d, unit, d);
    if (kWanted == kAllSums) add_widened(sum, plain, d);
    own.tallies[size_t(group)].add(tally);
  }
};

template <class In, Wanted kWanted>
void add_range(const RowMomentsArgs& args, int64_t layer, int64_t begin, int64_t end, SharedSums& shared, int64_t task,
               GroupSums& own) {
  const RowView& x = args.rows;
  const In* base = static_cast<const In*>(args.layers[layer]);
  Window window(args.groups, args.sums.groups);
  const FinishRun<kWanted> finish{x.d, own, shared.sum(task)};
  RowPipeline<In, kWanted, FinishRun<kWanted>> pipeline(x.d, x.col_stride, shared.sq_sum(task),
                                                        shared.unit_sq_sum(task), finish);
  if (args.status) pipeline.write_status(args.status + layer * x.n);
  for (int64_t from = begin; from < end; from += kWindowRows) {
    window.sort(from, from + kWindowRows < end ? from + kWindowRows : end);
    for (int64_t k = 0, n; k < window.size(); k += n) {
      n = window.run(k);
      pipeline.add(
          window.group_of(window.row(k)), n, [&](int64_t i) { return window.row(k + i); },
          [&](int64_t row) { return base + row * x.row_stride; });
    }
  }
  pipeline.drain();
}

template <class In, Wanted kWanted>
void add_layers(const RowMomentsArgs& args) {
  const int64_t n = args.rows.n, d = args.rows.d, groups = args.sums.groups;
  const int64_t tasks = tasks_of_rows(n, d, groups);
  SharedSums shared(args.n_layers * tasks, d, kWanted == kAllSums);
  std::vector<GroupSums> sums(size_t(args.n_layers * tasks));
  const int threads = threads_for(args.n_layers * n * d, args.threads);
  parallel_for(args.n_layers * tasks, threads, [&](int64_t task) {
    GroupSums& own = sums[size_t(task)];
    own.tallies.resize(size_t(groups));
    own.own_unit_sum.resize(size_t(tasks > 1 ? groups * d : 0));
    own.unit_sum = tasks > 1 ? own.own_unit_sum.data() : args.sums.unit_sum + task * groups * d;
    const int64_t part = task % tasks;
    add_range<In, kWanted>(args, task / tasks, n * part / tasks, n * (part + 1) / tasks, shared, task, own);
    for (const RowTally& tally : own.tallies) shared.add_norms(task, tally);
  });
  parallel_for(args.n_layers, threads, [&](int64_t layer) {
    shared.add_to(args.sums, layer, layer * tasks, (layer + 1) * tasks);
    for (int64_t task = layer * tasks; task < (layer + 1) * tasks; ++task) {
      const GroupSums& own = sums[size_t(task)];
      for (int64_t g = 0; g < groups; ++g) add_tally(args.sums, layer * groups + g, own.tallies[size_t(g)]);
      add_widened(args.sums.unit_sum + layer * groups * d, own.own_unit_sum.data(), int64_t(own.own_unit_sum.size()));
    }
  });
}

}  // namespace

void row_moments(const RowMomentsArgs& args) {
  with_element_type(args.rows.dtype, [&](auto* element) {
    using In = std::remove_const_t<std::remove_pointer_t<decltype(element)>>;
    args.sums.unit_sq_sum ? add_layers<In, kAllSums>(args) : add_layers<In, kUnitSum>(args);
  });
}

}  // namespace CONE_ISA

CONE_FORWARD(row_moments, RowMomentsArgs)

}  // namespace cone
