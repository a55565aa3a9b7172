// Products of a covariance with a block of vectors: from the covariance itself, or from data with one read of the rows.
#pragma once

#include <cmath>

#include "cone/parallel.h"
#include "cpu/row_access.h"
#include "cpu/row_basis.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"

namespace cone {
namespace CONE_ISA {
namespace {

// Blocks of vectors are multiplied in groups of eight columns, stored (group, d, 8), so that one element of the matrix
// meets a whole register of them.
constexpr int kColumns = 8;
constexpr int kMicroRows = 8;
template <class C>
constexpr int kPartLanes = kLanes<C> < kColumns ? kLanes<C> : kColumns;
template <class C>
constexpr int kParts = kColumns / kPartLanes<C>;
template <class C>
using Part = typename VectorOf<C, kPartLanes<C>* int(sizeof(C))>::type;
// Rows held in registers at once: eight vectors of sums, whatever the instruction set.
template <class C>
constexpr int kRowsAtOnce = kParts<C> >= 4 ? 2 : kMicroRows / kParts<C>;

inline int64_t groups_of(int64_t columns) { return (columns + kColumns - 1) / kColumns; }

// sums (kRows, 8) = Σ_l a[i, l] b[l, :]; a is read as (row i, l), or kTransposed as (l, row i).
template <int kRows, bool kTransposed, class C>
void multiply_rows(const C* a, int64_t stride, int64_t count, const C* b, C* sums) {
  Part<C> acc[kRows][kParts<C>] = {};
  for (int64_t l = 0; l < count; ++l) {
    Part<C> right[kParts<C>];
    for (int p = 0; p < kParts<C>; ++p) std::memcpy(&right[p], b + l * kColumns + p * kPartLanes<C>, sizeof right[p]);
    for (int i = 0; i < kRows; ++i) {
      const Part<C> left = a[kTransposed ? l * stride + i : i * stride + l] - Part<C>{};
      for (int p = 0; p < kParts<C>; ++p) acc[i][p] += left * right[p];
    }
  }
  for (int i = 0; i < kRows; ++i)
    for (int p = 0; p < kParts<C>; ++p)
      std::memcpy(sums + i * kColumns + p * kPartLanes<C>, &acc[i][p], sizeof acc[i][p]);
}

// The same for `rows` <= kMicroRows rows, added to out (rows, 8).
template <bool kTransposed, class C, class Out>
void multiply_add(const C* a, int64_t stride, int64_t rows, int64_t count, const C* b, Out* out) {
  C sums[kMicroRows * kColumns] = {};
  const int64_t step = kTransposed ? 1 : stride;
  int64_t i = 0;
  for (; i + kRowsAtOnce<C> <= rows; i += kRowsAtOnce<C>)
    multiply_rows<kRowsAtOnce<C>, kTransposed>(a + i * step, stride, count, b, sums + i * kColumns);
  for (; i < rows; ++i) multiply_rows<1, kTransposed>(a + i * step, stride, count, b, sums + i * kColumns);
  for (int64_t c = 0; c < rows * kColumns; ++c) out[c] += Out(sums[c]);
}

// (columns, pitch) rows of vectors -> (group, d, 8).
template <class C>
void interleave(const double* v, int64_t columns, int64_t pitch, int64_t d, C* out) {
  for (int64_t c = 0; c < groups_of(columns) * kColumns; ++c) {
    C* to = out + c / kColumns * d * kColumns + c % kColumns;
    for (int64_t j = 0; j < d; ++j) to[j * kColumns] = c < columns ? C(v[c * pitch + j]) : C(0);
  }
}

class Product {
 public:
  virtual ~Product() = default;
  // w (columns, pitch) = scale() · C v for v (columns, pitch).
  virtual void apply(const double* v, int64_t columns, int64_t pitch, double* w) = 0;
  // The power of two that brings C near 1.
  double scale() const { return scale_; }

 protected:
  double scale_ = 1;
};

// The largest power of two <= 1 / largest, kept where it and its inverse are normal numbers.
inline double power_of_two_below_inverse(double largest) {
  if (!(largest > 0 && largest < HUGE_VAL)) return 1;
  const int exponent = -std::ilogb(largest);
  return std::ldexp(1.0, exponent > 1000 ? 1000 : exponent);
}

template <class In>
class CovarianceProduct : public Product {
 public:
  CovarianceProduct(const In* data, const RowView& rows, int threads)
      : data_(data), d_(rows.d), row_stride_(rows.row_stride), col_stride_(rows.col_stride), threads_(threads) {
    if (row_stride_ == 1) row_stride_ = col_stride_, col_stride_ = 1;  // symmetric
    double largest = 0;
    for (int64_t i = 0; i < d_; ++i)
      largest = std::fmax(largest, std::fabs(double(widen(data_[i * (row_stride_ + col_stride_)]))));
    scale_ = power_of_two_below_inverse(largest);
  }

