// The inner loop that row_moments and pool_moments share. A block walks the rows of its part, each thread keeps eight
// columns: sums in float32 in registers over at most 32 rows and a batch, then in float64 in shared memory. While one
// batch of rows is added, the next is on its way from memory.
#pragma once

#include <cfloat>

#include "cuda/layers.cuh"
#include "cuda/row_walk.cuh"

namespace cone {
namespace cuda {

constexpr int kMostThreads = 512;  // leaves each thread 128 registers
constexpr int kRowsPerFlush = 32;
// A batch is 64 bytes a thread: four rows of 16-bit types, two of float32.
template <class In>
constexpr int kBatchRows = 64 / int(kColumns * sizeof(In));

// float64 sums of each column that a block keeps. A use of RowSums takes the first few.
enum Field { kGroupUnit, kSum, kSqSum, kUnitSqSum, kRunUnit, kRunSum };
constexpr int kCosineFields = 1, kRowFields = 4, kTokenFields = 6;

// The shared memory of a block: float64 sums of columns, then what the sums over the block need, of either batch size.
inline int moment_shared_bytes(int fields, int threads) {
  const int warps = threads / kWarpSize;
  return fields * kColumns * threads * int(sizeof(double)) + BlockSums<1, double>::bytes(warps) +
         BlockSums<4, float>::bytes(warps);
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
  using Norms = BlockSums<kRows, float>;
  using Total = BlockSums<1, double>;

  const OwnColumns<kVector> columns;
  float unit[kColumns] = {}, sum[kColumns] = {};  // of the run since `widen_run`
  bool run_is_wide = false;                       // whether some of the run is in float64
  int64_t run_used = 0;
  uint8_t run_seen = kUsed;  // the status bits of the run's rows

  __device__ __forceinline__ RowSums(const OwnColumns<kVector>& columns, unsigned char* memory)
      : columns(columns),
        wide_(reinterpret_cast<double*>(memory)),
        block_total_(memory + kFields * kColumns * int(blockDim.x * sizeof(double))),
        block_norms_(memory + kFields * kColumns * int(blockDim.x * sizeof(double)) + Total::bytes(warps_of_block())) {
    for (int i = 0; i < kFields * kColumns; ++i) wide_[i * int(blockDim.x) + int(threadIdx.x)] = 0;
  }

  // Only this thread reads and writes the float64 sums of its columns.
  __device__ __forceinline__ double& wide(Field field, int k) {
    return wide_[(field * kColumns + k) * int(blockDim.x) + int(threadIdx.x)];
  }

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
      norm_sq = float(source.norms_sq[walk.number(batch.place, walk.row_of(batch.place, own))]);
    }
    // Squares of such a row neither overflow in a sum of rows nor lose digits to underflow. NaN is not safe.
    const bool safe = norm_sq >= 0x1p-80f && norm_sq <= 0x1p80f;
    const unsigned unsafe = __ballot_sync(kAllLanes, there && !safe);
    float inverse = 0;
    if (there && safe) {
      const float norm = sqrtf(norm_sq);
      inverse = 1 / norm;
      add_norm(norm, norm_sq, inverse);
    }
    add_columns(batch.rows, inverse, unsafe);
    run_used += batch.place.n;
    for (unsigned left = unsafe; left != 0; left &= left - 1) {
      const int lane = __ffs(int(left)) - 1;
      if (lane % kLanesPerRow != 0) continue;
      add_unsafe(walk, batch.place, walk.row_of(batch.place, lane / kLanesPerRow), source, left_out);
    }
    rows_in_run_ += batch.place.n;
    rows_in_squares_ += batch.place.n;
    if (rows_in_run_ >= kRowsPerFlush) widen_run();
    if (rows_in_squares_ >= kRowsPerFlush) widen_squares();
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

