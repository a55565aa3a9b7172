// The small problems of each layer, one block a layer: the start, and after each product Rayleigh-Ritz, convergence and
// the next block of vectors.
#pragma once

#include <cfloat>

#include "cuda/matrices/block_basis.cuh"
#include "cuda/matrices/krylov_state.cuh"
#include "cuda/matrices/small_eigen.cuh"
#include "cuda/matrices/top_eigenvectors.h"

namespace cone {
namespace cuda {
namespace {

constexpr int kRestartBlocks = 2;  // blocks that a full basis is cut down to

// Residuals below this many roundings of the largest Ritz value are noise and no direction to search in.
constexpr double kNoise = 0x1p-49;

constexpr int kMostWarps = 16;
constexpr int64_t kReduceValues = kMostWarps * 32;  // shared values for sums over a block: one for each thread

// How many float64 values one layer's small problem takes: for Jacobi's rotations, Ritz values and residuals.
inline __host__ __device__ int64_t small_values(int64_t capacity) {
  return (EigenSpace::values_of(capacity) + 2 * capacity + 1) / 2 * 2;  // aligned as pairs are
}

// The largest power of two <= 1 / largest, kept where it and its inverse are normal numbers.
__device__ __forceinline__ double power_of_two_below_inverse(double largest) { return scale_towards(largest, 0); }

// The mean, the scale and the centre from the segments' sums.
__device__ inline void find_center(const Krylov& krylov, int64_t layer, int64_t segments, double n, bool center,
                                   double* mean, double* of_threads) {
  const int64_t d = krylov.d;
  double most = 0;
  for (int64_t j = threadIdx.x; j < d; j += blockDim.x) {
    double sum = 0;
    for (int64_t s = 0; s < segments; ++s) {
      const double* part = krylov.partial + (layer * segments + s) * 2 * d;
      sum += part[j];
      most = part[d + j] > most ? part[d + j] : most;
    }
    mean[j] = sum / n;
  }
  of_threads[threadIdx.x] = most;
  __syncthreads();
  for (unsigned t = 0; t < blockDim.x; ++t) most = of_threads[t] > most ? of_threads[t] : most;
  // Half of it, so that x − m stays below 1; within float32's range.
  const double inverse = 0.5 * power_of_two_below_inverse(most);
  const double scale = inverse < 0x1p126 ? inverse : 0x1p126;
  for (int64_t j = threadIdx.x; j < d; j += blockDim.x) {
    const double scaled = center ? mean[j] * scale : 0;
    krylov.center[layer * d + j] = float(scaled);
    krylov.center_error[layer * d + j] = scaled - double(float(scaled));
  }
  if (threadIdx.x == 0) {
    krylov.states[layer].element_scale = scale;
    krylov.states[layer].scale = scale * scale;
  }
}

template <class In>
__device__ inline void find_scale(const Rows<In>& x, LayerState& state, int64_t layer, double* of_threads) {
  double most = 0;
  for (int64_t j = threadIdx.x; j < x.d; j += blockDim.x) {
    const double magnitude = fabs(double(widen(*x.at(layer, j, j))));
    most = magnitude > most ? magnitude : most;
  }
  of_threads[threadIdx.x] = most;
  __syncthreads();
  for (unsigned t = 0; t < blockDim.x; ++t) most = of_threads[t] > most ? of_threads[t] : most;
  if (threadIdx.x == 0) state.scale = power_of_two_below_inverse(most);
}

__device__ __forceinline__ double* small_space(const Krylov& krylov, int64_t layer, bool shared) {
  return shared ? shared_memory<double>() + kReduceValues : krylov.small + layer * small_values(krylov.capacity);
}

// The start block, made orthonormal, and the scale of each layer's matrix.
template <class In>
__global__ void __launch_bounds__(kMostWarps * 32)
    begin_layers(Rows<In> x, TopEigenvectorsArgs args, Krylov krylov, int64_t segments, bool shared) {
  const int64_t layer = blockIdx.x, d = krylov.d;
  LayerState& state = krylov.states[layer];
  double* space = small_space(krylov, layer, shared);
  double* of_threads = shared_memory<double>();
  if (args.covariance)
    find_scale(x, state, layer, of_threads);
  else
    find_center(krylov, layer, segments, double(x.n), args.center, args.mean + layer * d, of_threads);
  double* basis = krylov.basis + layer * krylov.capacity * d;
  for (int64_t e = threadIdx.x; e < krylov.block * d; e += blockDim.x) basis[e] = args.start[e];
  __syncthreads();
  const int fresh = orthonormalize(basis, 0, int(krylov.block), d, space);
  if (threadIdx.x > 0) return;
  state.size = state.iterations = 0;
  state.fresh = fresh;
  krylov.done[layer] = 0;
}

// One layer's step, after the images of its fresh vectors have been made.
class RitzStep {
 public:
  __device__ RitzStep(const TopEigenvectorsArgs& args, const Krylov& krylov, double* reduce, double* space)
      : args_(args),
        krylov_(krylov),
        layer_(blockIdx.x),
        d_(krylov.d),
        capacity_(int(krylov.capacity)),
        block_(int(krylov.block)),
        k_(int(krylov.k)),
        old_(int(krylov.states[layer_].size)),
        size_(old_ + int(krylov.states[layer_].fresh)),
        iterations_(krylov.states[layer_].iterations + (size_ > old_)),
        basis_(krylov.basis + layer_ * capacity_ * d_),
        image_(krylov.image + layer_ * capacity_ * d_),
        ritz_(krylov.ritz + layer_ * krylov.ritz_rows * d_),
        projected_(krylov.projected + layer_ * capacity_ * capacity_),
        reduce_(reduce),
        space_(space),
        eigen_(space, capacity_),
        theta_(space + EigenSpace::values_of(capacity_)),
        residuals_(theta_ + capacity_) {}

