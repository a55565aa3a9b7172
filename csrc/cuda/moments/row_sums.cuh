// The inner loop that row_moments and pool_moments share. A block walks the rows of its part, each thread keeps eight
// columns: sums in float32 in registers over some 32 rows, then in float64 in shared memory. While a block adds a batch
// of rows, those of other blocks on its multiprocessor are on their way: 128 registers let four blocks of 128 threads
// in.
#pragma once

#include <cfloat>

#include "cuda/common/layers.cuh"
#include "cuda/moments/row_walk.cuh"

namespace cone {
namespace cuda {

// Leaves each thread 128 registers, and 255 where the addresses of single elements take registers too.
constexpr int most_threads(bool vector) { return vector ? 512 : 256; }
constexpr int kRowsPerFlush = 32;
// A batch is 128 bytes a thread: eight rows of 16-bit types, four of float32.
template <class In>
constexpr int kBatchRows = 128 / int(kColumns * sizeof(In));

// float64 sums of each column that a block keeps. A use of RowSums takes the first few.
enum Field { kGroupUnit, kSum, kSqSum, kUnitSqSum, kRunUnit, kRunSum };
constexpr int kCosineFields = 1, kRowFields = 4, kTokenFields = 6;

// What the rows of a group add up to besides columns; only the first warp has it. Norms are added by one lane for each
// row of a batch, the rest by thread 0.
struct GroupTally {
  static constexpr int kMostRows = 8;
  double norm_sum[kMostRows], norm_sq_sum[kMostRows], unit_sq[kMostRows];
  double sentence_size_sq_sum;
  int64_t used, n_zero, n_nonfinite, n_sentences;
};

// The shared memory of a block: float64 sums of columns and one more of each thread, a tally, and what the sums over
// the block need for either batch size.
__host__ __device__ constexpr int column_bytes(int fields, int threads) {
  return (fields * kColumns + 1) * threads * int(sizeof(double));
}
inline int moment_shared_bytes(int fields, int threads) {
  const int warps = threads / kWarpSize;
  return column_bytes(fields, threads) + int(sizeof(GroupTally)) + BlockSums<1, double>::bytes(warps) +
         BlockSums<GroupTally::kMostRows, float>::bytes(warps);
}

template <class In>
struct RowSource {
  const In* base;          // first element of the layer
  const double* norms_sq;  // of the layer's rows, or null: to be taken from the rows
  int64_t col_stride;
};

template <class In>
struct Batch {
  BatchPlace place;
  Octet<In> rows[kBatchRows<In>];
};

template <class In, bool kVector, int kFields>
class RowSums {
 public:
  static constexpr int kRows = kBatchRows<In>, kLanesPerRow = kWarpSize / kRows;
  static constexpr bool kAll = kFields >= kRowFields;
  static constexpr Field kUnitTo = kFields == kTokenFields ? kRunUnit : kGroupUnit;
  static constexpr Field kSumTo = kFields == kTokenFields ? kRunSum : kSum;
  static constexpr int kOwnTotals = kFields * kColumns + 1;  // odd, so that a warp's accesses share no bank
  using Norms = BlockSums<kRows, float>;
  using Total = BlockSums<1, double>;

  const OwnColumns<kVector> columns;
  float unit[kColumns] = {}, sum[kColumns] = {};  // of the run since `widen_run`
  bool run_is_wide = false;                       // whether some of the run is in float64
  int run_used = 0;
  uint8_t run_seen = kUsed;  // the status bits of the run's rows

  __device__ __forceinline__ RowSums(const OwnColumns<kVector>& columns, unsigned char* memory)
      : columns(columns),
        wide_(reinterpret_cast<double*>(memory) + int(threadIdx.x) * kOwnTotals),
        tally_(reinterpret_cast<GroupTally*>(memory + column_bytes(kFields, int(blockDim.x)))),
        block_total_(after_tally(memory)),
        block_norms_(after_tally(memory) + Total::bytes(warps_of_block())) {
    for (int i = 0; i < kOwnTotals; ++i) wide_[i] = 0;
    clear_tally();
  }

  // Only this thread reads and writes the float64 sums of its columns.
  __device__ __forceinline__ double& wide(Field field, int k) { return wide_[field * kColumns + k]; }

  // One more sum of this thread.
  __device__ __forceinline__ double& own_total() { return wide_[kFields * kColumns]; }

  // For thread 0.
  __device__ __forceinline__ GroupTally& tally() { return *tally_; }

  __device__ __forceinline__ double block_total(double value) {
    double values[1] = {value};
    return block_total_(values);
  }

