// Top eigenvectors on a GPU: what csrc/include/cone/top_eigenvectors.h says, for all layers at once.
#pragma once

#include "cone/top_eigenvectors.h"
#include "cuda/matrices/matrix_args.h"

namespace cone {
namespace cuda {

struct TopEigenvectorsArgs : DeviceArgs<cone::TopEigenvectorsArgs> {
  uint8_t* done;  // (L) whether the layer's results are stored
};

// How many float64 values of workspace the kernels need.
int64_t top_eigenvectors_workspace(const TopEigenvectorsArgs& args);

// begin, then steps until all layers are done: each multiplies a block of vectors of every layer that is not done by
// its matrix and solves the problem projected on the blocks kept. A layer that is done has stored its results and set
// its flag; after max_iterations steps all are. Nothing waits for the device.
void top_eigenvectors_begin(const TopEigenvectorsArgs& args, const Queue& queue);
void top_eigenvectors_steps(const TopEigenvectorsArgs& args, int64_t steps, const Queue& queue);

}  // namespace cuda
}  // namespace cone
