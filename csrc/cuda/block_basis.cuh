// Few long float64 vectors, rows (count, d) in global memory, worked on by one block: products among them,
// combinations, orthonormalisation.
#pragma once

#include "cuda/lane_sums.cuh"
#include "cuda/launch.cuh"

namespace cone {
namespace cuda {
namespace {

constexpr int kTogether = 8;  // vectors that are worked on at once

// out (p, q) = a bᵀ, of p rows a and q rows b.
__device__ inline void gram(const double* a, int p, const double* b, int q, int64_t d, double* out, int ld) {
  const int lane = int(threadIdx.x) % 32, groups = (q + kTogether - 1) / kTogether;
  for (int item = int(threadIdx.x) / 32; item < p * groups; item += int(blockDim.x) / 32) {
    const int row = item / groups, first = item % groups * kTogether;
    const double *left = a + row * d, *right = b + first * d;
    double sums[kTogether] = {};
    if (first + kTogether <= q) {
      for (int64_t j = lane; j < d; j += 32)
#pragma unroll
        for (int c = 0; c < kTogether; ++c) sums[c] += left[j] * right[c * d + j];
    } else {
      for (int64_t j = lane; j < d; j += 32)
#pragma unroll
        for (int c = 0; c < kTogether; ++c)
          if (first + c < q) sums[c] += left[j] * right[c * d + j];
    }
    const double sum = sums_of_lanes(sums);
    const int column = first + lane / (32 / kTogether);
    if (lane % (32 / kTogether) == 0 && column < q) out[row * ld + column] = sum;
  }
}

// Column j of kTogether combinations of the m rows a: sums[c] = Σ_i coefficient(i, c) a[i, j].
template <class Coefficient>
__device__ __forceinline__ void combine(const double* a, int m, int64_t d, int64_t j, const Coefficient& coefficient,
                                        double (&sums)[kTogether]) {
#pragma unroll
  for (int c = 0; c < kTogether; ++c) sums[c] = 0;
#pragma unroll 2
  for (int i = 0; i < m; ++i) {
    const double value = a[i * d + j];
#pragma unroll
    for (int c = 0; c < kTogether; ++c) sums[c] += coefficient(i, c) * value;
  }
}

__device__ inline void normalize_rows(double* rows, int count, int64_t d) {
  const int lane = int(threadIdx.x) % 32;
  for (int row = int(threadIdx.x) / 32; row < count; row += int(blockDim.x) / 32) {
    double square[1] = {0};
    for (int64_t j = lane; j < d; j += 32) square[0] += rows[row * d + j] * rows[row * d + j];
    const double norm = sqrt(sums_of_lanes(square));
    for (int64_t j = lane; j < d; j += 32) rows[row * d + j] = norm > 0 ? rows[row * d + j] / norm : 0;
  }
}

// A row that loses all but these shares of its squared length, to the basis or to the rows before it, is dropped.
constexpr double kLeastSquare = 1e-24, kLeastPivot = 1e-11;

// Cholesky factor L of the Gram matrix of `count` rows, in its lower triangle; pivot[i] = L_ii², or 0 for a row to
// drop.
__device__ inline void factorize(double* gram_matrix, int count, double* pivot, double* square) {
  const int thread = int(threadIdx.x), threads = int(blockDim.x);
  for (int i = thread; i < count; i += threads) square[i] = gram_matrix[i * count + i];
  __syncthreads();
  for (int i = 0; i < count; ++i) {
    const double left = gram_matrix[i * count + i];
    const bool keep = left > kLeastSquare && left > kLeastPivot * square[i];
    if (thread == 0) pivot[i] = keep ? left : 0;
    for (int e = thread; keep && e < (count - i - 1) * (count - i - 1); e += threads) {
      const int row = i + 1 + e / (count - i - 1), column = i + 1 + e % (count - i - 1);
      if (column <= row)
        gram_matrix[row * count + column] -= gram_matrix[row * count + i] * gram_matrix[column * count + i] / left;
    }
    __syncthreads();
  }
  for (int e = thread; e < count * count; e += threads) {
    const int row = e / count, column = e % count;
    if (column < row) gram_matrix[e] = pivot[column] > 0 ? gram_matrix[e] / sqrt(pivot[column]) : 0;
  }
  __syncthreads();
}

// rows := L⁻¹ rows, the rows kept moved together; returns how many.
__device__ inline int solve_rows(double* rows, int count, int64_t d, const double* factor, const double* pivot) {
  for (int64_t j = threadIdx.x; j < d; j += blockDim.x) {
    int kept = 0;
    for (int i = 0; i < count; ++i) {
      if (!(pivot[i] > 0)) continue;
      double value = rows[i * d + j];
      for (int before = 0, at = 0; before < i; ++before)
        if (pivot[before] > 0) value -= factor[i * count + before] * rows[at++ * d + j];
      rows[kept++ * d + j] = value / sqrt(pivot[i]);
    }
  }
  int kept = 0;
  for (int i = 0; i < count; ++i) kept += pivot[i] > 0;
  return kept;
}

// Makes the `count` rows behind the m orthonormal rows of `basis` orthonormal too: block Gram-Schmidt and Cholesky,
// again until no row loses length. Rows that depend on the others are dropped; returns how many remain. `space` holds
// (m + count) · count values and 2 · count more.
__device__ inline int orthonormalize(double* basis, int m, int count, int64_t d, double* space) {
  double *rows = basis + m * d, *coefficients = space, *products = coefficients + m * count;
  normalize_rows(rows, count, d);
  bool shrank = true;
  for (int pass = 0; pass < 5 && shrank && count > 0; ++pass) {
    double *pivot = products + count * count, *square = pivot + count;
    __syncthreads();
    gram(basis, m, rows, count, d, coefficients, count);
    __syncthreads();
    for (int first = 0; m > 0 && first < count; first += kTogether)
      for (int64_t j = threadIdx.x; j < d; j += blockDim.x) {
        double sums[kTogether];
        combine(
            basis, m, d, j, [&](int i, int c) { return first + c < count ? coefficients[i * count + first + c] : 0; },
            sums);
        for (int c = 0; c < kTogether; ++c)
          if (first + c < count) rows[(first + c) * d + j] -= sums[c];
      }
    __syncthreads();
    gram(rows, count, rows, count, d, products, count);
    __syncthreads();
    factorize(products, count, pivot, square);
    shrank = pass == 0;
    for (int i = 0; i < count; ++i) shrank = shrank || pivot[i] < 0.5;
    const int kept = solve_rows(rows, count, d, products, pivot);
    __syncthreads();
    count = kept;
  }
  return count;
}

}  // namespace
}  // namespace cuda
}  // namespace cone
