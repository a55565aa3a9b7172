// The inner loop that row_moments and pool_moments share. Rows go through in chunks of two, in three stages at once:
// while the sums of one chunk are taken, which needs its norms, the norms of the next are, and the one after that is
// fetched. So reading from memory and computing overlap, and a row's second read finds it in the first-level cache.
#pragma once

#include <cfloat>
#include <cmath>
#include <vector>

#include "cone/moments.h"
#include "cpu/row_access.h"
#include "cpu/scratch.h"

namespace cone {
namespace CONE_ISA {
namespace {

constexpr int kChunkRows = 2;      // two chunks and the sums stay in the first-level cache at d = 1024
constexpr int kStages = 6;         // chunks on their way, so that what ends a segment does not stall the memory
constexpr int kRowsPerFlush = 32;  // rows added in the compute type before they are added to float64
constexpr int kCacheLine = 64;

// Which sums of the columns are made.
enum Wanted { kUnitSum, kAllSums };

struct RowTally {
  int64_t count = 0, n_zero = 0, n_nonfinite = 0;
  double norm_sum = 0, norm_sq_sum = 0, unit_sq = 0, least_norm = INFINITY;
  uint8_t seen = 0;  // the status bits of all rows

  void add(const RowTally& other) {
    count += other.count;
    n_zero += other.n_zero;
    n_nonfinite += other.n_nonfinite;
    norm_sum += other.norm_sum;
    norm_sq_sum += other.norm_sq_sum;
    unit_sq += other.unit_sq;
    if (other.least_norm < least_norm) least_norm = other.least_norm;
    seen |= other.seen;
  }
};

// Running sums of the columns in the compute type, one after the other.
template <class C>
struct Columns {
  C* unit;
  C* plain;
  C* squares;
  C* unit_squares;
};

// One vector of columns from j on: adds the rows of a chunk to the sums. kRagged: the last columns, fewer than a
// vector.
template <class C, class In, Wanted kWanted, bool kRagged>
inline void add_columns(const In* const* rows, const Vec<C>* scales, int64_t j, int64_t d, const Columns<C>& sums) {
  Vec<C> unit{}, plain{}, squares{}, unit_squares{};
#pragma GCC unroll 8
  for (int r = 0; r < kChunkRows; ++r) {
    const Vec<C> x = kRagged ? load_first<C>(rows[r] + j, d - j) : load<C>(rows[r] + j);
    const Vec<C> u = x * scales[r];
    unit += u;
    if (kWanted == kAllSums) {
      plain += x;
      squares += x * x;
      unit_squares += u * u;
    }
  }
  add_in_place(sums.unit + j, unit);
  if (kWanted == kAllSums) {
    add_in_place(sums.plain + j, plain);
    add_in_place(sums.squares + j, squares);
    add_in_place(sums.unit_squares + j, unit_squares);
  }
}

// Adds the columns of a chunk to the sums, takes the squared norms of the next, and fetches the one ahead. The next
// chunk is what comes from memory, and memory is fastest in order: so kChunkRows vectors of one of its rows go with
// each vector of columns.
template <class C, class In, Wanted kWanted>
void sweep(const In* const* rows, const C* inverse_norms, const In* const* next, const In* const* ahead, C* norm_sq,
           int64_t d, const Columns<C>& sums) {
  constexpr int V = kLanes<C>, kStep = kChunkRows * V;
  const int64_t whole = d / kStep * V;  // columns added while one row of the next chunk passes
  const In* now[kChunkRows];
  Vec<C> scales[kChunkRows], ragged[kChunkRows] = {};
#pragma GCC unroll 8
  for (int r = 0; r < kChunkRows; ++r) {
    now[r] = rows[r];
    scales[r] = broadcast<C>(inverse_norms[r]);
  }
  for (int r = 0; r < kChunkRows; ++r) {
    const In *from = next[r], *fetched = ahead[r];
    Vec<C> squares[kChunkRows] = {};
    for (int64_t i = 0; i < whole; i += V) {
#pragma GCC unroll 8
      for (int k = 0; k < kChunkRows; ++k) {
        const Vec<C> x = load<C>(from + kChunkRows * i + k * V);
        squares[k] += x * x;
      }
      // Reading norms in order is what the processor prefetches well by itself, unless the sums fill the cache.
      if (kWanted == kAllSums)
        for (int byte = 0; byte < kStep * int(sizeof(In)); byte += kCacheLine)
          __builtin_prefetch(reinterpret_cast<const char*>(fetched + kChunkRows * i) + byte, 0, 2);
      add_columns<C, In, kWanted, false>(now, scales, r * whole + i, d, sums);
    }
    Vec<C> total = squares[0];
    for (int k = 1; k < kChunkRows; ++k) total += squares[k];
    norm_sq[r] = add_lanes<C>(total);
  }
  // What whole steps leave over.
  int64_t j = kChunkRows * whole;
  for (; j + V <= d; j += V) {
    for (int r = 0; r < kChunkRows; ++r) {
      const Vec<C> x = load<C>(next[r] + j);
      ragged[r] += x * x;
    }
    add_columns<C, In, kWanted, false>(now, scales, j, d, sums);
  }
  if (j < d) {
    for (int r = 0; r < kChunkRows; ++r) {
      const Vec<C> x = load_first<C>(next[r] + j, d - j);
      ragged[r] += x * x;
    }
    add_columns<C, In, kWanted, true>(now, scales, j, d, sums);
  }
  for (int r = 0; r < kChunkRows; ++r) norm_sq[r] += add_lanes<C>(ragged[r]);
}

// Rows pass through segment by segment (a sentence, or rows of one group). When the last row of a segment has been
// added, finish(segment, tally, unit_sum, sum) is called, with sums in the compute type, or in double where the segment
// was long or had rows that are computed in double. Squares are summed over all segments, into `sq_sum` and
// `unit_sq_sum`.
template <class In, Wanted kWanted, class Finish>
class RowPipeline {
  using C = ComputeOf<In>;

