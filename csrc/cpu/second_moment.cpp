// Second moments: rows less the pilot are copied into panels of columns, and the upper triangle of their product is
// computed in register tiles, block of rows by block of rows.
#include "cone/second_moment.h"

#include <cmath>

#include "cone/parallel.h"
#include "cpu/isa.h"
#include "cpu/row_access.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"

namespace cone {
namespace CONE_ISA {
namespace {

constexpr int64_t kBlockRows = 512;               // copied into panels together
constexpr int64_t kSumRows = 128;                 // summed in the compute type, then added to float64
constexpr int64_t kWaveBytes = int64_t(8) << 20;  // panels of the layers that are worked on together
constexpr int64_t kProductsPerElement = 4;        // made in the time in which other kernels go through an element

// A register tile is kTileRows columns of one panel times the kPanelVectors vectors of another.
#if defined(__AVX512F__)
constexpr int kTileRows = 8, kPanelVectors = 2;
#elif defined(__AVX2__)
constexpr int kTileRows = 4, kPanelVectors = 3;
#else
constexpr int kTileRows = 4, kPanelVectors = 2;
#endif
template <class C>
constexpr int kPanel = kPanelVectors * kLanes<C>;
template <class C>
constexpr int kStripPanels = 128 / kPanel<C>;  // a task fills the panels of one strip, or multiplies two
template <class C>
constexpr int kStrip = kStripPanels<C> * kPanel<C>;

// One layer's block of rows in panels, and what turns their product into the moment. Columns are padded to whole
// strips.
template <class C>
struct Layer {
  C* panels;                   // (panels, kBlockRows, kPanel)
  double* pilot;               // (columns)
  double* sum;                 // (columns) t = Σ (x − pilot)
  double* unscale;             // (columns) panel value · unscale = x − pilot
  const int64_t* row_numbers;  // rows to take; null: all
  int64_t n_rows;
};

// Outside this range squares of float32 values might leave float32, so that the column is scaled by a power of two.
template <class C>
bool needs_scale(double largest) {
  return std::is_same_v<C, float> && largest > 0 && largest < HUGE_VAL && !(largest > 0x1p-40 && largest < 0x1p40);
}

// Copies rows [first, first + rows) of one strip into its panels, and adds them to `sum`: as they are before they are
// rounded, for that error is much the same for all rows, and `sum` is multiplied by the pilot.
template <class C, class In>
void fill_panels(const SecondMomentArgs& args, const Layer<C>& layer, int64_t l, int64_t strip, int64_t first,
                 int64_t rows) {
  constexpr int kWidth = kStrip<C>;
  const RowView& view = args.rows;
  const int64_t j0 = strip * kWidth, columns = view.d - j0 < kWidth ? view.d - j0 : kWidth;
  const In* data = static_cast<const In*>(args.layers[l]) + j0 * view.col_stride;
  const double* pilot = layer.pilot + j0;
  C* panels = layer.panels + j0 * kBlockRows;
  C raw[kWidth] = {};
  double scale[kWidth], sum[kWidth], largest[kWidth];
  for (int j = 0; j < kWidth; ++j) scale[j] = 1;

  for (bool again = true; again;) {
    for (int j = 0; j < kWidth; ++j) sum[j] = largest[j] = 0;
    for (int64_t k = 0; k < rows; ++k) {
      const int64_t i = layer.row_numbers ? layer.row_numbers[first + k] : first + k;
      const double weight = args.weights ? args.weights[l * view.n + i] : 1;
      widen_row<C>(data + i * view.row_stride, view.col_stride, columns, raw);
      for (int panel = 0; panel < kStripPanels<C>; ++panel) {
        C* out = panels + (panel * kBlockRows + k) * kPanel<C>;
        for (int c = 0; c < kPanel<C>; ++c) {
          const int j = panel * kPanel<C> + c;
          const double x = double(raw[j]) * weight - pilot[j];
          const double magnitude = std::fabs(x);
          largest[j] = magnitude > largest[j] ? magnitude : largest[j];
          out[c] = C(x * scale[j]);
          sum[j] += x;
        }
      }
    }
    again = false;
    for (int j = 0; j < columns; ++j)
      if (scale[j] == 1 && needs_scale<C>(largest[j])) {
        again = true;
        scale[j] = std::ldexp(1.0, -std::ilogb(largest[j]));
      }
  }
  for (int j = 0; j < columns; ++j) {
    layer.unscale[j0 + j] = 1 / scale[j];
    layer.sum[j0 + j] += sum[j];
  }
}

// tile (kTileRows, kPanel) = aᵀ b over `rows` rows of two panels.
template <class C>
void multiply_panels(const C* a, const C* b, int64_t rows, C* tile) {
  Vec<C> acc[kTileRows][kPanelVectors] = {};
  for (int64_t k = 0; k < rows; ++k, a += kPanel<C>, b += kPanel<C>) {
    Vec<C> right[kPanelVectors];
    for (int v = 0; v < kPanelVectors; ++v) right[v] = load<C>(b + v * kLanes<C>);
    for (int i = 0; i < kTileRows; ++i) {
      const Vec<C> left = broadcast(a[i]);
      for (int v = 0; v < kPanelVectors; ++v) acc[i][v] += left * right[v];
    }
  }
  std::memcpy(tile, acc, sizeof acc);
}

// What is done with a product of strips after the last block.
struct Finish {
  bool add_pilot;  // p tᵀ + t pᵀ + n p pᵀ is added
  bool mirror;     // the lower triangle is written
};

// Adds row i of a tile, `product` of columns [j_first, j_end) of the panel at j0, to row i of the moment.
template <class C>
void add_tile_row(const Layer<C>& layer, const double* product, int64_t i, int64_t j0, int64_t j_first, int64_t j_end,
                  bool add_pilot, double* out) {
  // Whole panels, of which not all columns may be wanted: the loops have no ends to look for.
  double scaled[kPanel<C>], of_pilot[kPanel<C>];
  const double unscale = layer.unscale[i];
  for (int c = 0; c < kPanel<C>; ++c) scaled[c] = product[c] * (unscale * layer.unscale[j0 + c]);
  for (int64_t j = j_first; j < j_end; ++j) out[j] += scaled[j - j0];
  if (!add_pilot) return;
  const double pilot = layer.pilot[i], sum = layer.sum[i], n = double(layer.n_rows);
  for (int c = 0; c < kPanel<C>; ++c)
    of_pilot[c] = pilot * (layer.sum[j0 + c] + n * layer.pilot[j0 + c]) + sum * layer.pilot[j0 + c];
  for (int64_t j = j_first; j < j_end; ++j) out[j] += of_pilot[j - j0];
}

// Adds the product of strips s <= t to the moment.
template <class C>
void multiply_strips(const Layer<C>& layer, int64_t s, int64_t t, int64_t rows, Finish finish, int64_t d,
                     double* moment) {
  constexpr int kWidth = kStrip<C>;
  for (int64_t j0 = t * kWidth; j0 < (t + 1) * kWidth && j0 < d; j0 += kPanel<C>) {
    const int64_t j_end = j0 + kPanel<C> < d ? j0 + kPanel<C> : d;
    for (int64_t i0 = s * kWidth; i0 < (s + 1) * kWidth && i0 < j_end; i0 += kTileRows) {
      const C* left = layer.panels + i0 / kPanel<C> * kPanel<C> * kBlockRows + i0 % kPanel<C>;
      const C* right = layer.panels + j0 * kBlockRows;
      double sums[kTileRows * kPanel<C>] = {};
      for (int64_t k = 0; k < rows; k += kSumRows) {
        C tile[kTileRows * kPanel<C>];
        multiply_panels(left + k * kPanel<C>, right + k * kPanel<C>, rows - k < kSumRows ? rows - k : kSumRows, tile);
        for (int c = 0; c < kTileRows * kPanel<C>; ++c) sums[c] += double(tile[c]);
      }
      const int64_t i_end = i0 + kTileRows < j_end ? i0 + kTileRows : j_end;
      for (int64_t i = i0; i < i_end; ++i)
        add_tile_row(layer, sums + (i - i0) * kPanel<C>, i, j0, i > j0 ? i : j0, j_end, finish.add_pilot,
                     moment + i * d);
      if (!finish.mirror) continue;
      for (int64_t j = j0; j < j_end; ++j)
        for (int64_t i = i0; i < i_end && i < j; ++i) moment[j * d + i] = moment[i * d + j];
    }
  }
}

// The strips s <= t of the triangle's task number `pair`, column of strips by column of strips.
inline void strips_of_pair(int64_t pair, int64_t& s, int64_t& t) {
  for (t = 0; pair > t; ++t) pair -= t + 1;
  s = pair;
}

template <class C, class In>
void second_moment_of(const SecondMomentArgs& args) {
  const int64_t n = args.rows.n, d = args.rows.d;
  const int64_t strips = (d + kStrip<C> - 1) / kStrip<C>, columns = strips * kStrip<C>;
  const int threads = threads_for(args.n_layers * n * d * d / kProductsPerElement, args.threads);
  const int64_t pairs = strips * (strips + 1) / 2;
  const int64_t block_rows = n < kBlockRows ? n : kBlockRows, panels_size = columns * kBlockRows;
  int64_t wave = kWaveBytes / (columns * block_rows * int64_t(sizeof(C)));
  wave = wave < 1 ? 1 : wave > args.n_layers ? args.n_layers : wave;

  const Scratch<C> panels(wave * panels_size);
  const Scratch<double> vectors(wave * 3 * columns);
  const Scratch<int64_t> row_numbers(args.use ? wave * n : 0);
  const Scratch<Layer<C>> layers(wave);

  for (int64_t l0 = 0; l0 < args.n_layers; l0 += wave) {
    const int64_t count = args.n_layers - l0 < wave ? args.n_layers - l0 : wave;
    int64_t most_rows = 0;
    for (int64_t w = 0; w < count; ++w) {
      Layer<C>& layer = layers[w];
      double* pilot = vectors.get() + w * 3 * columns;
      layer = {panels.get() + w * panels_size, pilot, pilot + columns, pilot + 2 * columns, nullptr, n};
      for (int64_t j = 0; j < columns; ++j) {
        pilot[j] = args.pilot && j < d ? args.pilot[(l0 + w) * d + j] : 0;
        layer.sum[j] = 0;
      }
      if (args.use) {
        int64_t* numbers = row_numbers.get() + w * n;
        layer.row_numbers = numbers;
        layer.n_rows = 0;
        for (int64_t i = 0; i < n; ++i)
          if (args.use[(l0 + w) * n + i]) numbers[layer.n_rows++] = i;
      }
      most_rows = layer.n_rows > most_rows ? layer.n_rows : most_rows;
    }
    for (int64_t first = 0; first < most_rows; first += kBlockRows) {
      const auto rows_of = [&](int64_t w) {
        const int64_t rest = layers[w].n_rows - first;
        return rest < kBlockRows ? rest : kBlockRows;
      };
      parallel_for(count * strips, threads, [&](int64_t task) {
        const int64_t w = task / strips;
        if (rows_of(w) > 0) fill_panels<C, In>(args, layers[w], l0 + w, task % strips, first, rows_of(w));
      });
      parallel_for(count * pairs, threads, [&](int64_t task) {
        const int64_t w = task / pairs;
        int64_t s, t;
        strips_of_pair(task % pairs, s, t);
        const bool last = first + kBlockRows >= layers[w].n_rows;
        const Finish finish{last && args.pilot && !args.about_pilot, last && args.whole};
        if (rows_of(w) > 0) multiply_strips(layers[w], s, t, rows_of(w), finish, d, args.moment + (l0 + w) * d * d);
      });
    }
  }
}

}  // namespace

void second_moment(const SecondMomentArgs& args) {
  if (args.rows.n == 0 || args.rows.d == 0) return;
  with_element_type(args.rows.dtype, [&](const auto* element) {
    using In = std::remove_const_t<std::remove_pointer_t<decltype(element)>>;
    second_moment_of<ComputeOf<In>, In>(args);
  });
}

}  // namespace CONE_ISA

CONE_FORWARD(second_moment, SecondMomentArgs)

}  // namespace cone