  // Adds the rows of a batch; left_out(row, status) is called for each that is left out.
  template <class Walk, class LeftOut>
  __device__ __forceinline__ void add(Batch<In>& batch, const Walk& walk, const RowSource<In>& source,
                                      const LeftOut& left_out) {
    const int own = lane_of_thread() / kLanesPerRow;  // the row whose norm this lane has
    const bool there = own < batch.place.n;
    float norm_sq = 0;
    if (source.norms_sq == nullptr) {
      norm_sq = norms_sq(batch.rows);
    } else if (there) {
      norm_sq = float(source.norms_sq[walk.number(batch.place.run, walk.row_of(batch.place, own))]);
    }
    const bool safe = norm_sq >= kLeastSafeNormSq && norm_sq <= kMostSafeNormSq;  // NaN is not
    const unsigned unsafe = __ballot_sync(kAllLanes, there && !safe);
    float inverse = 0;
    if (there && safe) {
      const float norm = sqrtf(norm_sq);
      inverse = 1 / norm;
      if (has_tally()) add_norm(norm, norm_sq, inverse);
    }
    add_columns(batch.rows, inverse, unsafe);
    run_used += batch.place.n;
    rows_in_run_ += batch.place.n;
    rows_in_squares_ += batch.place.n;
    if (rows_in_run_ >= kRowsPerFlush || unsafe != 0) widen_run();
    if (rows_in_squares_ >= kRowsPerFlush || unsafe != 0) widen_squares();
    // Rows that take float64 find no float32 sums in registers, which they need for themselves.
    for (unsigned left = unsafe; left != 0; left &= left - 1) {
      const int lane = __ffs(int(left)) - 1;
      if (lane % kLanesPerRow != 0) continue;
      add_unsafe(walk, batch.place, walk.row_of(batch.place, lane / kLanesPerRow), source, left_out);
    }
  }

  // Moves the run's sums to float64.
  __device__ __forceinline__ void widen_run() {
#pragma unroll
    for (int k = 0; k < kColumns; ++k) {
      wide(kUnitTo, k) += double(unit[k]);
      if constexpr (kAll) wide(kSumTo, k) += double(sum[k]);
    }
    run_is_wide = true;
    clear_run();
  }

  // Starts a new run.
  __device__ __forceinline__ void clear_run() {
#pragma unroll
    for (int k = 0; k < kColumns; ++k) unit[k] = sum[k] = 0;
    rows_in_run_ = 0;
  }

  __device__ __forceinline__ void widen_squares() {
    if constexpr (kAll) {
#pragma unroll
      for (int k = 0; k < kColumns; ++k) {
        wide(kSqSum, k) += double(squares_[k]);
        wide(kUnitSqSum, k) += double(unit_squares_[k]);
        squares_[k] = unit_squares_[k] = 0;
      }
    }
    rows_in_squares_ = 0;
  }

  // Adds the group's Σ u of these columns to `to` (d), or writes it there, and starts a new group.
  __device__ __forceinline__ void take_group_units(double* to, bool add) {
#pragma unroll
    for (int k = 0; k < kColumns; ++k) {
      if (columns.has(k)) to[columns[k]] = wide(kGroupUnit, k) + (add ? to[columns[k]] : 0.0);
      wide(kGroupUnit, k) = 0;
    }
  }

  // Writes what the rows of the group add up to, and starts a new group.
  __device__ __forceinline__ void take_tally(double* scalars, bool write) {
    if (warp_of_thread() > 0) return;
    __syncwarp();
    if (threadIdx.x == 0 && write) {
      const GroupTally& all = tally();
      scalars[kCount] = double(all.used);
      scalars[kZeroRows] = double(all.n_zero);
      scalars[kNonfiniteRows] = double(all.n_nonfinite);
      scalars[kSentences] = double(all.n_sentences);
      scalars[kSentenceSizeSqSum] = all.sentence_size_sq_sum;
      double norms = 0, norms_sq = 0, units = 0;
      for (int row = 0; row < kRows; ++row) {
        norms += all.norm_sum[row];
        norms_sq += all.norm_sq_sum[row];
        units += all.unit_sq[row];
      }
      scalars[kUnitSqTotal] = units;
      scalars[kNormSum] = norms;
      scalars[kNormSqSum] = norms_sq;
    }
    __syncwarp();
    clear_tally();
  }

 private:
  // ‖x‖² of row lane / kLanesPerRow, bitwise the same in every warp.
  __device__ __forceinline__ float norms_sq(const Octet<In> (&rows)[kRows]) {
    float squares[kRows];
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
      squares[t] = 0;
#pragma unroll
      for (int k = 0; k < kColumns; ++k) squares[t] = fmaf(rows[t][k], rows[t][k], squares[t]);
    }
    return block_norms_(squares);
  }

  static __device__ __forceinline__ unsigned char* after_tally(unsigned char* memory) {
    return memory + column_bytes(kFields, int(blockDim.x)) + sizeof(GroupTally);
  }

