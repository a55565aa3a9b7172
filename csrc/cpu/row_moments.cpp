#include "cone/parallel.h"
#include "cpu/block_sums.h"

namespace cone {
namespace CONE_ISA {
namespace {

// Rows sorted by group at a time. With 64 groups a group then has about 8 rows: enough to add them in registers, and
// few enough that rows 64 apart, whose addresses differ by a multiple of a power of two, share the ways of a cache set.
constexpr int64_t kWindowRows = 512;

// A task is a range of rows of one layer and has sums of its own, which must stay small beside the rows.
int64_t tasks_of_rows(int64_t n, int64_t d, int64_t groups) {
  int64_t rows_per_task = (int64_t{1} << 17) / d;
  if (rows_per_task < 16 * groups) rows_per_task = 16 * groups;
  const int64_t tasks = n / rows_per_task;
  return tasks < 1 ? 1 : (tasks > 64 ? 64 : tasks);
}

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

  // Rows from k on that are of the same group, at most `limit`.
  int run(int64_t k, int limit) const {
    int n = 1;
    while (n < limit && k + n < size_ && group_of(row(k + n)) == group_of(row(k))) ++n;
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

template <class In, Wanted kWanted>
void add_range(const RowMomentsArgs& args, int64_t layer, int64_t begin, int64_t end, SharedSums& shared, int64_t task,
               GroupSums& own) {
  const RowView& x = args.rows;
  const int block = block_rows(x.d, sizeof(In));
  const In* base = static_cast<const In*>(args.layers[layer]);
  Window window(args.groups, args.sums.groups);
  RowGatherer<In> gatherer(x.d, x.col_stride, block);
  const In *rows[kMaxBlockRows], *ahead[kMaxBlockRows];
  uint8_t status[kMaxBlockRows];
  for (int64_t from = begin; from < end; from += kWindowRows) {
    window.sort(from, from + kWindowRows < end ? from + kWindowRows : end);
    for (int64_t k = 0; k < window.size();) {
      const int n = window.run(k, block);
      const int64_t group = window.group_of(window.row(k)), left = window.size() - k - n;
      const int n_ahead = x.col_stride != 1 ? 0 : int(left < n ? left : n);
      gatherer.take([&](int r) { return base + window.row(k + r) * x.row_stride; }, n, rows);
      for (int r = 0; r < n_ahead; ++r) ahead[r] = base + window.row(k + n + r) * x.row_stride;
      const ColumnSums to = {own.unit_sum + group * x.d, shared.sum(task), shared.sq_sum(task),
                             shared.unit_sq_sum(task)};
      add_rows<In, kWanted>(rows, n, ahead, n_ahead, x.d, to, own.tallies[size_t(group)], status);
      if (args.status)
        for (int r = 0; r < n; ++r) args.status[layer * x.n + window.row(k + r)] = status[r];
      k += n;
    }
  }
}

template <class In, Wanted kWanted>
void add_layers(const RowMomentsArgs& args) {
  const int64_t n = args.rows.n, d = args.rows.d, groups = args.sums.groups;
  const int64_t tasks = tasks_of_rows(n, d, groups);
  SharedSums shared(args.n_layers * tasks, d, kWanted == kAllSums);
  std::vector<GroupSums> sums(size_t(args.n_layers * tasks));
  parallel_for(args.n_layers * tasks, args.threads, [&](int64_t task) {
    GroupSums& own = sums[size_t(task)];
    own.tallies.resize(size_t(groups));
    own.own_unit_sum.resize(size_t(tasks > 1 ? groups * d : 0));
    own.unit_sum = tasks > 1 ? own.own_unit_sum.data() : args.sums.unit_sum + task * groups * d;
    const int64_t part = task % tasks;
    add_range<In, kWanted>(args, task / tasks, n * part / tasks, n * (part + 1) / tasks, shared, task, own);
    RowTally all;
    for (const RowTally& tally : own.tallies) {
      all.norm_sum += tally.norm_sum;
      all.norm_sq_sum += tally.norm_sq_sum;
    }
    shared.set_norms(task, all);
  });
  parallel_for(args.n_layers, args.threads, [&](int64_t layer) {
    shared.add_to(args.sums, layer, layer * tasks, (layer + 1) * tasks);
    for (int64_t task = layer * tasks; task < (layer + 1) * tasks; ++task) {
      for (int64_t g = 0; g < groups; ++g)
        add_tally(args.sums, layer * groups + g, sums[size_t(task)].tallies[size_t(g)]);
      double* unit_sum = args.sums.unit_sum + layer * groups * d;
      const std::vector<double>& own = sums[size_t(task)].own_unit_sum;
      for (size_t j = 0; j < own.size(); ++j) unit_sum[j] += own[j];
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
}  // namespace cone
