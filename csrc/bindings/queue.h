// The device and stream of a CUDA kernel as Python hands them over: two integers.
#pragma once

#include "bindings/pointers.h"
#include "cuda/common/queue.h"

namespace cone {
namespace bindings {

using DeviceAndStream = std::tuple<int, Address>;

inline cuda::Queue queue_of(const DeviceAndStream& queue) {
  return {std::get<0>(queue), reinterpret_cast<cudaStream_t>(std::get<1>(queue))};
}

}  // namespace bindings
}  // namespace cone
