#include "cuda/moments/warp_kernel.cuh"

namespace cone {
namespace cuda {

template void launch_warps<BFloat16>(const WarpParams&, int, unsigned, size_t, const Queue&);

}  // namespace cuda
}  // namespace cone
