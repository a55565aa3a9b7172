// Subspace iteration with Rayleigh-Ritz that keeps the blocks it has multiplied: the basis grows by the residuals of
// the leading Ritz vectors (block Krylov, as in Musco & Musco 2015) and is restarted from the leading Ritz vectors.
#include "cone/top_eigenvectors.h"

#include <cmath>
#include <stdexcept>

#include "cone/parallel.h"
#include "cpu/covariance_product.h"
#include "cpu/isa.h"
#include "cpu/row_basis.h"
#include "cpu/symmetric_eigen.h"

namespace cone {
namespace CONE_ISA {
namespace {

constexpr int64_t kBasisBlocks = 5;    // the basis holds at most this many blocks
constexpr int64_t kRestartBlocks = 2;  // and is restarted with this many

// Residuals below this many roundings of the largest Ritz value are noise and no direction to search in.
constexpr double kNoise = 0x1p-49;

// Data: a few cheap steps on every 16th row find a start that saves reads of all rows.
constexpr int64_t kSampleStep = 16, kLeastSample = 128, kSampleIterations = 4;
constexpr double kSampleTolerance = 1e-2, kStartShare = 0.03;

class RitzIteration {
 public:
  RitzIteration(const TopEigenvectorsArgs& args, Product& product)
      : args_(args),
        product_(product),
        d_(args.rows.d),
        block_(args.block),
        pitch_(pitch_of(d_)),
        capacity_(kBasisBlocks * block_ < d_ ? kBasisBlocks * block_ : d_),
        basis_(capacity_ * pitch_, 0.0),
        image_(capacity_ * pitch_, 0.0),
        ritz_(capacity_ * pitch_),
        ritz_image_(capacity_ * pitch_),
        projected_(capacity_ * capacity_, 0.0),
        theta_(capacity_),
        rotation_(capacity_ * capacity_),
        residuals_(capacity_) {}

  void run(const double* start, double tolerance, int64_t max_iterations) {
    for (int64_t c = 0; c < block_; ++c)
      std::memcpy(basis_.get() + c * pitch_, start + c * d_, size_t(d_) * sizeof(double));
    int64_t fresh = orthonormalize(basis_.get(), 0, block_, pitch_);
    if (fresh < block_) throw std::invalid_argument("start: got linearly dependent rows; they must be independent");
    while (true) {
      multiply(fresh);
      ++iterations_;
      find_ritz_pairs();
      converged_ = is_converged(tolerance);
      if (converged_ || iterations_ == max_iterations) break;
      fresh = expand();
      if (fresh == 0) break;
    }
  }

  // (block, d): the leading Ritz vectors, with a little of `start` in them so that no direction is lost.
  void next_start(const double* start, double* next) const {
    for (int64_t c = 0; c < block_; ++c) {
      double square = 0;
      for (int64_t j = 0; j < d_; ++j) square += start[c * d_ + j] * start[c * d_ + j];
      const double share = kStartShare / std::sqrt(square);
      for (int64_t j = 0; j < d_; ++j) next[c * d_ + j] = ritz_[c * pitch_ + j] + share * start[c * d_ + j];
    }
  }

  void store(int64_t layer) const {
    const double unscale = 1 / product_.scale();
    for (int64_t i = 0; i < args_.k; ++i) {
      const double* row = ritz_.get() + i * pitch_;
      const double norm = norm_of(row, pitch_);
      args_.values[layer * args_.k + i] = theta_[i] * unscale;
      args_.residuals[layer * args_.k + i] = residuals_[i] * unscale;
      for (int64_t j = 0; j < d_; ++j) args_.vectors[(layer * args_.k + i) * d_ + j] = row[j] / norm;
    }
    args_.next_value[layer] = args_.k < d_ ? theta_[args_.k] * unscale : std::nan("");
    args_.iterations[layer] = iterations_;
    args_.converged[layer] = converged_;
  }

 private:
  // Takes the `fresh` newest basis vectors through the product and into the projected matrix.
  void multiply(int64_t fresh) {
    const int64_t old = size_, ld = capacity_;
    size_ += fresh;
    product_.apply(basis_.get() + old * pitch_, fresh, pitch_, image_.get() + old * pitch_);
    gram(basis_.get(), size_, image_.get() + old * pitch_, fresh, pitch_, projected_.get() + old, ld);
    for (int64_t i = 0; i < size_; ++i)
      for (int64_t j = i < old ? old : i; j < size_; ++j) {
        double* upper = projected_.get() + i * ld + j;
        double* lower = projected_.get() + j * ld + i;
        *lower = *upper = i < old ? *upper : 0.5 * (*upper + *lower);
      }
  }

  void find_ritz_pairs() {
    symmetric_eigen(projected_.get(), capacity_, size_, theta_.get(), rotation_.get());
    const int64_t most = args_.k + 1 > block_ ? args_.k + 1 : block_;
    n_ritz_ = most < size_ ? most : size_;
    rotate(n_ritz_);
    for (int64_t i = 0; i < n_ritz_; ++i) {
      double* residual = ritz_image_.get() + i * pitch_;
      combine(theta_.get() + i, 0, 0, ritz_.get() + i * pitch_, 1, pitch_, true, residual, 1);
      residuals_[i] = norm_of(residual, pitch_);
    }
    largest_ = std::fmax(std::fabs(theta_[0]), std::fabs(theta_[size_ - 1]));
  }

