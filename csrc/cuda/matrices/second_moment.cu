// Second moments: layers and chunks of rows that share a bounded workspace, one after another.
#include <algorithm>

#include "cuda/common/device.cuh"
#include "cuda/matrices/moment_tiles.cuh"
#include "cuda/matrices/second_moment.h"

namespace cone {
namespace cuda {
namespace {

constexpr int64_t kMostRows = 65536, kMostPlaneRows = 8192;    // of one chunk, without planes and with
constexpr int64_t kPlaneValues = int64_t(64) << 20;            // of one plane
constexpr int64_t kPartialValues = int64_t(16) << 20;          // sums, of the tiles of several layers or splits
constexpr int64_t kBlocksWanted = 528, kLeastSplitRows = 512;  // four blocks for each multiprocessor of a large GPU
constexpr int64_t kMostLayers = 65535;                         // of a grid

// Bytes of shared memory that a block can have: 99 KB on every GPU of compute capability 8.0 or more, and at least
// 163 KB on those that run TwoPlanes.
static_assert(kGramShared<OnePlane<MatrixType::kFloat16>> <= 99 << 10 &&
              kGramShared<OnePlane<MatrixType::kBFloat16>> <= 99 << 10 &&
              kGramShared<TwoPlanesInLittleMemory> <= 99 << 10);
static_assert(kGramShared<TwoPlanes> <= 163 << 10);

enum class Source {
  kAsTheyAre,  // 16-bit rows that can be copied 16 bytes at a time
  kCopied,     // other 16-bit rows
  kPlanes,     // all else, as two float16 planes
};

// How the work is cut, and what of the workspace it takes: by shape and strides alone.
struct Plan {
  Source source;
  int64_t pitch, rows, layers, tiles, splits, split_rows, parts;

  explicit Plan(const SecondMomentArgs& args) {
    const RowView& x = args.rows;
    const bool raw = x.dtype != DType::kFloat32 && !args.weights && !args.pilot;
    source = !raw ? Source::kPlanes : loads_together(x, args.layer_stride, 2, 8) ? Source::kAsTheyAre : Source::kCopied;
    pitch = (x.d + 7) / 8 * 8;
    rows = std::min(x.n, source == Source::kPlanes ? kMostPlaneRows : kMostRows);
    layers = std::min(args.n_layers, kMostLayers);
    if (source != Source::kAsTheyAre) {
      rows = std::min(rows, std::max(int64_t(kPartRows), kPlaneValues / pitch / kPartRows * kPartRows));
      layers = std::max(int64_t(1), std::min(layers, kPlaneValues / (rows * pitch)));
    }
    parts = parts_of(rows);
    const int64_t blocks = (x.d + kTile - 1) / kTile;
    tiles = blocks * (blocks + 1) / 2;
    layers = std::max(int64_t(1), std::min(layers, kPartialValues / (tiles * kTileSize)));
    const int64_t wanted = std::min((kBlocksWanted + tiles * layers - 1) / (tiles * layers),
                                    std::max(int64_t(1), kPartialValues / (tiles * kTileSize * layers)));
    const int64_t most = std::max(int64_t(1), std::min(wanted, rows / kLeastSplitRows));
    split_rows = ((rows + most - 1) / most + kMostStageRows - 1) / kMostStageRows * kMostStageRows;
    splits = (rows + split_rows - 1) / split_rows;
  }

