#include "cuda/common/block_sums.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/layers.cuh"
#include "cuda/moments/moments.cuh"

namespace cone {
namespace cuda {
namespace {

// The groups of 32 · kLoads items, read before the first is needed; beyond the last item a group that is no one's.
constexpr int kLoads = 8;
struct ItemGroups {
  int64_t of[kLoads];

  __device__ ItemGroups(const int64_t* group_of, int64_t begin, int64_t items, int64_t groups) {
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      const int64_t item = begin + k * kWarpSize + lane_of_thread();
      of[k] = item < items ? group_of[item] : groups;
    }
  }
};

// One warp a group, and one more that only counts: how many items are of groups before its own, then its own in order.
__global__ void __launch_bounds__(kWarpSize)
    list_items_kernel(const int64_t* group_of, int64_t items, int64_t groups, int64_t* order, int64_t* starts) {
  constexpr int kStep = kLoads * kWarpSize;
  const int64_t group = blockIdx.x;
  int64_t at = 0;
  for (int64_t begin = 0; begin < items; begin += kStep) {
    const ItemGroups found(group_of, begin, items, groups);
#pragma unroll
    for (int k = 0; k < kLoads; ++k) at += __popc(__ballot_sync(kAllLanes, found.of[k] < group));
  }
  if (threadIdx.x == 0) starts[group] = at;
  if (group == groups) return;
  for (int64_t begin = 0; begin < items; begin += kStep) {
    const ItemGroups found(group_of, begin, items, groups);
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      const bool own = found.of[k] == group;
      const unsigned all_own = __ballot_sync(kAllLanes, own);
      const unsigned before = all_own & ((1u << lane_of_thread()) - 1);
      if (own) order[at + __popc(before)] = begin + k * kWarpSize + lane_of_thread();
      at += __popc(all_own);
    }
  }
}

}  // namespace

void list_items(const int64_t* group_of, int64_t items, int64_t groups, int64_t* order, int64_t* starts,
                const Queue& queue) {
  check_count("list_items", "items", items);
  Stream("list_items", queue.device, queue.stream)
      .launch(list_items_kernel, dim3(unsigned(groups + 1)), kWarpSize, 0, group_of, items, groups, order, starts);
}

}  // namespace cuda
}  // namespace cone
