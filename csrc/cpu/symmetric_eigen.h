// Eigenvectors of a small symmetric matrix: Householder tridiagonalisation, then implicit QL (EISPACK's tred2, tql2).
#pragma once

#include <cmath>

#include "cpu/scratch.h"

namespace cone {
namespace CONE_ISA {
namespace {

// Reduces a (m, m) to tridiagonal form: diagonal, off-diagonal, and the transposed transformation in rows of q.
inline void tridiagonalize(double* a, int64_t m, double* diagonal, double* off, double* q) {
  const Scratch<double> beta(m), w(m);
  for (int64_t k = 0; k + 1 < m; ++k) {
    double* v = a + k * m;  // the row right of the diagonal becomes the Householder vector
    double tail = 0;
    for (int64_t j = k + 2; j < m; ++j) tail += v[j] * v[j];
    off[k] = v[k + 1];
    beta[k] = 0;
    if (!(tail > 0)) continue;
    const double norm = std::sqrt(v[k + 1] * v[k + 1] + tail);
    off[k] = v[k + 1] > 0 ? -norm : norm;
    v[k + 1] -= off[k];
    beta[k] = 2 / (v[k + 1] * v[k + 1] + tail);
    double vw = 0;
    for (int64_t i = k + 1; i < m; ++i) {
      const double* row = a + i * m;
      double dot = 0;
      for (int64_t j = k + 1; j < m; ++j) dot += row[j] * v[j];
      w[i] = beta[k] * dot;
      vw += w[i] * v[i];
    }
    for (int64_t i = k + 1; i < m; ++i) w[i] -= 0.5 * beta[k] * vw * v[i];
    for (int64_t i = k + 1; i < m; ++i) {
      double* row = a + i * m;
      const double vi = v[i], wi = w[i];
      for (int64_t j = k + 1; j < m; ++j) row[j] -= vi * w[j] + wi * v[j];
    }
  }
  for (int64_t i = 0; i < m; ++i) {
    diagonal[i] = a[i * m + i];
    for (int64_t j = 0; j < m; ++j) q[i * m + j] = i == j;
  }
  for (int64_t k = m - 3; k >= 0; --k) {
    const double* v = a + k * m;
    for (int64_t i = k + 1; i < m; ++i) {
      double* row = q + i * m;
      double dot = 0;
      for (int64_t j = k + 1; j < m; ++j) dot += row[j] * v[j];
      dot *= beta[k];
      for (int64_t j = k + 1; j < m; ++j) row[j] -= dot * v[j];
    }
  }
}

// Diagonalises the tridiagonal matrix in place and turns the rows of q into its eigenvectors.
inline void diagonalize(int64_t m, double* d, double* off, double* q) {
  double largest = 0;
  for (int64_t i = 0; i < m; ++i) largest = std::fmax(largest, std::fabs(d[i]) + (i + 1 < m ? std::fabs(off[i]) : 0));
  const double negligible = 0x1p-53 * largest;
  off[m - 1] = 0;
  for (int64_t first = 0; first < m; ++first) {
    for (int sweep = 0; sweep < 60; ++sweep) {
      int64_t last = first;
      while (last + 1 < m && std::fabs(off[last]) > negligible) ++last;
      if (last == first) break;
      double g = (d[first + 1] - d[first]) / (2 * off[first]);
      g = d[last] - d[first] + off[first] / (g + std::copysign(std::sqrt(g * g + 1), g));
      double s = 1, c = 1, shift = 0;
      int64_t i = last - 1;
      for (; i >= first; --i) {
        const double f = s * off[i], b = c * off[i];
        const double r = std::sqrt(f * f + g * g);
        off[i + 1] = r;
        if (r == 0) {
          d[i + 1] -= shift;
          break;
        }
        s = f / r;
        c = g / r;
        g = d[i + 1] - shift;
        const double t = (d[i] - g) * s + 2 * c * b;
        shift = s * t;
        d[i + 1] = g + shift;
        g = c * t - b;
        double *upper = q + i * m, *lower = upper + m;
        for (int64_t j = 0; j < m; ++j) {
          const double u = upper[j], l = lower[j];
          lower[j] = s * u + c * l;
          upper[j] = c * u - s * l;
        }
      }
      off[last] = 0;
      if (i >= first) continue;
      d[first] -= shift;
      off[first] = g;
    }
  }
}

// values (m) descending; vectors (m, m): row i belongs to values[i]. Entries of `a` should be near 1 in size.
inline void symmetric_eigen(const double* a, int64_t lda, int64_t m, double* values, double* vectors) {
  const Scratch<double> work(m * m), q(m * m), off(m), d(m);
  const Scratch<int64_t> order(m);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < m; ++j) work[i * m + j] = a[i * lda + j];
  tridiagonalize(work.get(), m, d.get(), off.get(), q.get());
  diagonalize(m, d.get(), off.get(), q.get());
  for (int64_t i = 0; i < m; ++i) {
    int64_t j = i;
    for (; j > 0 && d[order[j - 1]] < d[i]; --j) order[j] = order[j - 1];
    order[j] = i;
  }
  for (int64_t i = 0; i < m; ++i) {
    values[i] = d[order[i]];
    for (int64_t j = 0; j < m; ++j) vectors[i * m + j] = q[order[i] * m + j];
  }
}

}  // namespace
}  // namespace CONE_ISA
}  // namespace cone