 public:
  RowPipeline(int64_t d, int64_t col_stride, double* sq_sum, double* unit_sq_sum, const Finish& finish)
      : d_(d),
        col_stride_(col_stride),
        spacing_((d + kLanes<C> - 1) / kLanes<C> * kLanes<C> + kSkew),
        sq_sum_(sq_sum),
        unit_sq_sum_(unit_sq_sum),
        finish_(finish),
        no_row_(size_t(d)),
        copies_(col_stride == 1 ? 0 : size_t(kStages * kChunkRows * d)),
        columns_(4 * spacing_, C(0)) {
    C* first = columns_.get();
    sums_ = {first, first + spacing_, first + 2 * spacing_, first + 3 * spacing_};
    for (Chunk& chunk : stages_)
      for (const In*& row : chunk.rows) row = no_row_.data();
  }

  // Writes the status of each row left out to status[its id].
  void write_status(uint8_t* status) { status_ = status; }

  // Adds a segment of `size` > 0 rows: id_at(k) is the id of its row k, row_at(id) the first element of that row.
  template <class IdAt, class RowAt>
  void add(int64_t segment, int64_t size, const IdAt& id_at, const RowAt& row_at) {
    for (int64_t k = 0; k < size; k += kChunkRows) {
      Chunk& newest = stage(kStages - 1);
      newest.segment = segment;
      newest.n = int(size - k < kChunkRows ? size - k : kChunkRows);
      newest.last = k + kChunkRows >= size;
      for (int r = 0; r < newest.n; ++r) {
        newest.ids[r] = id_at(k + r);
        newest.sources[r] = row_at(newest.ids[r]);
      }
      advance();
    }
  }

  // Adds what is still under way; call once, at the end.
  void drain() {
    for (int stages = 1; stages < kStages; ++stages) {
      stage(kStages - 1) = Chunk{};
      advance();
    }
    flush_squares();
  }

 private:
  struct Chunk {
    const In* sources[kChunkRows] = {};
    const In* rows[kChunkRows] = {};  // contiguous; a row of zeros where there is none to add
    C inverse_norms[kChunkRows] = {};
    int64_t ids[kChunkRows] = {};
    int64_t segment = -1;
    int n = 0;
    bool last = false;
  };

  struct SlowRow {
    const In* source;
    int64_t id;
  };

  // The chunk that is summed is stage 0, the one whose norms are taken stage 1; the last one is being fetched.
  Chunk& stage(int which) { return stages_[(turn_ + which) % kStages]; }

  // Moves every chunk on by one stage, after the newest has been filled in.
  void advance() {
    Chunk &now = stage(0), &next = stage(1), &newest = stage(kStages - 1);
    make_contiguous(newest);
    C norm_sq[kChunkRows];
    sweep<C, In, kWanted>(now.rows, now.inverse_norms, next.rows, newest.rows, norm_sq, d_, sums_);
    rows_in_segment_ += now.n;
    rows_in_squares_ += now.n;
    if (rows_in_squares_ >= kRowsPerFlush) flush_squares();
    if (now.last) {
      finish_segment(now.segment);
    } else if (rows_in_segment_ >= kRowsPerFlush) {
      widen_segment();
    }
    for (int r = 0; r < next.n; ++r) tally_row(next, r, norm_sq[r]);
    turn_ = (turn_ + 1) % kStages;
  }

  void make_contiguous(Chunk& chunk) {
    for (int r = 0; r < kChunkRows; ++r) {
      chunk.rows[r] = r < chunk.n ? chunk.sources[r] : no_row_.data();
      chunk.inverse_norms[r] = 0;
      if (r >= chunk.n || col_stride_ == 1) continue;
      In* copy = copies_.data() + ((&chunk - stages_) * kChunkRows + r) * d_;
      for (int64_t j = 0; j < d_; ++j) copy[j] = chunk.sources[r][j * col_stride_];
      chunk.rows[r] = copy;
    }
  }