  void apply(const double* v, int64_t columns, int64_t pitch, double* w) override {
    const int64_t groups = groups_of(columns);
    const Scratch<double> vectors(groups * d_ * kColumns), products(groups * d_ * kColumns, 0.0);
    interleave(v, columns, pitch, d_, vectors.get());
    parallel_for((d_ + kPanelRows - 1) / kPanelRows, threads_, [&](int64_t panel) {
      const int64_t end = (panel + 1) * kPanelRows < d_ ? (panel + 1) * kPanelRows : d_;
      for (int64_t l0 = 0; l0 < d_; l0 += kChunk)
        for (int64_t i = panel * kPanelRows; i < end; i += kMicroRows) {
          const int64_t rows = end - i < kMicroRows ? end - i : kMicroRows;
          const int64_t count = d_ - l0 < kChunk ? d_ - l0 : kChunk;
          double widened[kMicroRows * kChunk];
          int64_t stride;
          const double* a = chunk(i, rows, l0, count, widened, &stride);
          for (int64_t g = 0; g < groups; ++g)
            multiply_add<false>(a, stride, rows, count, vectors.get() + (g * d_ + l0) * kColumns,
                                products.get() + (g * d_ + i) * kColumns);
        }
    });
    for (int64_t c = 0; c < columns; ++c)
      for (int64_t j = 0; j < d_; ++j)
        w[c * pitch + j] = products[(c / kColumns * d_ + j) * kColumns + c % kColumns] * scale_;
  }

 private:
  static constexpr int64_t kPanelRows = 32, kChunk = 256;

  // Rows i.. of columns l0.. in float64: in place where they lie so, else widened.
  const double* chunk(int64_t i, int64_t rows, int64_t l0, int64_t count, double* widened, int64_t* stride) const {
    const In* from = data_ + i * row_stride_ + l0 * col_stride_;
    if constexpr (std::is_same_v<In, double>)
      if (col_stride_ == 1) {
        *stride = row_stride_;
        return from;
      }
    *stride = kChunk;
    for (int64_t r = 0; r < rows; ++r) {
      const In* row = from + r * row_stride_;
      for (int64_t l = 0; l < count; ++l) widened[r * kChunk + l] = double(widen(row[l * col_stride_]));
    }
    return widened;
  }

  const In* data_;
  int64_t d_, row_stride_, col_stride_;
  int threads_;
};

// C = Σ (x − m)(x − m)ᵀ / divisor without forming it. A segment of the rows is one task: blocks of its rows are centred
// into a scratch that fits the L2 cache, y = x V and z += xᵀ y are taken there in C, and z is added up in float64.
template <class C, class In>
class DataProduct : public Product {
 public:
  DataProduct(const In* data, const RowView& rows, bool center, int64_t block, int threads, double* mean)
      : data_(data),
        rows_(rows),
        threads_(threads),
        divisor_(double(center ? rows.n - 1 : rows.n)),
        pitch_((rows.d + 15) / 16 * 16 + 16),
        center_(rows.d),
        center_error_(rows.d) {
    block_rows_ = kBlockBytes / (pitch_ * int64_t(sizeof(C))) / kMicroRows * kMicroRows;
    block_rows_ = block_rows_ < kMicroRows ? kMicroRows : block_rows_ > kMostRows ? kMostRows : block_rows_;
    const int64_t partial = groups_of(block) * kColumns * rows.d * int64_t(sizeof(double));
    segments_ = rows.n / kSegmentRows < kMostSegments ? rows.n / kSegmentRows : kMostSegments;
    segments_ = segments_ < kPartialBytes / partial ? segments_ : kPartialBytes / partial;
    segments_ = segments_ < 1 ? 1 : segments_;
    find_center(center, mean);
  }

  void apply(const double* v, int64_t columns, int64_t pitch, double* w) override {
    const int64_t d = rows_.d, groups = groups_of(columns), size = groups * d * kColumns;
    const Scratch<C> vectors(size);
    const Scratch<double> partial(segments_ * size);
    interleave(v, columns, pitch, d, vectors.get());
    parallel_for(segments_, threads_, [&](int64_t s) {
      double* z = partial.get() + s * size;
      for (int64_t i = 0; i < size; ++i) z[i] = 0;
      multiply_segment(segment_start(s), segment_start(s + 1), vectors.get(), groups, z);
    });
    parallel_for((size + kReduce - 1) / kReduce, threads_, [&](int64_t task) {
      const int64_t end = (task + 1) * kReduce < size ? (task + 1) * kReduce : size;
      for (int64_t s = 1; s < segments_; ++s)
        for (int64_t i = task * kReduce; i < end; ++i) partial[i] += partial[s * size + i];
    });
    for (int64_t c = 0; c < columns; ++c) {
      double along = 0;
      for (int64_t j = 0; j < d; ++j) along += center_error_[j] * v[c * pitch + j];
      const double correction = double(rows_.n) * along;
      for (int64_t j = 0; j < d; ++j) {
        const double z = partial[(c / kColumns * d + j) * kColumns + c % kColumns];
        w[c * pitch + j] = (z - correction * center_error_[j]) / divisor_;
      }
    }
  }

 private:
  static constexpr int64_t kBlockBytes = 256 << 10, kMostRows = 256, kChunk = 128, kReduce = 4096;
  static constexpr int64_t kSegmentRows = 512, kMostSegments = 32, kPartialBytes = int64_t(64) << 20;

