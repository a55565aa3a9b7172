// What a device is asked of itself.
#pragma once

#include <algorithm>

#include "cuda/common/launch.cuh"
#include "cuda/common/layers.cuh"

namespace cone {
namespace cuda {

// An attribute of a device, without making a context on it; an error is thrown with the op's name.
inline int device_attribute(const char* op, cudaDeviceAttr which, int device) {
  int value = 0;
  check(op, cudaDeviceGetAttribute(&value, which, device));
  return value;
}

// Blocks that share a layer's rows, at most `most`: those of all layers of a launch in one wave where they fit; else so
// many that the last wave is as full as others.
inline int blocks_of_layer(int64_t n_layers, int64_t most, int64_t blocks_in_a_wave) {
  constexpr int64_t kMostWaves = 4;
  const int64_t layers = std::min(n_layers, int64_t{Layers::kMost});
  const auto waves = [&](int64_t blocks) { return (layers * blocks + blocks_in_a_wave - 1) / blocks_in_a_wave; };
  int64_t best = std::max(int64_t{1}, blocks_in_a_wave / layers);
  for (int64_t blocks = best + 1; waves(blocks) <= kMostWaves; ++blocks)
    // A block's share of the rows is 1 / blocks; a tenth less time is worth more blocks.
    if (10 * waves(blocks) * best < 9 * waves(best) * blocks) best = blocks;
  return int(std::min(best, std::max(int64_t{1}, most)));
}

}  // namespace cuda
}  // namespace cone
