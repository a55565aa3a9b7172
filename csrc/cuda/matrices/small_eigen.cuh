// Eigenvectors of a small symmetric matrix by one block: Jacobi rotations, as many at once as there are disjoint pairs.
#pragma once

#include "cuda/common/launch.cuh"
#include "cuda/matrices/block_basis.cuh"

namespace cone {
namespace cuda {
namespace {

constexpr int kMostSweeps = 30;

// Shared or global memory of one block for matrices of up to `capacity` rows.
struct EigenSpace {
  double *matrix, *vectors;        // (m, m)
  double *values, *cosine, *sine;  // (capacity)
  int *first, *second, *order;     // (capacity)
  int* flag;

  // `matrix` has room for rows of whole groups.
  static __host__ __device__ int64_t values_of(int64_t capacity) {
    return capacity * (whole_groups(capacity) + capacity) + 3 * capacity + (3 * capacity + 2) / 2;
  }
  __device__ EigenSpace(double* memory, int64_t capacity) {
    matrix = memory;
    vectors = matrix + capacity * whole_groups(capacity);
    values = vectors + capacity * capacity;
    cosine = values + capacity;
    sine = cosine + capacity;
    first = reinterpret_cast<int*>(sine + capacity);
    second = first + capacity;
    order = second + capacity;
    flag = order + capacity;
  }
};

// Pair number `pair` of a round in which every index below `players` (even) meets one other.
__device__ __forceinline__ void pair_of_round(int round, int pair, int players, int& first, int& second) {
  const int others = players - 1, a = pair == 0 ? others : (round + pair) % others,
            b = (round - pair + others) % others;
  first = a < b ? a : b;
  second = a < b ? b : a;
}

// 1 / √(1 + t²) for |t| <= 1, from a float32 value by Newton's steps: a square root and a division take longer.
__device__ __forceinline__ double cosine_of(double t) {
  const double square = t * t + 1;
  double inverse = double(1.0f / sqrtf(float(square)));
  for (int step = 0; step < 2; ++step) inverse *= 1.5 - 0.5 * square * inverse * inverse;
  return inverse;
}

// The rotation of each pair of this round; an off-diagonal entry of at most `negligible` is left. The angle is good to
// float32, which leaves 1e-7 of the entry for the next sweep; the rotation is orthogonal to float64.
__device__ inline void find_rotations(const EigenSpace& space, int m, int players, int round, double scale,
                                      double negligible) {
  for (int pair = int(threadIdx.x); pair < players / 2; pair += int(blockDim.x)) {
    int p, q;
    pair_of_round(round, pair, players, p, q);
    double c = 1, s = 0;
    const double off = q < m ? space.matrix[p * m + q] : 0;
    if (fabs(off) > negligible) {
      const double difference = space.matrix[q * m + q] - space.matrix[p * m + p];
      const float slope = float(difference * scale) / float(2 * off * scale);
      const float tangent = (slope < 0 ? -1.0f : 1.0f) / (fabsf(slope) + sqrtf(slope * slope + 1.0f));
      c = cosine_of(double(tangent));
      s = double(tangent) * c;
      *space.flag = 1;
    }
    space.first[pair] = p;
    space.second[pair] = q;
    space.cosine[pair] = c;
    space.sine[pair] = s;
  }
}

__device__ __forceinline__ void rotate_two(double c, double s, double& p, double& q) {
  const double before = p;
  p = c * before - s * q;
  q = s * before + c * q;
}

// Turns the rows and columns of two pairs, entries that no other pairs of pairs touch; the matrix stays symmetric.
__device__ inline void rotate_pairs(const EigenSpace& space, int m, int left, int right) {
  const double cl = space.cosine[left], sl = space.sine[left], cr = space.cosine[right], sr = space.sine[right];
  if (sl == 0 && sr == 0) return;
  const int rows[2] = {space.first[left], space.second[left]}, columns[2] = {space.first[right], space.second[right]};
  double block[2][2];
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 2; ++j)
      block[i][j] = rows[i] < m && columns[j] < m ? space.matrix[rows[i] * m + columns[j]] : 0;
  for (int i = 0; i < 2; ++i) rotate_two(cr, sr, block[i][0], block[i][1]);
  for (int j = 0; j < 2; ++j) rotate_two(cl, sl, block[0][j], block[1][j]);
  if (left == right) block[1][0] = block[0][1];
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 2; ++j)
      if (rows[i] < m && columns[j] < m)
        space.matrix[rows[i] * m + columns[j]] = space.matrix[columns[j] * m + rows[i]] = block[i][j];
}

// The eigenvalues of space.matrix (m, m), which is overwritten: values[order[r]] is the r-th largest, and column
// order[r] of `vectors` belongs to it. All values are NaN where an entry is not finite.
__device__ inline void symmetric_eigen(const EigenSpace& space, int m) {
  const int thread = int(threadIdx.x), threads = int(blockDim.x), players = (m + 1) / 2 * 2;
  if (thread == 0) *space.flag = 0;
  __syncthreads();
  for (int e = thread; e < m * m; e += threads) {
    space.vectors[e] = e / m == e % m;
    if (!isfinite(space.matrix[e])) *space.flag = 1;
  }
  __syncthreads();
  if (*space.flag) {
    for (int i = thread; i < m; i += threads) {
      space.values[i] = nan("");
      space.order[i] = i;
    }
    __syncthreads();
    return;
  }
  double largest = 0;
  for (int i = 0; i < m; ++i) largest = fmax(largest, fabs(space.matrix[i * m + i]));
  __syncthreads();
  const double negligible = 0x1p-54 * largest, scale = largest > 0 ? 1 / largest : 0;
  for (int sweep = 0; sweep < kMostSweeps; ++sweep) {
    if (thread == 0) *space.flag = 0;
    __syncthreads();
    for (int round = 0; round < players - 1; ++round) {
      find_rotations(space, m, players, round, scale, negligible);
      __syncthreads();
      for (int e = thread; e < players / 2 * players / 2; e += threads) {
        const int left = e / (players / 2), right = e % (players / 2);
        if (left <= right) rotate_pairs(space, m, left, right);
      }
      for (int e = thread; e < m * (players / 2); e += threads) {
        const int row = e / (players / 2) * m, pair = e % (players / 2);
        if (space.sine[pair] != 0)
          rotate_two(space.cosine[pair], space.sine[pair], space.vectors[row + space.first[pair]],
                     space.vectors[row + space.second[pair]]);
      }
      __syncthreads();
    }
    const bool turned = *space.flag != 0;
    __syncthreads();
    if (!turned) break;
  }
  for (int i = thread; i < m; i += threads) space.values[i] = space.matrix[i * m + i];
  __syncthreads();
  for (int i = thread; i < m; i += threads) {
    int rank = 0;
    for (int j = 0; j < m; ++j)
      rank += space.values[j] > space.values[i] || (space.values[j] == space.values[i] && j < i);
    space.order[rank] = i;
  }
  __syncthreads();
}

}  // namespace
}  // namespace cuda
}  // namespace cone