  int64_t segment_start(int64_t s) const {
    const int64_t blocks = (rows_.n + block_rows_ - 1) / block_rows_;
    const int64_t start = blocks * s / segments_ * block_rows_;
    return start < rows_.n ? start : rows_.n;
  }

  // The mean and the largest magnitude, in one read.
  void find_center(bool center, double* mean) {
    const int64_t d = rows_.d;
    const Scratch<double> sums(segments_ * d), largest(segments_ * d);
    parallel_for(segments_, threads_, [&](int64_t s) {
      double *sum = sums.get() + s * d, *top = largest.get() + s * d;
      for (int64_t j = 0; j < d; ++j) sum[j] = top[j] = 0;
      const Scratch<C> row(d);
      for (int64_t i = segment_start(s); i < segment_start(s + 1); ++i) {
        widen_row<C>(data_ + i * rows_.row_stride, rows_.col_stride, d, row.get());
        for (int64_t j = 0; j < d; ++j) {
          const double x = double(row[j]), magnitude = std::fabs(x);
          sum[j] += x;
          top[j] = magnitude > top[j] ? magnitude : top[j];
        }
      }
    });
    double most = 0;
    for (int64_t j = 0; j < d; ++j) {
      double sum = 0, top = 0;
      for (int64_t s = 0; s < segments_; ++s) {
        sum += sums[s * d + j];
        top = std::fmax(top, largest[s * d + j]);
      }
      mean[j] = sum / double(rows_.n);
      most = std::fmax(most, top);
    }
    // Half of it, so that x − m stays below 1; within float's range for float rows.
    element_scale_ = 0.5 * power_of_two_below_inverse(most);
    if (std::is_same_v<C, float> && element_scale_ > 0x1p126) element_scale_ = 0x1p126;
    if (element_scale_ > 0x1p500) element_scale_ = 0x1p500;
    scale_ = element_scale_ * element_scale_;
    for (int64_t j = 0; j < d; ++j) {
      const double scaled = center ? mean[j] * element_scale_ : 0;
      center_[j] = C(scaled);
      center_error_[j] = scaled - double(center_[j]);
    }
  }

  void center_block(int64_t first, int64_t rows, C* x) const {
    const C scale = C(element_scale_);
    for (int64_t r = 0; r < rows; ++r) {
      C* row = x + r * pitch_;
      widen_row<C>(data_ + (first + r) * rows_.row_stride, rows_.col_stride, rows_.d, row);
      for (int64_t j = 0; j < rows_.d; ++j) row[j] = row[j] * scale - center_[j];
    }
  }

  // The next block comes from memory while this one is multiplied.
  void prefetch(int64_t first, int64_t end, int64_t j) const {
    if (rows_.col_stride != 1) return;
    const int64_t last = first + kMicroRows < end ? first + kMicroRows : end;
    for (int64_t i = first; i < last; ++i) {
      const char* line = reinterpret_cast<const char*>(data_ + i * rows_.row_stride + j);
      for (int64_t byte = 0; byte < kChunk * int64_t(sizeof(In)); byte += 64) __builtin_prefetch(line + byte, 0, 2);
    }
  }

  void multiply_segment(int64_t begin, int64_t end, const C* vectors, int64_t groups, double* z) const {
    const int64_t d = rows_.d;
    const Scratch<C> x(block_rows_ * pitch_), y(groups * block_rows_ * kColumns);
    for (int64_t first = begin; first < end; first += block_rows_) {
      const int64_t rows = end - first < block_rows_ ? end - first : block_rows_;
      center_block(first, rows, x.get());
      for (int64_t i = 0; i < groups * block_rows_ * kColumns; ++i) y[i] = 0;
      for (int64_t j = 0; j < d; j += kChunk)
        for (int64_t r = 0; r < rows; r += kMicroRows) {
          prefetch(first + block_rows_ + r, end, j);
          for (int64_t g = 0; g < groups; ++g)
            multiply_add<false>(x.get() + r * pitch_ + j, pitch_, rows - r < kMicroRows ? rows - r : kMicroRows,
                                d - j < kChunk ? d - j : kChunk, vectors + (g * d + j) * kColumns,
                                y.get() + (g * block_rows_ + r) * kColumns);
        }
      for (int64_t j = 0; j < d; j += kMicroRows)
        for (int64_t g = 0; g < groups; ++g)
          multiply_add<true>(x.get() + j, pitch_, d - j < kMicroRows ? d - j : kMicroRows, rows,
                             y.get() + g * block_rows_ * kColumns, z + (g * d + j) * kColumns);
    }
  }

  const In* data_;
  RowView rows_;
  int threads_;
  double divisor_;
  int64_t pitch_, block_rows_, segments_;
  double element_scale_;
  Scratch<C> center_;             // float(m), scaled
  Scratch<double> center_error_;  // m − float(m), scaled: C gains n·error·errorᵀ by it, taken off again in float64
};

}  // namespace
}  // namespace CONE_ISA
}  // namespace cone
