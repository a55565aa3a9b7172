// Second moments on a GPU: what csrc/include/cone/second_moment.h says, on tensor cores.
#pragma once

#include "cuda/matrices/matrix_args.h"

namespace cone {
namespace cuda {

struct SecondMomentArgs {
  MatrixArgs x;
  const uint8_t* use;     // (L, n) or null
  const double* weights;  // (L, n) or null
  const double* pilot;    // (L, d) or null
  bool about_pilot;
  double* moment;       // (L, d, d), the upper triangle is added to
  double* workspace;    // second_moment_workspace(args) values
  int64_t most_shared;  // bytes of shared memory that a block can have
};

// How many float64 values the kernels need beside the arguments. Bounded, but for one value per entry of the moment.
int64_t second_moment_workspace(const SecondMomentArgs& args);

// bfloat16 and float16 rows without weights and pilot are multiplied as they are. Else (x · weight − pilot) · scale,
// each column scaled by a power of two, is split into two float16 values (22 bits) and three products of these are
// added. Tensor cores add up the products of at most 32 rows (bfloat16: 64), compensated float32 those of a split of
// the rows, then float64 takes over. The order is fixed by the shape.
void second_moment(const SecondMomentArgs& args, const Place& place);

}  // namespace cuda
}  // namespace cone