  __device__ void run() {
    project();
    symmetric_eigen(eigen_, size_);
    for (int r = int(threadIdx.x); r < size_; r += int(blockDim.x)) theta_[r] = eigen_.values[eigen_.order[r]];
    __syncthreads();
    largest_ = fmax(fabs(theta_[0]), fabs(theta_[size_ - 1]));
    const int most = k_ + 1 > block_ ? k_ + 1 : block_;
    n_ritz_ = most < size_ ? most : size_;
    gather_rotation();
    find_residuals();
    const bool converged = is_converged();
    // expand() overwrites the rotation that store() needs: where it finds nothing to append, the next step is the last.
    const bool last = converged || iterations_ >= args_.max_iterations || size_ == old_;
    int fresh = 0;
    if (last)
      store(converged);
    else
      fresh = expand();
    __syncthreads();
    if (threadIdx.x > 0) return;
    LayerState& state = krylov_.states[layer_];
    state.size = size_;
    state.fresh = fresh;
    state.iterations = iterations_;
    krylov_.done[layer_] = last;
  }

 private:
  // The coefficients of all Ritz vectors, in order, take the place of the matrix that was diagonalised.
  __device__ void gather_rotation() {
    const int columns = int(whole_groups(size_));
    for (int e = int(threadIdx.x); e < size_ * columns; e += int(blockDim.x)) {
      const int i = e / columns, r = e % columns;
      eigen_.matrix[coefficient_at(size_, i, r)] = r < size_ ? eigen_.vectors[i * size_ + eigen_.order[r]] : 0;
    }
    __syncthreads();
  }

  // Coefficients of kTogether Ritz vectors from `first` on.
  __device__ __forceinline__ const double* rotation(int first) const {
    return eigen_.matrix + coefficient_at(size_, 0, first);
  }

  // The fresh vectors' rows and columns of the projected matrix, and a copy of the whole for its eigenvectors.
  __device__ void project() {
    gram(basis_, size_, image_ + old_ * d_, size_ - old_, d_, [&](int i, int c, double product) {
      if (old_ + c < size_) projected_[i * capacity_ + old_ + c] = product;
    });
    __syncthreads();
    for (int e = int(threadIdx.x); e < size_ * size_; e += int(blockDim.x)) {
      const int i = e / size_, j = e % size_;
      if (j < old_ || i > j) continue;
      double &upper = projected_[i * capacity_ + j], &lower = projected_[j * capacity_ + i];
      lower = upper = i < old_ ? upper : 0.5 * (upper + lower);
    }
    __syncthreads();
    for (int e = int(threadIdx.x); e < size_ * size_; e += int(blockDim.x))
      eigen_.matrix[e] = projected_[e / size_ * capacity_ + e % size_];
    __syncthreads();
  }

  // Residuals C v − θ v of the leading Ritz vectors, as rows of ritz_, and their norms.
  __device__ void find_residuals() {
    const int lane = int(threadIdx.x) % 32, warps = int(blockDim.x) / 32;
    for (int first = 0; first < n_ritz_; first += kTogether) {
      double squares[kTogether] = {};
      for (int64_t j = threadIdx.x; j < d_; j += blockDim.x) {
        double vector[kTogether], image[kTogether];
        combine(basis_, size_, d_, j, rotation(first), vector);
        combine(image_, size_, d_, j, rotation(first), image);
        for (int c = 0; c < kTogether; ++c) {
          if (first + c >= n_ritz_) continue;
          const double residual = image[c] - theta_[first + c] * vector[c];
          ritz_[(first + c) * d_ + j] = residual;
          squares[c] += residual * residual;
        }
      }
      const double sum = sums_of_lanes(squares);
      if (lane % (32 / kTogether) == 0) reduce_[threadIdx.x / 32 * kTogether + lane / (32 / kTogether)] = sum;
      __syncthreads();
      if (threadIdx.x < kTogether && first + int(threadIdx.x) < n_ritz_) {
        double square = 0;
        for (int w = 0; w < warps; ++w) square += reduce_[w * kTogether + threadIdx.x];
        residuals_[first + threadIdx.x] = sqrt(square);
      }
      __syncthreads();
    }
  }

