// How the rows of a warp come: by asynchronous copies into a ring of its own in shared memory, each lane the columns
// that it adds. Lanes read each other's for the norms of two-byte elements alone.
#pragma once

#include "cuda/moments/warp_launch.cuh"
#include "cuda/moments/warp_sums.cuh"

namespace cone {
namespace cuda {

// How many bytes of each piece of an octet are below column d: 16 or none, one byte for each piece.
template <class In>
__device__ __forceinline__ int bytes_below(int octet, int d) {
  const int lane = lane_of_thread();
  const int first = first_of_four<In>(octet, 0, lane) < d ? 16 : 0;
  return sizeof(In) == 2 ? first : first | (first_of_four<In>(octet, 1, lane) < d ? 16 : 0) << 8;
}

// Where rows are, one after the other, in bytes from a layer's first row: as listed by 16 bytes. Each lane holds the
// place of one of 32 rows, since a load for each row would be waited for at the next branch.
class ListedRows {
 public:
  __device__ __forceinline__ explicit ListedRows(const uint32_t* list) : list_(list) {}

  // Goes on to the next 32 rows, so many behind those before; `left`: how many there are.
  __device__ __forceinline__ void turn(int behind, int left) {
    list_ += behind;
    const int lane = read_lane();
    places_ = lane < left ? __ldg(list_ + lane) : 0;
    if (lane + kWarpSize < left) prefetch(list_ + lane + kWarpSize);
  }
  // The place of row i of 32.
  __device__ __forceinline__ int64_t operator()(int i) {
    return int64_t{__shfl_sync(kAllLanes, places_, i)} * kRowUnit;
  }

 private:
  const uint32_t* list_;
  uint32_t places_ = 0;
};

// All as far apart.
class RowsApart {
 public:
  __device__ __forceinline__ RowsApart(int64_t first, int64_t bytes) : next_(first), bytes_(bytes) {}

  __device__ __forceinline__ void turn(int, int) {}
  __device__ __forceinline__ int64_t operator()(int) {
    const int64_t place = next_;
    next_ += bytes_;
    return place;
  }

 private:
  int64_t next_;
  const int64_t bytes_;
};

// The ring of one warp, of kRows rows that are there or on their way. Norms are taken some rows at a time, so that sums
// over lanes wait for each other less. What decides for the whole warp is counted, row by row or batch by batch, and
// not asked of memory.
template <class In, int kOctets, class Rows, int kRows>
class RowRing {
 public:
  using Shape = WarpShape<In, kOctets>;

  // layer: a layer's first row; rows: where each of n rows is.
  __device__ __forceinline__ RowRing(unsigned char* memory, const In* layer, const Rows& rows, int n, int64_t d)
      : layer_(reinterpret_cast<const unsigned char*>(layer) + lane_of_thread() * 16),
        rows_(rows),
        to_copy_(n),
        last_bytes_(bytes_below<In>(kOctets - 1, int(d))),
        at_(memory + lane_of_thread() * 16) {
    rows_.turn(0, to_copy_);
#pragma unroll 1
    for (int i = 0; i < kRows; ++i) start_copy(i);
    rows_.turn(kRows, to_copy_);
  }

  // Adds the next rows to WarpSums, or to others that take rows alike.
  template <class Sums>
  __device__ __forceinline__ void add(Sums& sums, int rows) {
    while (rows > 0) {
      if (left_of_batch_ == 0) begin_batch(sums);
      const int now = min(rows, left_of_batch_);
#pragma unroll 1
      for (int i = 0; i < now; ++i) add_next(sums);
      rows -= now;
      left_of_batch_ -= now;
    }
  }

 private:
  static constexpr int kPieceBytes = 16 * kWarpSize, kPiecesPerOctet = int(sizeof(In)) / 2;
  static constexpr int kLanesPerRow = kWarpSize / Shape::kBatch;

  // Another row is begun to be copied to its place then.
  template <class Sums>
  __device__ __forceinline__ void add_next(Sums& sums) {
    const auto row = [&](int octet) { return read(at_, octet); };
    if (unsafe_ >> lane_of_norm_ & 1) {
      sums.add_unsafe(row);
    } else {
      sums.add(row, __shfl_sync(kAllLanes, inverse_, lane_of_norm_));
      if (lane_of_thread() == lane_of_norm_) sums.note_unit_sq(lane_of_norm_ / kLanesPerRow, unit_sq_);
    }
    lane_of_norm_ += kLanesPerRow;
    start_copy(row_of_window_++);
  }

  // The place of a row after the next one.
  __device__ __forceinline__ const unsigned char* after(int rows) const {
    return at_ + (slot_ + rows < kRows ? rows : rows - kRows) * Shape::kRowBytes;
  }

  __device__ __forceinline__ Octet<In> read(const unsigned char* row, int octet) const {
    Octet<In> result;
#pragma unroll
    for (int i = 0; i < kPiecesPerOctet; ++i) {
      const uint4 four = *reinterpret_cast<const uint4*>(row + (octet * kPiecesPerOctet + i) * kPieceBytes);
      result.words[4 * i] = four.x;
      result.words[4 * i + 1] = four.y;
      result.words[4 * i + 2] = four.z;
      result.words[4 * i + 3] = four.w;
    }
    return result;
  }

