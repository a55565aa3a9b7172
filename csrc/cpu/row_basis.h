// Few long float64 vectors, kept as rows of one pitch: products among them, combinations, orthonormalisation.
#pragma once

#include <cmath>

#include "cpu/scratch.h"
#include "cpu/simd.h"

namespace cone {
namespace CONE_ISA {
namespace {

// Rows are padded with zeros to whole vectors; the odd cache line keeps rows of a power-of-two width from aliasing.
inline int64_t pitch_of(int64_t d) { return (d + 15) / 16 * 16 + 8; }

template <int kLeft, int kRight>
void gram_tile(const double* a, const double* b, int64_t pitch, double* out, int64_t ld) {
  Vec<double> acc[kLeft][kRight] = {};
  for (int64_t j = 0; j < pitch; j += kLanes<double>) {
    Vec<double> right[kRight];
    for (int c = 0; c < kRight; ++c) right[c] = load<double>(b + c * pitch + j);
    for (int r = 0; r < kLeft; ++r) {
      const Vec<double> left = load<double>(a + r * pitch + j);
      for (int c = 0; c < kRight; ++c) acc[r][c] += left * right[c];
    }
  }
  for (int r = 0; r < kLeft; ++r)
    for (int c = 0; c < kRight; ++c) out[r * ld + c] = add_lanes<double>(acc[r][c]);
}

// out (p, q) = a bᵀ, of p rows a and q rows b.
inline void gram(const double* a, int64_t p, const double* b, int64_t q, int64_t pitch, double* out, int64_t ld) {
  int64_t i = 0;
  for (; i + 4 <= p; i += 4) {
    int64_t j = 0;
    for (; j + 2 <= q; j += 2) gram_tile<4, 2>(a + i * pitch, b + j * pitch, pitch, out + i * ld + j, ld);
    for (; j < q; ++j) gram_tile<4, 1>(a + i * pitch, b + j * pitch, pitch, out + i * ld + j, ld);
  }
  for (; i < p; ++i)
    for (int64_t j = 0; j < q; ++j) gram_tile<1, 1>(a + i * pitch, b + j * pitch, pitch, out + i * ld + j, ld);
}

template <int kRows>
void combine_rows(const double* coefficients, int64_t row_step, int64_t step, const double* a, int64_t m, int64_t pitch,
                  bool subtract, double* out) {
  for (int64_t j = 0; j < pitch; j += kLanes<double>) {
    Vec<double> acc[kRows] = {};
    for (int64_t i = 0; i < m; ++i) {
      const Vec<double> row = load<double>(a + i * pitch + j);
      for (int r = 0; r < kRows; ++r) acc[r] += broadcast(coefficients[r * row_step + i * step]) * row;
    }
    for (int r = 0; r < kRows; ++r) {
      double* target = out + r * pitch + j;
      if (subtract) acc[r] = load<double>(target) - acc[r];
      std::memcpy(target, &acc[r], sizeof acc[r]);
    }
  }
}

// out row r = Σ_i coefficients[r·row_step + i·step] · a row i, or is lessened by it.
inline void combine(const double* coefficients, int64_t row_step, int64_t step, const double* a, int64_t m,
                    int64_t pitch, bool subtract, double* out, int64_t rows) {
  int64_t r = 0;
  for (; r + 8 <= rows; r += 8)
    combine_rows<8>(coefficients + r * row_step, row_step, step, a, m, pitch, subtract, out + r * pitch);
  for (; r < rows; ++r)
    combine_rows<1>(coefficients + r * row_step, row_step, step, a, m, pitch, subtract, out + r * pitch);
}

inline double norm_of(const double* row, int64_t pitch) {
  double square;
  gram_tile<1, 1>(row, row, pitch, &square, 1);
  return std::sqrt(square);
}

inline void scale_row(double* row, int64_t pitch, double factor) {
  for (int64_t j = 0; j < pitch; ++j) row[j] *= factor;
}

// Makes the `count` rows behind the m orthonormal rows of `basis` orthonormal too: block Gram-Schmidt, again until no
// row loses length. Rows that depend on the others are dropped; returns how many rows remain.
inline int64_t orthonormalize(double* basis, int64_t m, int64_t count, int64_t pitch) {
  const Scratch<double> coefficients((m + count) * (count > 0 ? count : 1));
  for (int64_t i = 0; i < count; ++i) {
    double* row = basis + (m + i) * pitch;
    const double norm = norm_of(row, pitch);
    scale_row(row, pitch, norm > 0 ? 1 / norm : 0);
  }
  bool shrank = true;
  for (int pass = 0; pass < 5 && shrank; ++pass) {
    shrank = pass == 0;
    if (m > 0) {
      gram(basis, m, basis + m * pitch, count, pitch, coefficients.get(), count);
      combine(coefficients.get(), 1, count, basis, m, pitch, true, basis + m * pitch, count);
    }
    int64_t kept = 0;
    for (int64_t i = 0; i < count; ++i) {
      double *from = basis + (m + i) * pitch, *row = basis + (m + kept) * pitch;
      if (kept < i) std::memcpy(row, from, size_t(pitch) * sizeof(double));
      if (kept > 0) {
        gram(basis + m * pitch, kept, row, 1, pitch, coefficients.get(), 1);
        combine(coefficients.get(), 0, 1, basis + m * pitch, kept, pitch, true, row, 1);
      }
      const double norm = norm_of(row, pitch);
      if (!(norm > 1e-12)) continue;
      if (norm < 0.7) shrank = true;
      scale_row(row, pitch, 1 / norm);
      ++kept;
    }
    count = kept;
  }
  return count;
}

}  // namespace
}  // namespace CONE_ISA
}  // namespace cone