  // Whether this lane has a row's place in the tally; that of row lane / kLanesPerRow.
  static __device__ __forceinline__ bool has_tally() {
    return warp_of_thread() == 0 && lane_of_thread() % kLanesPerRow == 0;
  }

  __device__ __forceinline__ void clear_tally() {
    GroupTally& all = tally();
    const int row = lane_of_thread() / kLanesPerRow;
    if (has_tally()) all.norm_sum[row] = all.norm_sq_sum[row] = all.unit_sq[row] = 0;
    if (threadIdx.x > 0) return;
    all.sentence_size_sq_sum = 0;
    all.used = all.n_zero = all.n_nonfinite = all.n_sentences = 0;
  }

  __device__ __forceinline__ void add_norm(double norm, double norm_sq, double inverse) {
    GroupTally& all = tally();
    const int row = lane_of_thread() / kLanesPerRow;
    all.norm_sum[row] += norm;
    all.norm_sq_sum[row] += norm_sq;
    all.unit_sq[row] += norm_sq * inverse * inverse;
  }

  __device__ __forceinline__ void add_columns(Octet<In> (&rows)[kRows], float inverse, unsigned unsafe) {
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
      const float scale = __shfl_sync(kAllLanes, inverse, t * kLanesPerRow);
      if (unsafe >> (t * kLanesPerRow) & 1) rows[t] = {};
#pragma unroll
      for (int k = 0; k < kColumns; ++k) {
        const float x = rows[t][k], u = x * scale;
        unit[k] += u;
        if constexpr (kAll) {
          sum[k] += x;
          squares_[k] = fmaf(x, x, squares_[k]);
          unit_squares_[k] = fmaf(u, u, unit_squares_[k]);
        }
      }
    }
  }

  // A row whose squares do not fit float32, wholly in float64; also says why it is left out.
  template <class Walk, class LeftOut>
  __device__ __forceinline__ void add_unsafe(const Walk& walk, const BatchPlace& place, int row,
                                             const RowSource<In>& source, const LeftOut& left_out) {
    const Octet<In> x = load_octet(source.base + walk.offset(place.run, row), columns, source.col_stride);
    double norm_sq = 0;
    if (source.norms_sq == nullptr) {
#pragma unroll
      for (int k = 0; k < kColumns; ++k) norm_sq += double(x[k]) * double(x[k]);
      norm_sq = block_total(norm_sq);
    } else {
      norm_sq = source.norms_sq[walk.number(place.run, row)];
    }
    const Status status = !(norm_sq <= DBL_MAX) ? kNonfinite : norm_sq < DBL_MIN ? kZero : kUsed;
    if (status != kUsed) {
      --run_used;
      if (threadIdx.x == 0) {
        tally().n_zero += status == kZero;
        tally().n_nonfinite += status == kNonfinite;
      }
      run_seen |= status;
      left_out(row, status);
      return;
    }
    const double norm = sqrt(norm_sq), inverse = 1 / norm;
    if (threadIdx.x == 0) add_norm(norm, norm_sq, inverse);
#pragma unroll
    for (int k = 0; k < kColumns; ++k) {
      const double value = double(x[k]), u = value * inverse;
      wide(kUnitTo, k) += u;
      if constexpr (kAll) {
        wide(kSumTo, k) += value;
        wide(kSqSum, k) += value * value;
        wide(kUnitSqSum, k) += u * u;
      }
    }
    run_is_wide = true;
  }

  double* const wide_;  // (kFields, kColumns), and one more
  GroupTally* const tally_;
  Total block_total_;
  Norms block_norms_;
  float squares_[kColumns] = {}, unit_squares_[kColumns] = {};
  int rows_in_run_ = 0, rows_in_squares_ = 0;
};

// Adds all rows of a walk. op.end_run(run) and op.end_group(group) are called when their last row has been added,
// op.left_out(run, row, status) for rows left out and op.empty(run) for runs without a row.
template <class In, bool kVector, int kFields, class Walk, class Op>
__device__ __forceinline__ void add_rows(Walk& walk, const RowSource<In>& source, RowSums<In, kVector, kFields>& sums,
                                         Op& op) {
  constexpr int kRows = kBatchRows<In>;
  Batch<In> batch;
  int group = -1;
  while (walk.next(batch.place, [&](int run) { op.empty(run); })) {
    const BatchPlace& place = batch.place;
    if (place.group != group) {
      if (group >= 0) op.end_group(group);
      group = place.group;
    }
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
      const int row = walk.row(place, t);
      batch.rows[t] = {};
      if (t < place.n)
        batch.rows[t] = load_octet(source.base + walk.offset(place.run, row), sums.columns, source.col_stride);
    }
    sums.add(batch, walk, source, [&](int row, Status status) { op.left_out(place.run, row, status); });
    if (place.ends_run) op.end_run(place.run);
  }
  if (group >= 0) op.end_group(group);
}

}  // namespace cuda
}  // namespace cone