  void tally_row(Chunk& chunk, int r, C norm_sq) {
    // float64: all rows that are kept.
    const bool safe = std::is_same_v<C, double> ? norm_sq >= C(DBL_MIN) && norm_sq <= C(DBL_MAX)
                                                : norm_sq >= C(kLeastSafeNormSq) && norm_sq <= C(kMostSafeNormSq);
    if (!safe) {
      slow_rows_.push_back({chunk.sources[r], chunk.ids[r]});
      chunk.rows[r] = no_row_.data();
      return;
    }
    const double norm = __builtin_sqrt(double(norm_sq));
    chunk.inverse_norms[r] = C(1 / norm);
    ++tally_.count;
    if (norm < tally_.least_norm) tally_.least_norm = norm;
    tally_.norm_sum += norm;
    tally_.norm_sq_sum += double(norm_sq);
    tally_.unit_sq += double(norm_sq) * double(chunk.inverse_norms[r]) * double(chunk.inverse_norms[r]);
  }

  void finish_segment(int64_t segment) {
    if (wide_ || !slow_rows_.empty()) {
      widen_segment();
      for (const SlowRow& slow : slow_rows_) {
        const Status status = add_in_double(slow.source);
        if (status_) status_[slow.id] = status;
      }
      slow_rows_.clear();
      finish_(segment, tally_, wide_columns_.data(), wide_columns_.data() + d_);
      std::memset(wide_columns_.data(), 0, size_t(2 * d_) * sizeof(double));
      wide_ = false;
    } else {
      finish_(segment, tally_, sums_.unit, sums_.plain);
      std::memset(sums_.unit, 0, size_t(2 * spacing_) * sizeof(C));
    }
    tally_ = {};
    rows_in_segment_ = 0;
  }

  // Adds the segment's sums so far to float64.
  void widen_segment() {
    wide_columns_.resize(size_t(2 * d_));
    add_widened(wide_columns_.data(), sums_.unit, d_);
    add_widened(wide_columns_.data() + d_, sums_.plain, d_);
    std::memset(sums_.unit, 0, size_t(2 * spacing_) * sizeof(C));
    rows_in_segment_ = 0;
    wide_ = true;
  }

  void flush_squares() {
    if (kWanted == kAllSums) {
      add_widened(sq_sum_, sums_.squares, d_);
      add_widened(unit_sq_sum_, sums_.unit_squares, d_);
      std::memset(sums_.squares, 0, size_t(2 * spacing_) * sizeof(C));
    }
    rows_in_squares_ = 0;
  }

  // One row in double, where its squares do not fit the compute type; also says why a row is left out.
  Status add_in_double(const In* row) {
    double norm_sq = 0;
    for (int64_t j = 0; j < d_; ++j) {
      const double x = widen(row[j * col_stride_]);
      norm_sq += x * x;
    }
    const Status status = status_of(norm_sq);
    tally_.seen |= status;
    tally_.n_nonfinite += status == kNonfinite;
    tally_.n_zero += status == kZero;
    if (status != kUsed) return status;
    const double norm = __builtin_sqrt(norm_sq), scale = 1 / norm;
    for (int64_t j = 0; j < d_; ++j) {
      const double x = widen(row[j * col_stride_]), u = x * scale;
      wide_columns_[size_t(j)] += u;
      wide_columns_[size_t(d_ + j)] += x;
      if (kWanted == kAllSums) {
        sq_sum_[j] += x * x;
        unit_sq_sum_[j] += u * u;
      }
    }
    ++tally_.count;
    if (norm < tally_.least_norm) tally_.least_norm = norm;
    tally_.norm_sum += norm;
    tally_.norm_sq_sum += norm_sq;
    tally_.unit_sq += norm_sq * scale * scale;
    return kUsed;
  }

  // Sums lie so far apart that no two of them share the low bits of their addresses, which would stall the stores.
  static constexpr int64_t kSkew = 5 * kCacheLine / int64_t(sizeof(C));

  const int64_t d_, col_stride_, spacing_;
  double *sq_sum_, *unit_sq_sum_;
  const Finish& finish_;
  const std::vector<In> no_row_;
  std::vector<In> copies_;
  const Scratch<C> columns_;
  std::vector<double> wide_columns_;  // of a segment that needs float64: Σ u, Σ x
  Columns<C> sums_;
  Chunk stages_[kStages];
  RowTally tally_;
  std::vector<SlowRow> slow_rows_;
  int64_t rows_in_segment_ = 0, rows_in_squares_ = 0;
  uint8_t* status_ = nullptr;
  int turn_ = 0;
  bool wide_ = false;
};

}  // namespace
}  // namespace CONE_ISA
}  // namespace cone
