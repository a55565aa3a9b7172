// Top eigenvectors on a GPU: what csrc/include/cone/top_eigenvectors.h says, for all layers at once.
#pragma once

#include "cuda/matrices/matrix_args.h"

namespace cone {
namespace cuda {

struct TopEigenvectorsArgs {
  MatrixArgs x;
  bool covariance, center;
  int64_t k;
  double tolerance;
  int64_t max_iterations;
  const double* start;  // (block, d)
  int64_t block;
  double *values, *vectors, *residuals;  // (L, k), (L, k, d), (L, k)
  int64_t* iterations;                   // (L)
  double *next_value, *mean;             // (L), and (L, d) for data
  uint8_t *converged, *done;             // (L)
  double* workspace;                     // top_eigenvectors_workspace(args) values
  int64_t most_shared;                   // bytes of shared memory that a block can have
};

int64_t top_eigenvectors_workspace(const TopEigenvectorsArgs& args);

// begin, then steps until all layers are done: each multiplies a block of vectors of every layer that is not done by
// its matrix and solves the problem projected on the blocks kept. A layer that is done has stored its results and set
// its flag; after max_iterations steps all are. Nothing waits for the device.
void top_eigenvectors_begin(const TopEigenvectorsArgs& args, const Place& place);
void top_eigenvectors_steps(const TopEigenvectorsArgs& args, int64_t steps, const Place& place);

}  // namespace cuda
}  // namespace cone