  int64_t partial_values() const { return layers * splits * tiles * kTileSize; }
  int64_t plane_values() const { return layers * rows * pitch; }  // a multiple of 8
  int64_t workspace() const {
    if (source == Source::kAsTheyAre) return partial_values();
    if (source == Source::kCopied) return partial_values() + plane_values() / 4;
    return partial_values() + plane_values() / 2 + layers * (2 * parts + 1) * pitch + layers * parts;
  }
};

Planes planes_of(const Plan& plan, int64_t rows, double* workspace) {
  Planes planes = {};
  planes.rows = rows;
  planes.pitch = plan.pitch;
  planes.high = reinterpret_cast<uint16_t*>(workspace + plan.partial_values());
  planes.low = planes.high + plan.plane_values();
  planes.largest = workspace + plan.partial_values() + plan.plane_values() / 2;
  planes.sums = planes.largest + plan.layers * plan.parts * plan.pitch;
  planes.unscale = planes.sums + plan.layers * plan.parts * plan.pitch;
  planes.counts = planes.unscale + plan.layers * plan.pitch;
  return planes;
}

template <class Staging, MatrixType kType>
void multiply(const Stream& stream, const Plan& plan, GramRows x, int64_t layers, WideSum* partial) {
  x.split_rows = plan.split_rows;
  const int64_t splits = (x.n + plan.split_rows - 1) / plan.split_rows;
  stream.launch(multiply_tiles<Staging, kType>, dim3(unsigned(plan.tiles), unsigned(splits), unsigned(layers)),
                kGramThreads, kGramShared<Staging>, x, partial);
}

// Adds one chunk of rows of some layers.
template <class In>
void add_chunk(const Stream& stream, const SecondMomentArgs& args, const Plan& plan, const GivenRows<In>& given,
               int64_t layers, double* moment) {
  const int64_t n = given.rows.n;
  const Planes planes = planes_of(plan, n, args.workspace);
  static_assert(sizeof(WideSum) == sizeof(double));
  WideSum* const partial = reinterpret_cast<WideSum*>(args.workspace);
  const int splits = int((n + plan.split_rows - 1) / plan.split_rows);
  const dim3 strips(unsigned(plan.tiles), kTile / kStripRows, unsigned(layers));
  const GramRows of_planes = {planes.high, planes.low, n * plan.pitch, plan.pitch, n, plan.pitch, nullptr, 0, 0};
  if (plan.source == Source::kPlanes) {
    make_planes(stream, given, planes, layers);
    if (kGramShared<TwoPlanes> <= size_t(args.most_shared))
      multiply<TwoPlanes, MatrixType::kFloat16>(stream, plan, of_planes, layers, partial);
    else
      multiply<TwoPlanesInLittleMemory, MatrixType::kFloat16>(stream, plan, of_planes, layers, partial);
    const double* pilot = args.about_pilot ? nullptr : given.pilot;
    constexpr size_t kShared = sizeof(ColumnTerms) * (kStripRows + kTile) + sizeof(double);
    stream.launch(add_plane_tiles, strips, kAddThreads, kShared, partial, splits, planes, parts_of(n), pilot,
                  given.rows.d, moment);
    return;
  }
  if constexpr (!std::is_same_v<In, float>) {
    GramRows x = of_planes;
    if (plan.source == Source::kCopied)
      copy(stream, given, planes, layers);
    else
      x = {reinterpret_cast<const uint16_t*>(given.rows.data),
           nullptr,
           given.rows.layer_stride,
           given.rows.row_stride,
           n,
           given.rows.d,
           given.use,
           given.row_numbers,
           0};
    constexpr MatrixType kType = std::is_same_v<In, BFloat16> ? MatrixType::kBFloat16 : MatrixType::kFloat16;
    multiply<OnePlane<kType>, kType>(stream, plan, x, layers, partial);
    stream.launch(add_raw_tiles<In>, strips, kAddThreads, (1 + kAddWarps) * kStripColumns, partial, splits, given,
                  moment);
  }
}

template <class In>
void add_all(const Stream& stream, const SecondMomentArgs& args) {
  const Plan plan(args);
  const RowView& x = args.rows;
  for (int64_t layer = 0; layer < args.n_layers; layer += plan.layers)
    for (int64_t row = 0; row < x.n; row += plan.rows) {
      GivenRows<In> given = {rows_of<In>(x, args.layer_stride),
                             args.use,
                             args.weights,
                             x.n,
                             args.pilot,
                             loads_together(x, args.layer_stride, sizeof(In), 4)};
      given.rows.data += layer * args.layer_stride + row * x.row_stride;
      given.rows.n = std::min(plan.rows, x.n - row);
      if (given.use) given.use += layer * x.n + row;
      if (given.weights) given.weights += layer * x.n + row;
      if (given.pilot) given.pilot += layer * x.d;
      add_chunk(stream, args, plan, given, std::min(plan.layers, args.n_layers - layer),
                args.moment + layer * x.d * x.d);
    }
}

bool has_work(const SecondMomentArgs& args) { return args.n_layers > 0 && args.rows.n > 0 && args.rows.d > 0; }

}  // namespace

int64_t most_shared_memory(int device) {
  return device_attribute("most_shared_memory", cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
}

int64_t second_moment_workspace(const SecondMomentArgs& args) { return has_work(args) ? Plan(args).workspace() : 0; }

void second_moment(const SecondMomentArgs& args, const Queue& queue) {
  if (!has_work(args)) return;
  const Stream stream("second_moment", queue.device, queue.stream);
  with_element_type(args.rows.dtype, [&](const auto* element) {
    add_all<std::remove_const_t<std::remove_pointer_t<decltype(element)>>>(stream, args);
  });
}

}  // namespace cuda
}  // namespace cone