  // The next Ritz value is there for the eigengap alone: its error is the square of its residual over its own gap.
  __device__ bool is_converged() const {
    for (int i = 0; i < k_; ++i)
      if (!(residuals_[i] <= args_.tolerance * largest_)) return false;
    return k_ == d_ || residuals_[k_] <= fmax(args_.tolerance, 1e-3) * largest_;
  }

  // Appends the residuals of the leading Ritz vectors to the basis; returns how many.
  __device__ int expand() {
    int wanted = 0;
    for (int i = 0; i < n_ritz_ && wanted < block_; ++i) wanted += residuals_[i] > kNoise * largest_;
    if (size_ + wanted > capacity_ && capacity_ < d_) restart();
    if (size_ + wanted > capacity_) wanted = capacity_ - size_;
    for (int64_t j = threadIdx.x; j < d_; j += blockDim.x)
      for (int i = 0, row = size_; row < size_ + wanted; ++i)
        if (residuals_[i] > kNoise * largest_) basis_[row++ * d_ + j] = ritz_[i * d_ + j];
    __syncthreads();
    return orthonormalize(basis_, size_, wanted, d_, space_);
  }

  // The basis becomes its leading Ritz vectors.
  __device__ void restart() {
    const int kept = kRestartBlocks * block_;
    rotate(basis_, kept);
    rotate(image_, kept);
    for (int e = int(threadIdx.x); e < kept * kept; e += int(blockDim.x))
      projected_[e / kept * capacity_ + e % kept] = e / kept == e % kept ? theta_[e / kept] : 0;
    size_ = kept;
    __syncthreads();
  }

  // A thread turns columns of its own, so that nothing waits.
  __device__ void rotate(double* rows, int kept) {
    double* turned = ritz_ + n_ritz_ * d_;
    for (int64_t j = threadIdx.x; j < d_; j += blockDim.x) {
      for (int first = 0; first < kept; first += kTogether) {
        double sums[kTogether];
        combine(rows, size_, d_, j, rotation(first), sums);
        for (int c = 0; c < kTogether; ++c)
          if (first + c < kept) turned[(first + c) * d_ + j] = sums[c];
      }
      for (int r = 0; r < kept; ++r) rows[r * d_ + j] = turned[r * d_ + j];
    }
  }

  __device__ void store(bool converged) {
    const double unscale = 1 / krylov_.states[layer_].scale;
    double* vectors = args_.vectors + layer_ * k_ * d_;
    for (int64_t j = threadIdx.x; j < d_; j += blockDim.x)
      for (int first = 0; first < k_; first += kTogether) {
        double sums[kTogether];
        combine(basis_, size_, d_, j, rotation(first), sums);
        for (int c = 0; c < kTogether; ++c)
          if (first + c < k_) vectors[(first + c) * d_ + j] = sums[c];
      }
    for (int i = int(threadIdx.x); i < k_; i += int(blockDim.x)) {
      args_.values[layer_ * k_ + i] = theta_[i] * unscale;
      args_.residuals[layer_ * k_ + i] = residuals_[i] * unscale;
    }
    __syncthreads();
    normalize_rows(vectors, k_, d_);
    if (threadIdx.x > 0) return;
    args_.next_value[layer_] = k_ < d_ ? theta_[k_] * unscale : nan("");
    args_.iterations[layer_] = iterations_;
    args_.converged[layer_] = converged;
  }

  const TopEigenvectorsArgs& args_;
  const Krylov& krylov_;
  const int64_t layer_, d_;
  const int capacity_, block_, k_, old_;
  int size_, n_ritz_ = 0;
  const int64_t iterations_;
  double largest_ = 0;
  double *basis_, *image_, *ritz_, *projected_, *reduce_, *space_;
  EigenSpace eigen_;
  double *theta_, *residuals_;  // (capacity), sorted
};

__global__ void __launch_bounds__(kMostWarps * 32) step_layers(TopEigenvectorsArgs args, Krylov krylov, bool shared) {
  const int64_t layer = blockIdx.x;
  if (krylov.done[layer]) return;
  RitzStep(args, krylov, shared_memory<double>(), small_space(krylov, layer, shared)).run();
}

}  // namespace
}  // namespace cuda
}  // namespace cone
