// All layers in one launch: their addresses travel with the kernel's parameters, of which there are 4 KB.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

namespace cone {
namespace cuda {

// Rows, tokens and sentences are numbered in 32 bits, with room for a step past the last one.
constexpr int64_t kMostNumbered = std::numeric_limits<int32_t>::max() - 1024;

inline void check_count(const char* op, const char* what, int64_t count) {
  if (count > kMostNumbered)
    throw std::invalid_argument(std::string(op) + ": got " + std::to_string(count) + " " + what +
                                "; it must be at most " + std::to_string(kMostNumbered));
}

struct Layers {
  static constexpr int kMost = 128;
  const void* addresses[kMost];
  int64_t first;  // the layer's number is first + blockIdx.y
};

// Calls launch(layers, count) for as many layers at a time as go with one launch.
template <class Launch>
void for_layers(const void* const* addresses, int64_t n_layers, const Launch& launch) {
  for (int64_t first = 0; first < n_layers; first += Layers::kMost) {
    Layers layers;
    layers.first = first;
    const int64_t count = std::min(n_layers - first, int64_t{Layers::kMost});
    std::copy(addresses + first, addresses + first + count, layers.addresses);
    launch(layers, unsigned(count));
  }
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