  // Takes the norms of the next rows, whose copies have ended then, kLanesPerRow lanes having that of one row.
  template <class Sums>
  __device__ __forceinline__ void begin_batch(Sums& sums) {
    static_assert(kMostTerms % Shape::kBatch == 0);
    left_of_batch_ = Shape::kBatch;
    lane_of_norm_ = 0;
    static_assert(kMostTerms == kWarpSize);
    if (row_of_window_ == kWarpSize) {
      sums.make_room();
      rows_.turn(kWarpSize, to_copy_);
      row_of_window_ = 0;
    }
    wait_for_copies<kRows - Shape::kBatch>();
    const float norm_sq = norms_of_batch();
    // Rows that are not there any more are zeros, whose norms are not noted.
    const bool safe = norm_sq >= kLeastSafeNormSq && norm_sq <= kMostSafeNormSq;  // NaN is not
    unsafe_ = __ballot_sync(kAllLanes, !safe);
    const float inverse = inverse_ = inverse_root(norm_sq);
    unit_sq_ = norm_sq * inverse * inverse;
    if (safe && lane_of_thread() % kLanesPerRow == 0)
      sums.note_norm(lane_of_thread() / kLanesPerRow, norm_sq * inverse, norm_sq);
  }

  __device__ __forceinline__ float norms_of_batch() const {
    if constexpr (sizeof(In) == 2) {
      __syncwarp();  // the other lanes' copies have ended too
      const float norm_sq = norms_by_products();
      __syncwarp();  // and their places may be copied to
      return norm_sq;
    } else {
      float squares[Shape::kBatch] = {};
#pragma unroll
      for (int i = 0; i < Shape::kBatch; ++i) {
        const unsigned char* const row = after(i);
        float apart[2] = {};
#pragma unroll
        for (int o = 0; o < kOctets; ++o) {
          const Octet<In> octet = read(row, o);
#pragma unroll
          for (int k = 0; k < kColumns; ++k) apart[k % 2] = fmaf(octet[k], octet[k], apart[k % 2]);
        }
        squares[i] = apart[0] + apart[1];
        asm volatile("" ::: "memory");  // or all rows would be read at once, into registers that the sums need
      }
      return sums_of_lanes(squares);
    }
  }

  // By matrix products: eight vectors, halves of four rows, times themselves; the diagonal is wanted. Four lanes read a
  // vector. Products are added at most 32 to a chain, since tensor cores cut off and do not round.
  __device__ __forceinline__ float norms_by_products() const {
    static_assert(Shape::kBatch == 4);
    constexpr MatrixType kType = std::is_same_v<In, BFloat16> ? MatrixType::kBFloat16 : MatrixType::kFloat16;
    const int lane = read_lane(), vector = lane / 4, odd = vector % 2;
    const unsigned char* const half =
        after(vector % 4) - lane * 16 + vector / 4 * (Shape::kRowBytes / 2) + lane % 4 * 16;
    // Rows begin in the same banks, so every other vector takes its pieces of 64 bytes in another order.
    const unsigned char* const even_pieces = half + 64 * odd;
    const unsigned char* const odd_pieces = half + 64 * (1 - odd);
    float first = 0, second = 0;  // two neighbours in the row of the product, of which one is on the diagonal
#pragma unroll 1
    for (int begin = 0; begin < 4 * kOctets; begin += 4) {
      float c[4][4] = {};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int piece = begin + i;
        const uint4 four = *reinterpret_cast<const uint4*>((i % 2 == 0 ? even_pieces : odd_pieces) + piece / 2 * 128);
        const unsigned low[2] = {four.x, four.y}, high[2] = {four.z, four.w};
        // Rows 0 to 7 of a matrix are the vectors' first words, rows 8 to 15 their second ones.
        multiply_add<kType>(low, four.x, c[0]);
        multiply_add<kType>(low, four.y, c[1]);
        multiply_add<kType>(high, four.z, c[2]);
        multiply_add<kType>(high, four.w, c[3]);
      }
      first += (c[0][0] + c[2][0]) + (c[1][2] + c[3][2]);
      second += (c[0][1] + c[2][1]) + (c[1][3] + c[3][3]);
    }
    const float of_vector = odd ? second : first;  // in lane 4 v + v / 2 that of vector v
    const int row = lane / kLanesPerRow;
    return __shfl_sync(kAllLanes, of_vector, 4 * row + row / 2) +
           __shfl_sync(kAllLanes, of_vector, 4 * (row + 4) + (row + 4) / 2);
  }

  // Begins to copy a row, number i of the rows' window, into the slot at at_, and goes on to the next slot.
  __device__ __forceinline__ void start_copy(int i) {
    const unsigned char* const from = layer_ + rows_(i);
    const bool there = to_copy_ > 0;
#pragma unroll
    for (int o = 0; o < kOctets; ++o)
#pragma unroll
      for (int piece = 0; piece < kPiecesPerOctet; ++piece) {
        const int bytes = !there ? 0 : o + 1 < kOctets ? 16 : last_bytes_ >> 8 * piece & 0xff;
        const int place = (o * kPiecesPerOctet + piece) * kPieceBytes;
        copy_async(at_ + place, from + place, bytes);
      }
    commit_copies();
    const bool last = slot_ + 1 == kRows;
    slot_ = last ? 0 : slot_ + 1;
    at_ += last ? (1 - kRows) * Shape::kRowBytes : Shape::kRowBytes;
    --to_copy_;
  }

  const unsigned char* const layer_;
  Rows rows_;
  int to_copy_;           // rows that are not begun to be copied; negative where the ring is no longer full
  const int last_bytes_;  // that a lane copies of the last octet: a byte for each piece
  unsigned char* at_;     // the next row, in slot_
  int slot_ = 0;
  int row_of_window_ = 0;                     // of 32 rows; after them sums are moved out of the registers
  int left_of_batch_ = 0, lane_of_norm_ = 0;  // rows whose norms are taken; where the next one's is
  unsigned unsafe_ = 0;                       // of lanes whose rows' squares do not fit float32
  float inverse_ = 0, unit_sq_ = 0;           // what this lane has of its row of the batch
};

}  // namespace cuda
}  // namespace cone