  // Writes what the rows of the group add up to, from kCount to kNormSqSum, and starts a new group.
  __device__ __forceinline__ void take_scalars(double* scalars, int64_t used) {
    const double norms = sum_of_rows(norm_sum_), norms_sq = sum_of_rows(norm_sq_sum_), units = sum_of_rows(unit_sq_);
    if (threadIdx.x == 0) {
      scalars[kCount] = double(used);
      scalars[kZeroRows] = double(n_zero_);
      scalars[kNonfiniteRows] = double(n_nonfinite_);
      scalars[kUnitSqTotal] = units;
      scalars[kNormSum] = norms;
      scalars[kNormSqSum] = norms_sq;
    }
    norm_sum_ = norm_sq_sum_ = unit_sq_ = 0;
    n_zero_ = n_nonfinite_ = 0;
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

  __device__ __forceinline__ void add_norm(double norm, double norm_sq, double inverse) {
    norm_sum_ += norm;
    norm_sq_sum_ += norm_sq;
    unit_sq_ += norm_sq * inverse * inverse;
  }

  __device__ __forceinline__ double sum_of_rows(double of_lane) const {
#pragma unroll
    for (int bit = kLanesPerRow; bit < kWarpSize; bit *= 2) of_lane += __shfl_xor_sync(kAllLanes, of_lane, bit);
    return of_lane;
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
  __device__ __forceinline__ void add_unsafe(const Walk& walk, const BatchPlace& place, int64_t row,
                                             const RowSource<In>& source, const LeftOut& left_out) {
    const Octet<In> x = load_octet(source.base + walk.offset(place, row), columns, source.col_stride);
    double norm_sq = 0;
    if (source.norms_sq == nullptr) {
#pragma unroll
      for (int k = 0; k < kColumns; ++k) norm_sq += double(x[k]) * double(x[k]);
      norm_sq = block_total(norm_sq);
    } else {
      norm_sq = source.norms_sq[walk.number(place, row)];
    }
    const Status status = !(norm_sq <= DBL_MAX) ? kNonfinite : norm_sq < DBL_MIN ? kZero : kUsed;
    if (status != kUsed) {
      --run_used;
      n_zero_ += status == kZero;
      n_nonfinite_ += status == kNonfinite;
      run_seen |= status;
      left_out(row, status);
      return;
    }
    const double norm = sqrt(norm_sq), inverse = 1 / norm;
    if (lane_of_thread() < kLanesPerRow) add_norm(norm, norm_sq, inverse);
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

  double* const wide_;  // (kFields, kColumns, blockDim.x)
  Total block_total_;
  Norms block_norms_;
  float squares_[kColumns] = {}, unit_squares_[kColumns] = {};
  double norm_sum_ = 0, norm_sq_sum_ = 0, unit_sq_ = 0;  // of every kRows-th row, the same in kLanesPerRow lanes
  int64_t n_zero_ = 0, n_nonfinite_ = 0;
  int rows_in_run_ = 0, rows_in_squares_ = 0;
};

// Adds all rows of a walk. op.end_run(run) and op.end_group(group) are called when their last row has been added,
// op.left_out(run, row, status) for rows left out and op.empty(run) for runs without a row.
template <class In, bool kVector, int kFields, class Walk, class Op>
__device__ __forceinline__ void add_rows(Walk& walk, const RowSource<In>& source, RowSums<In, kVector, kFields>& sums,
                                         Op& op) {
  constexpr int kRows = kBatchRows<In>;
  Batch<In> now, next;
  const auto fetch = [&](Batch<In>& batch) {
    if (!walk.next(batch.place, [&](int64_t run) { op.empty(run); })) return false;
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
      const int64_t row = walk.row(t);
      batch.rows[t] = {};
      if (t < batch.place.n)
        batch.rows[t] = load_octet(source.base + walk.offset(batch.place, row), sums.columns, source.col_stride);
    }
    return true;
  };
  bool more = fetch(now);
  while (more) {
    more = fetch(next);
    const BatchPlace place = now.place;
    sums.add(now, walk, source, [&](int64_t row, Status status) { op.left_out(place.run, row, status); });
    if (!more || next.place.run != place.run || next.place.group != place.group) op.end_run(place.run);
    if (!more || next.place.group != place.group) op.end_group(place.group);
    now = next;
  }
}

}  // namespace cuda
}  // namespace cone
