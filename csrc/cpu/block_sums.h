// The inner loops that row_moments and pool_moments share: a block of rows is read once from memory for its norms and
// once more, from the cache, for the sums of its columns.
#pragma once

#include <cfloat>
#include <vector>

#include "cone/moments.h"
#include "cpu/simd.h"

namespace cone {
namespace CONE_ISA {
namespace {

constexpr int kMaxBlockRows = 64;
constexpr int kCacheLine = 64;

// Rows of a block: as many as stay in the second-level cache between the two reads.
inline int block_rows(int64_t d, int64_t element_bytes) {
  const int64_t fitting = (int64_t{192} << 10) / (d * element_bytes > 0 ? d * element_bytes : 1);
  return int(fitting < 4 ? 4 : (fitting > kMaxBlockRows ? kMaxBlockRows : fitting));
}

// Which sums of a block's columns are made.
enum Wanted { kUnitSum, kPlainSum, kAllSums };

// Where they are added; those that are not wanted are not touched.
struct ColumnSums {
  double* unit_sum;
  double* sum;
  double* sq_sum;
  double* unit_sq_sum;
};

struct RowTally {
  int64_t count = 0, n_zero = 0, n_nonfinite = 0;
  double norm_sum = 0, norm_sq_sum = 0, unit_sq = 0;
};

template <class C, class In>
C squared_norm(const In* row, int64_t d) {
  constexpr int V = kLanes<C>;
  Vec<C> a{}, b{}, c{}, e{};
  int64_t j = 0;
  for (; j + 4 * V <= d; j += 4 * V) {
    const Vec<C> w = load<C>(row + j), x = load<C>(row + j + V), y = load<C>(row + j + 2 * V),
                 z = load<C>(row + j + 3 * V);
    a += w * w;
    b += x * x;
    c += y * y;
    e += z * z;
  }
  for (; j + V <= d; j += V) {
    const Vec<C> w = load<C>(row + j);
    a += w * w;
  }
  if (j < d) {
    const Vec<C> w = load_first<C>(row + j, d - j);
    b += w * w;
  }
  return add_lanes<C>((a + b) + (c + e));
}

// K vectors of columns from j on: their sums over the rows stay in registers. kRagged: the last columns, fewer than a
// vector. What is added to Σ u² is added to `unit_sq` as well.
template <int K, class C, class In, Wanted kWanted, bool kRagged>
inline void add_columns(const In* const* rows, const C* inverse_norms, int n, const In* const* ahead, int n_ahead,
                        int64_t j, int64_t d, const ColumnSums& to, Vec<double>& unit_sq) {
  constexpr int V = kLanes<C>;
  Vec<C> unit[K] = {}, plain[K] = {}, squares[K] = {}, unit_squares[K] = {};
  for (int r = 0; r < n; ++r) {
    const In* row = rows[r] + j;
    if (r < n_ahead)
      for (int byte = 0; byte < K * V * int(sizeof(In)); byte += kCacheLine)
        __builtin_prefetch(reinterpret_cast<const char*>(ahead[r] + j) + byte, 0, 2);
    const Vec<C> scale = kWanted == kPlainSum ? Vec<C>{} : broadcast<C>(inverse_norms[r]);
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k) {
      const Vec<C> x = kRagged ? load_first<C>(row + k * V, d - j) : load<C>(row + k * V);
      if (kWanted != kUnitSum) plain[k] += x;
      if (kWanted == kPlainSum) continue;
      const Vec<C> u = x * scale;
      unit[k] += u;
      if (kWanted == kAllSums) {
        squares[k] += x * x;
        unit_squares[k] += u * u;
      }
    }
  }
  const auto flush = [&](double* sums, Vec<C> v) { kRagged ? add_first_to<C>(sums, v, d - j) : add_to(sums, v); };
#pragma GCC unroll 8
  for (int k = 0; k < K; ++k) {
    const int64_t at = j + k * V;
    if (kWanted != kPlainSum) flush(to.unit_sum + at, unit[k]);
    if (kWanted != kUnitSum) flush(to.sum + at, plain[k]);
    if (kWanted == kAllSums) {
      flush(to.sq_sum + at, squares[k]);
      flush(to.unit_sq_sum + at, unit_squares[k]);
      unit_sq += to_double_sum(unit_squares[k]);
    }
  }
}

// Returns what it adds to Σ ‖u‖² (0 unless kAllSums); inverse_norms is not read for kPlainSum.
template <class C, class In, Wanted kWanted>
double add_block(const In* const* rows, const C* inverse_norms, int n, const In* const* ahead, int n_ahead, int64_t d,
                 const ColumnSums& to) {
  constexpr int V = kLanes<C>;
  constexpr int K = kVectorBytes == 64 ? 4 : 2;  // 4 sums of K vectors fit in the registers
  Vec<double> unit_sq{};
  int64_t j = 0;
  for (; j + K * V <= d; j += K * V)
    add_columns<K, C, In, kWanted, false>(rows, inverse_norms, n, ahead, n_ahead, j, d, to, unit_sq);
  for (; j + V <= d; j += V)
    add_columns<1, C, In, kWanted, false>(rows, inverse_norms, n, ahead, n_ahead, j, d, to, unit_sq);
  if (j < d) add_columns<1, C, In, kWanted, true>(rows, inverse_norms, n, ahead, n_ahead, j, d, to, unit_sq);
  return add_lanes<double>(unit_sq);
}

// One row in float64, where float32 could not hold its squares; also says why a row is left out.
template <class In, Wanted kWanted>
Status add_row_in_double(const In* row, int64_t d, const ColumnSums& to, RowTally& tally) {
  const double norm_sq = squared_norm<double>(row, d);
  if (!(norm_sq <= DBL_MAX)) {
    ++tally.n_nonfinite;
    return kNonfinite;
  }
  if (norm_sq < DBL_MIN) {
    ++tally.n_zero;
    return kZero;
  }
  const double norm = __builtin_sqrt(norm_sq), inverse_norm = 1 / norm;
  const double unit_sq = add_block<double, In, kWanted>(&row, &inverse_norm, 1, nullptr, 0, d, to);
  ++tally.count;
  tally.norm_sum += norm;
  tally.norm_sq_sum += norm_sq;
  tally.unit_sq += kWanted == kAllSums ? unit_sq : norm_sq * inverse_norm * inverse_norm;
  return kUsed;
}

// Adds a block of at most kMaxBlockRows rows; `ahead` are the rows that come next, fetched meanwhile. Writes each row's
// status where `status` is not null and returns the bits of all.
template <class In, Wanted kWanted>
uint8_t add_rows(const In* const* rows, int n, const In* const* ahead, int n_ahead, int64_t d, const ColumnSums& to,
                 RowTally& tally, uint8_t* status) {
  using C = ComputeOf<In>;
  const In* kept[kMaxBlockRows];
  C inverse_norms[kMaxBlockRows];
  int n_kept = 0;
  uint8_t seen = 0;
  for (int r = 0; r < n; ++r) {
    const C norm_sq = squared_norm<C>(rows[r], d);
    // float32: squares neither overflow in a block's sum nor lose digits to underflow; float64: rows that are kept.
    const bool safe = std::is_same_v<C, double> ? norm_sq >= C(DBL_MIN) && norm_sq <= C(DBL_MAX)
                                                : norm_sq >= C(1e-24) && norm_sq <= C(1e30);
    Status row_status = kUsed;
    if (safe) {
      const double norm = __builtin_sqrt(double(norm_sq));
      kept[n_kept] = rows[r];
      inverse_norms[n_kept] = C(1 / norm);
      ++tally.count;
      tally.norm_sum += norm;
      tally.norm_sq_sum += double(norm_sq);
      if (kWanted != kAllSums)
        tally.unit_sq += double(norm_sq) * double(inverse_norms[n_kept]) * double(inverse_norms[n_kept]);
      ++n_kept;
    } else {
      row_status = add_row_in_double<In, kWanted>(rows[r], d, to, tally);
    }
    if (status) status[r] = row_status;
    seen |= row_status;
  }
  if (n_kept > 0) {
    const double unit_sq = add_block<C, In, kWanted>(kept, inverse_norms, n_kept, ahead, n_ahead, d, to);
    if (kWanted == kAllSums) tally.unit_sq += unit_sq;
  }
  return seen;
}

// Pointers to the rows of a block; rows whose columns are strided are first copied side by side.
template <class In>
class RowGatherer {
 public:
  RowGatherer(int64_t d, int64_t col_stride, int rows)
      : d_(d), col_stride_(col_stride), copies_(col_stride == 1 ? 0 : size_t(d) * rows) {}

