#include "cuda/common/block_sums.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/common/layers.cuh"
#include "cuda/moments/moments.cuh"

namespace cone {
namespace cuda {
namespace {

// One warp a sentence.
__global__ void __launch_bounds__(kWarpSize)
    list_tokens_kernel(const uint8_t* mask, int64_t n_tokens, int32_t* positions, int32_t* sizes) {
  const int64_t sentence = blockIdx.x;
  int size = 0;
  for (int64_t begin = 0; begin < n_tokens; begin += kWarpSize) {
    const int64_t token = begin + lane_of_thread();
    const bool kept = token < n_tokens && mask[sentence * n_tokens + token] != 0;
    const unsigned all_kept = __ballot_sync(kAllLanes, kept);
    const unsigned before = all_kept & ((1u << lane_of_thread()) - 1);
    if (kept) positions[sentence * n_tokens + size + __popc(before)] = int32_t(token);
    size += __popc(all_kept);
  }
  if (threadIdx.x == 0) sizes[sentence] = size;
}

}  // namespace

std::vector<int> architectures() { return {__CUDA_ARCH_LIST__}; }

void list_tokens(const uint8_t* mask, int64_t n_sentences, int64_t n_tokens, int32_t* positions, int32_t* sizes,
                 const Queue& queue) {
  check_count("list_tokens", "sentences", n_sentences);
  check_count("list_tokens", "tokens", n_tokens);
  Stream("list_tokens", queue.device, queue.stream)
      .launch(list_tokens_kernel, dim3(unsigned(n_sentences)), kWarpSize, 0, mask, n_tokens, positions, sizes);
}

}  // namespace cuda
}  // namespace cone
