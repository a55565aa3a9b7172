// Second moments on a GPU: what csrc/include/cone/second_moment.h says, on tensor cores.
#pragma once

#include "cone/second_moment.h"
#include "cuda/matrices/matrix_args.h"

namespace cone {
namespace cuda {

using SecondMomentArgs = DeviceArgs<cone::SecondMomentArgs>;

// How many float64 values of workspace the kernels need. Bounded, but for one value per entry of the moment.
int64_t second_moment_workspace(const SecondMomentArgs& args);

// bfloat16 and float16 rows without weights and pilot are multiplied as they are. Else (x · weight − pilot) · scale,
// each column scaled by a power of two, is split into two float16 values (22 bits) and three products of these are
// added. Tensor cores add up the products of at most 32 rows (bfloat16: 64), compensated float32 those of a split of
// the rows, then float64 takes over. The order is fixed by the shape.
void second_moment(const SecondMomentArgs& args, const Queue& queue);

}  // namespace cuda
}  // namespace cone
