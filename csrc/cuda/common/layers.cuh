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

}  // namespace cuda
}  // namespace cone
