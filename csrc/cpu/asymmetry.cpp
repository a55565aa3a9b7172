#include <cmath>

#include "cone/parallel.h"
#include "cone/top_eigenvectors.h"
#include "cpu/isa.h"
#include "cpu/row_access.h"
#include "cpu/scratch.h"

namespace cone {
namespace CONE_ISA {
namespace {

constexpr int64_t kTile = 32;          // a tile and its mirror image stay in the first-level cache
constexpr int64_t kPitch = kTile + 8;  // of the mirror image, so that a column of it is not all in one cache set

template <class C>
inline Vec<C> larger(Vec<C> a, Vec<C> b) {
  return a > b ? a : b;
}

template <class C>
inline double largest_lane(Vec<C> v) {
  double largest = 0;
  for (int lane = 0; lane < kLanes<C>; ++lane) largest = v[lane] > largest ? double(v[lane]) : largest;
  return largest;
}

// Rows [i0, i0 + kTile) from the diagonal on: the largest |C − Cᵀ| and |C|.
template <class C, class In>
void compare_rows(const In* matrix, const RowView& view, int64_t i0, double* apart, double* largest) {
  const int64_t d = view.d, height = i0 + kTile < d ? kTile : d - i0;
  C row[kTile] = {}, column[kTile] = {}, mirror[kTile * kPitch] = {};
  Vec<C> differences{}, sizes{};
  for (int64_t j0 = i0; j0 < d; j0 += kTile) {
    const int64_t width = j0 + kTile < d ? kTile : d - j0;
    for (int64_t j = 0; j < width; ++j) {
      widen_row<C>(matrix + (j0 + j) * view.row_stride + i0 * view.col_stride, view.col_stride, height, column);
      for (int64_t i = 0; i < height; ++i) mirror[i * kPitch + j] = column[i];
    }
    for (int64_t i = 0; i < height; ++i) {
      for (int64_t j = width; j < kTile; ++j) row[j] = mirror[i * kPitch + j] = 0;
      widen_row<C>(matrix + (i0 + i) * view.row_stride + j0 * view.col_stride, view.col_stride, width, row);
      for (int64_t j = 0; j < kTile; j += kLanes<C>) {
        const Vec<C> a = load<C>(row + j), b = load<C>(mirror + i * kPitch + j), difference = a - b;
        sizes = larger<C>(larger<C>(a, -a), larger<C>(larger<C>(b, -b), sizes));
        differences = larger<C>(larger<C>(difference, -difference), differences);
      }
    }
  }
  *apart = largest_lane<C>(differences);
  *largest = largest_lane<C>(sizes);
}

template <class In>
void compare_layers(const AsymmetryArgs& args) {
  using C = ComputeOf<In>;
  const int64_t d = args.rows.d, strips = (d + kTile - 1) / kTile, tasks = args.n_layers * strips;
  const Scratch<double> apart(tasks, 0.0), largest(tasks, 0.0);
  parallel_for(tasks, threads_for(args.n_layers * d * d, args.threads), [&](int64_t task) {
    const In* matrix = static_cast<const In*>(args.layers[task / strips]);
    compare_rows<C>(matrix, args.rows, task % strips * kTile, apart.get() + task, largest.get() + task);
  });
  *args.apart = *args.largest = 0;
  for (int64_t task = 0; task < tasks; ++task) {
    *args.apart = std::fmax(*args.apart, apart[task]);
    *args.largest = std::fmax(*args.largest, largest[task]);
  }
}

}  // namespace

void asymmetry(const AsymmetryArgs& args) {
  with_element_type(args.rows.dtype, [&](const auto* element) {
    compare_layers<std::remove_const_t<std::remove_pointer_t<decltype(element)>>>(args);
  });
}

}  // namespace CONE_ISA

CONE_FORWARD(asymmetry, AsymmetryArgs)

}  // namespace cone
