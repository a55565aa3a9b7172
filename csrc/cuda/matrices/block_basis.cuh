// Few long float64 vectors, rows (count, d) in global memory, worked on by one block: products among them,
// combinations, orthonormalisation.
#pragma once

#include "cuda/common/launch.cuh"
#include "cuda/matrices/lane_sums.cuh"

namespace cone {
namespace cuda {
namespace {

constexpr int kTogether = 8;  // vectors that are worked on at once

inline __host__ __device__ int64_t whole_groups(int64_t count) {
  return (count + kTogether - 1) / kTogether * kTogether;
}

// Calls store(i, j, a_i · b_j) for p rows a and q rows b, q rounded up to whole groups: with 0 behind the last.
template <class Store>
__device__ inline void gram(const double* a, int p, const double* b, int q, int64_t d, const Store& store) {
  const int lane = int(threadIdx.x) % 32, groups = int(whole_groups(q)) / kTogether;
  for (int item = int(threadIdx.x) / 32; item < p * groups; item += int(blockDim.x) / 32) {
    const int row = item / groups, first = item % groups * kTogether;
    const double *left = a + row * d, *right = b + first * d;
    double sums[kTogether] = {};
    if (first + kTogether <= q) {
#pragma unroll 2
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
    if (lane % (32 / kTogether) == 0) store(row, first + lane / (32 / kTogether), sum);
  }
}

// Where coefficient (i, c) of combinations of m rows lies: those of one group and row together.
__device__ __forceinline__ int coefficient_at(int m, int i, int c) {
  return (c / kTogether * m + i) * kTogether + c % kTogether;
}

// Column j of kTogether combinations of the m rows a: sums[c] = Σ_i coefficients[i, c] a[i, j].
__device__ __forceinline__ void combine(const double* a, int m, int64_t d, int64_t j, const double* coefficients,
                                        double (&sums)[kTogether]) {
#pragma unroll
  for (int c = 0; c < kTogether; ++c) sums[c] = 0;
#pragma unroll 2
  for (int i = 0; i < m; ++i) {
    const double value = a[i * d + j];
#pragma unroll
    for (int c = 0; c < kTogether; c += 2) {
      const double2 two = *reinterpret_cast<const double2*>(coefficients + i * kTogether + c);
      sums[c] += two.x * value;
      sums[c + 1] += two.y * value;
    }
  }
}

__device__ inline void normalize_rows(double* rows, int count, int64_t d) {
  const int lane = int(threadIdx.x) % 32;
  for (int row = int(threadIdx.x) / 32; row < count; row += int(blockDim.x) / 32) {
    double square[1] = {0};
    for (int64_t j = lane; j < d; j += 32) square[0] += rows[row * d + j] * rows[row * d + j];
    const double norm = sqrt(sums_of_lanes(square)), inverse = norm > 0 ? 1 / norm : 0;
    for (int64_t j = lane; j < d; j += 32) rows[row * d + j] *= inverse;
  }
}

// A row that loses all but these shares of its squared length, to the basis or to the rows before it, is dropped.
constexpr double kLeastSquare = 1e-24, kLeastPivot = 1e-11;

// Cholesky factor L of the Gram matrix of `count` rows, below its diagonal; inverse[i] = 1 / L_ii, or 0 for a row to
// drop. Returns whether a row lost half of its squared length.
__device__ inline bool factorize(double* gram_matrix, int count, double* inverse, double* square) {
  const int thread = int(threadIdx.x), threads = int(blockDim.x);
  for (int i = thread; i < count; i += threads) square[i] = gram_matrix[i * count + i];
  __syncthreads();
  bool shrank = false;
  for (int i = 0; i < count; ++i) {
    const double left = gram_matrix[i * count + i];
    const bool keep = left > kLeastSquare && left > kLeastPivot * square[i];
    const double of_left = keep ? 1 / left : 0;
    shrank = shrank || left < 0.5;
    if (thread == 0) inverse[i] = sqrt(of_left);
    for (int e = thread; keep && e < (count - i - 1) * (count - i - 1); e += threads) {
      const int row = i + 1 + e / (count - i - 1), column = i + 1 + e % (count - i - 1);
      if (column <= row)
        gram_matrix[row * count + column] -= gram_matrix[row * count + i] * gram_matrix[column * count + i] * of_left;
    }
    __syncthreads();
  }
  for (int e = thread; e < count * count; e += threads)
    if (e % count < e / count) gram_matrix[e] *= inverse[e % count];
  __syncthreads();
  return shrank;
}

// rows := L⁻¹ rows, the rows kept moved together; returns how many.
__device__ inline int solve_rows(double* rows, int count, int64_t d, const double* factor, const double* inverse) {
  for (int64_t j = threadIdx.x; j < d; j += blockDim.x) {
    int kept = 0;
    for (int i = 0; i < count; ++i) {
      if (!(inverse[i] > 0)) continue;
      double value = rows[i * d + j];
      for (int before = 0, at = 0; before < i; ++before)
        if (inverse[before] > 0) value -= factor[i * count + before] * rows[at++ * d + j];
      rows[kept++ * d + j] = value * inverse[i];
    }
  }
  int kept = 0;
  for (int i = 0; i < count; ++i) kept += inverse[i] > 0;
  return kept;
}

// Makes the `count` rows behind the m orthonormal rows of `basis` orthonormal too: block Gram-Schmidt and Cholesky,
// again until no row loses length. Rows that depend on the others are dropped; returns how many remain. `space` holds
// m · whole_groups(count) + count² + 2 · count values.
__device__ inline int orthonormalize(double* basis, int m, int count, int64_t d, double* space) {
  double* rows = basis + m * d;
  normalize_rows(rows, count, d);
  bool shrank = true;
  for (int pass = 0; pass < 5 && shrank && count > 0; ++pass) {
    double *coefficients = space, *products = coefficients + m * whole_groups(count);
    double *inverse = products + count * count, *square = inverse + count;
    __syncthreads();
    gram(basis, m, rows, count, d,
         [&](int i, int c, double product) { coefficients[coefficient_at(m, i, c)] = product; });
    __syncthreads();
    for (int first = 0; m > 0 && first < count; first += kTogether)
      for (int64_t j = threadIdx.x; j < d; j += blockDim.x) {
        double sums[kTogether];
        combine(basis, m, d, j, coefficients + coefficient_at(m, 0, first), sums);
        for (int c = 0; c < kTogether; ++c)
          if (first + c < count) rows[(first + c) * d + j] -= sums[c];
      }
    __syncthreads();
    gram(rows, count, rows, count, d, [&](int i, int c, double product) {
      if (c < count) products[i * count + c] = product;
    });
    __syncthreads();
    shrank = factorize(products, count, inverse, square) || pass == 0;
    const int kept = solve_rows(rows, count, d, products, inverse);
    __syncthreads();
    count = kept;
  }
  return count;
}

}  // namespace
}  // namespace cuda
}  // namespace cone
