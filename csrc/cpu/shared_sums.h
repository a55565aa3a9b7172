// How a layer's rows are cut into tasks, and the sums that the tasks share: each task has its own, and they are added
// in task order at the end.
#pragma once

#include <vector>

#include "cone/moments.h"
#include "cpu/row_pipeline.h"

namespace cone {
namespace CONE_ISA {
namespace {

// A task is a range of rows of one layer and has sums of its own, which must stay small compared with the rows.
inline int64_t tasks_of_rows(int64_t n, int64_t d, int64_t groups) {
  int64_t rows_per_task = (int64_t{1} << 17) / d;
  if (rows_per_task < 16 * groups) rows_per_task = 16 * groups;
  const int64_t tasks = n / rows_per_task;
  return tasks < 1 ? 1 : (tasks > 64 ? 64 : tasks);
}

class SharedSums {
 public:
  SharedSums(int64_t tasks, int64_t d, bool all)
      : d_(all ? d : 0), columns_(size_t(tasks * 3 * d_)), norms_(size_t(tasks * 2)) {}

  double* sum(int64_t task) { return columns_.data() + task * 3 * d_; }
  double* sq_sum(int64_t task) { return sum(task) + d_; }
  double* unit_sq_sum(int64_t task) { return sum(task) + 2 * d_; }

  void add_norms(int64_t task, const RowTally& tally) {
    norms_[size_t(task * 2)] += tally.norm_sum;
    norms_[size_t(task * 2 + 1)] += tally.norm_sq_sum;
  }

  // Adds tasks [begin, end), which belong to one layer.
  void add_to(const MomentSums& sums, int64_t layer, int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end && d_ > 0; ++task) {
      add_widened(sums.sum + layer * d_, sum(task), d_);
      add_widened(sums.sq_sum + layer * d_, sq_sum(task), d_);
      add_widened(sums.unit_sq_sum + layer * d_, unit_sq_sum(task), d_);
      sums.norm_sum[layer] += norms_[size_t(task * 2)];
      sums.norm_sq_sum[layer] += norms_[size_t(task * 2 + 1)];
    }
  }

 private:
  int64_t d_;
  std::vector<double> columns_, norms_;
};

inline void add_tally(const MomentSums& sums, int64_t at, const RowTally& tally) {
  sums.count[at] += tally.count;
  sums.n_zero[at] += tally.n_zero;
  sums.n_nonfinite[at] += tally.n_nonfinite;
  sums.unit_sq_total[at] += tally.unit_sq;
}

}  // namespace
}  // namespace CONE_ISA
}  // namespace cone