  void rotate(int64_t count) {
    combine(rotation_.get(), size_, 1, basis_.get(), size_, pitch_, false, ritz_.get(), count);
    combine(rotation_.get(), size_, 1, image_.get(), size_, pitch_, false, ritz_image_.get(), count);
  }

  // The next Ritz value is there for the eigengap alone: its error is the square of its residual over its own gap.
  bool is_converged(double tolerance) const {
    for (int64_t i = 0; i < args_.k; ++i)
      if (!(residuals_[i] <= tolerance * largest_)) return false;
    const double next_tolerance = std::fmax(tolerance, 1e-3);
    return args_.k == d_ || residuals_[args_.k] <= next_tolerance * largest_;
  }

  // Appends the residuals of the leading Ritz vectors to the basis; returns how many.
  int64_t expand() {
    int64_t wanted = 0;
    const Scratch<double> directions(block_ * pitch_);
    for (int64_t i = 0; i < n_ritz_ && wanted < block_; ++i)
      if (residuals_[i] > kNoise * largest_)
        std::memcpy(directions.get() + wanted++ * pitch_, ritz_image_.get() + i * pitch_,
                    size_t(pitch_) * sizeof(double));
    if (size_ + wanted > capacity_ && capacity_ < d_) restart();
    if (size_ + wanted > capacity_) wanted = capacity_ - size_;
    if (wanted > 0)
      std::memcpy(basis_.get() + size_ * pitch_, directions.get(), size_t(wanted * pitch_) * sizeof(double));
    return orthonormalize(basis_.get(), size_, wanted, pitch_);
  }

  void restart() {
    const int64_t kept = kRestartBlocks * block_;
    rotate(kept);
    std::memcpy(basis_.get(), ritz_.get(), size_t(kept * pitch_) * sizeof(double));
    std::memcpy(image_.get(), ritz_image_.get(), size_t(kept * pitch_) * sizeof(double));
    for (int64_t i = 0; i < kept; ++i)
      for (int64_t j = 0; j < kept; ++j) projected_[i * capacity_ + j] = i == j ? theta_[i] : 0;
    size_ = kept;
  }

  const TopEigenvectorsArgs& args_;
  Product& product_;
  const int64_t d_, block_, pitch_, capacity_;
  int64_t size_ = 0, n_ritz_ = 0, iterations_ = 0;
  bool converged_ = false;
  double largest_ = 0;
  Scratch<double> basis_, image_;      // (size, pitch) orthonormal rows V, and C V
  Scratch<double> ritz_, ritz_image_;  // Ritz vectors, and their residuals C v − θ v
  Scratch<double> projected_;          // (capacity, capacity) Vᵀ C V
  Scratch<double> theta_, rotation_, residuals_;
};

template <class In>
void solve_covariance(const TopEigenvectorsArgs& args, int64_t layer, int threads) {
  CovarianceProduct<In> product(static_cast<const In*>(args.layers[layer]), args.rows, threads);
  RitzIteration iteration(args, product);
  iteration.run(args.start, args.tolerance, args.max_iterations);
  iteration.store(layer);
}

template <class In>
void solve_data(const TopEigenvectorsArgs& args, int64_t layer, int threads) {
  using Rows = DataProduct<ComputeOf<In>, In>;
  const In* data = static_cast<const In*>(args.layers[layer]);
  const int64_t d = args.rows.d;
  double* mean = args.mean + layer * d;
  const Scratch<double> start(args.block * d);
  std::memcpy(start.get(), args.start, size_t(args.block * d) * sizeof(double));
  RowView sample = args.rows;
  sample.n /= kSampleStep;
  sample.row_stride *= kSampleStep;
  if (sample.n >= kLeastSample) {
    Rows product(data, sample, args.center, args.block, threads, mean);
    RitzIteration iteration(args, product);
    iteration.run(args.start, kSampleTolerance, kSampleIterations);
    iteration.next_start(args.start, start.get());
  }
  Rows product(data, args.rows, args.center, args.block, threads, mean);
  RitzIteration iteration(args, product);
  iteration.run(start.get(), args.tolerance, args.max_iterations);
  iteration.store(layer);
}

template <class In>
void solve_layer(const TopEigenvectorsArgs& args, int64_t layer, int threads) {
  if (args.covariance)
    solve_covariance<In>(args, layer, threads);
  else
    solve_data<In>(args, layer, threads);
}

}  // namespace

void top_eigenvectors(const TopEigenvectorsArgs& args) {
  with_element_type(args.rows.dtype, [&](const auto* element) {
    using In = std::remove_const_t<std::remove_pointer_t<decltype(element)>>;
    // Many layers: a thread takes whole layers, whose matrix then stays in its cache. The rest share their panels.
    const int64_t whole = args.threads > 1 ? args.n_layers / args.threads * args.threads : args.n_layers;
    parallel_for(whole, args.threads, [&](int64_t layer) { solve_layer<In>(args, layer, 1); });
    for (int64_t layer = whole; layer < args.n_layers; ++layer) solve_layer<In>(args, layer, args.threads);
  });
}

}  // namespace CONE_ISA

CONE_FORWARD(top_eigenvectors, TopEigenvectorsArgs)

}  // namespace cone
