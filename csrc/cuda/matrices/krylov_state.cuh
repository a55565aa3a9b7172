// What the iteration keeps of every layer between kernels, in device memory.
#pragma once

#include <cstdint>

namespace cone {
namespace cuda {
namespace {

struct LayerState {
  double scale;          // images are scale · C v: a power of two that brings C near 1
  double element_scale;  // of data; scale is its square
  int64_t size, fresh;   // vectors with images, and behind them new ones without
  int64_t iterations;
};

// Arrays of all layers; capacity: rows of a layer's basis.
struct Krylov {
  int64_t d, capacity, block, k, segment_rows;
  LayerState* states;     // (L)
  double *basis, *image;  // (L, capacity, d) orthonormal rows V, and C V
  double* ritz;           // (L, ritz_rows, d) residuals, then rows of a restart
  int64_t ritz_rows;
  double* projected;               // (L, capacity, capacity) Vᵀ C V
  double* small;                   // (L, …) what does not fit into shared memory
  float* center;                   // (L, d) of data, scaled and rounded
  double *center_error, *partial;  // (L, d) what rounding took off; see the kernels that write them
  uint8_t* done;                   // (L)
};

}  // namespace
}  // namespace cuda
}  // namespace cone