  // row_at(r) is the first element of row r.
  template <class RowAt>
  void take(const RowAt& row_at, int n, const In** rows) {
    for (int r = 0; r < n; ++r) {
      const In* row = row_at(r);
      if (col_stride_ != 1) {
        In* copy = copies_.data() + r * d_;
        for (int64_t j = 0; j < d_; ++j) copy[j] = row[j * col_stride_];
        row = copy;
      }
      rows[r] = row;
    }
  }

 private:
  int64_t d_, col_stride_;
  std::vector<In> copies_;
};

// Tasks a layer is cut into: task p takes the groups g ≡ p (mod tasks). A power of two that depends on the shape alone.
inline int64_t tasks_of(int64_t elements, int64_t groups) {
  int64_t tasks = 1;
  while (tasks * 2 <= groups && tasks * (int64_t{1} << 19) < elements) tasks *= 2;
  return tasks;
}

// The sums that the tasks of a layer share; each task has its own and they are added in task order at the end.
class SharedSums {
 public:
  SharedSums(int64_t tasks, int64_t d, bool all)
      : d_(all ? d : 0), columns_(size_t(tasks * 3 * d_)), norms_(size_t(tasks * 2)) {}

  double* sum(int64_t task) { return columns_.data() + task * 3 * d_; }
  double* sq_sum(int64_t task) { return sum(task) + d_; }
  double* unit_sq_sum(int64_t task) { return sum(task) + 2 * d_; }

  void set_norms(int64_t task, const RowTally& tally) {
    norms_[task * 2] = tally.norm_sum;
    norms_[task * 2 + 1] = tally.norm_sq_sum;
  }

  // Adds tasks [begin, end), which belong to one layer.
  void add_to(const MomentSums& sums, int64_t layer, int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      for (int64_t j = 0; j < d_; ++j) {
        sums.sum[layer * d_ + j] += sum(task)[j];
        sums.sq_sum[layer * d_ + j] += sq_sum(task)[j];
        sums.unit_sq_sum[layer * d_ + j] += unit_sq_sum(task)[j];
      }
      if (d_ > 0) {
        sums.norm_sum[layer] += norms_[task * 2];
        sums.norm_sq_sum[layer] += norms_[task * 2 + 1];
      }
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
