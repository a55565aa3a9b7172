// How the rows of a warp come: by asynchronous copies into a ring of its own in shared memory, each lane the columns
// that it adds, so that no lane waits for another.
#pragma once

#include "cuda/moments/warp_launch.cuh"
#include "cuda/moments/warp_sums.cuh"

namespace cone {
namespace cuda {

// The first column of a lane's octet.
__device__ __forceinline__ int octet_column(int octet) { return octet * kWarpColumns + lane_of_thread() * kColumns; }

// The rows of the tokens that count, one after the other. A window is 32 places of a sentence's row of tokens; what the
// next one holds is read while this one's rows are on their way.
template <class In>
class TokenCursor {
 public:
  // Of the sentences [begin, end) of the plan's order.
  __device__ __forceinline__ TokenCursor(const WarpParams& params, int layer, int begin, int end)
      : params_(params), layer_(layer), next_(begin), end_(end) {
    if (begin == end) return;
    upcoming_ = int(__ldg(params.plan.order + begin));
    look_ahead();
  }

  // Where this lane's columns of the next row are; null after the last one.
  __device__ __forceinline__ const unsigned char* next() {
    while (tokens_ == 0) {
      if (next_ >= end_) return nullptr;
      window_ = next_window_;
      tokens_ = __ballot_sync(kAllLanes, next_kept_);
      begin_ += kWarpSize;
      if (begin_ < size_) {
        next_window_ += int64_t{kWarpSize} * params_.token_bytes;
        read_window();
      } else {
        ++next_;
        look_ahead();
      }
    }
    const unsigned token = unsigned(__ffs(int(tokens_)) - 1);
    tokens_ &= tokens_ - 1;
    return window_ + uint64_t{token} * params_.token_bytes;
  }

 private:
  // Begins with the sentence at next_.
  __device__ __forceinline__ void look_ahead() {
    if (next_ >= end_) return;
    const HiddenStates& hidden = params_.tokens.hidden;
    sentence_ = upcoming_;
    if (next_ + 1 < end_) upcoming_ = int(__ldg(params_.plan.order + next_ + 1));
    if (hidden.cu_seqlens == nullptr) {
      begin_ = 0;
      size_ = int(hidden.n_tokens);
      next_window_ = first_row() + sentence_ * params_.sentence_bytes;
    } else {
      const int64_t first = __ldg(hidden.cu_seqlens + sentence_);
      begin_ = 0;
      size_ = int(__ldg(hidden.cu_seqlens + sentence_ + 1) - first);
      next_window_ = first_row() + first * params_.token_bytes;
    }
    read_window();
  }

  // This lane's columns of it.
  __device__ __forceinline__ const unsigned char* first_row() const {
    return reinterpret_cast<const unsigned char*>(static_cast<const In*>(params_.layers.addresses[layer_]) +
                                                  octet_column(0));
  }

  __device__ __forceinline__ void read_window() {
    const HiddenStates& hidden = params_.tokens.hidden;
    const int token = begin_ + lane_of_thread();
    next_kept_ = token < size_ &&
                 (hidden.cu_seqlens != nullptr || __ldg(hidden.mask + sentence_ * hidden.n_tokens + token) != 0);
  }

  const WarpParams& params_;
  const int layer_;  // of this launch
  const unsigned char *window_ = nullptr, *next_window_ = nullptr;
  unsigned tokens_ = 0;  // of the window that still are to come
  // Of the next window: the sentence, which is at next_ of the plan's order, and where in it.
  int next_, end_, sentence_ = 0, begin_ = 0, size_ = 0, upcoming_ = 0;
  bool next_kept_ = false;
};

// The ring of one warp. Its rows' norms are taken some rows at a time, so that sums over lanes wait for each other
// less.
template <class In, int kOctets>
class RowRing {
 public:
  using Shape = WarpShape<In, kOctets>;

  // n: how many rows there are.
  __device__ __forceinline__ RowRing(unsigned char* memory, const HiddenStates& hidden, int n,
                                     const TokenCursor<In>& cursor)
      : hidden_(hidden), to_come_(n), at_(memory + lane_of_thread() * 16), cursor_(cursor) {
#pragma unroll 1
    for (int i = 0; i < Shape::kRows - 1; ++i) {
      start_copy(at_);
      at_ += Shape::kRowBytes;
    }
  }

  // Adds the next row to the sums; another one is begun to be copied to the place of the row before it.
  __device__ __forceinline__ void add_next(WarpSums<In, kOctets>& sums) {
    start_copy(at_);
    const bool last = slot_ + 1 == Shape::kRows;
    slot_ = last ? 0 : slot_ + 1;
    at_ += last ? -(Shape::kRows - 1) * Shape::kRowBytes : Shape::kRowBytes;
    if (lane_of_norm_ == kWarpSize) take_norms(sums);
    const auto row = [&](int octet) { return read(at_, octet); };
    if (unsafe_ >> lane_of_norm_ & 1) {
      sums.add_unsafe(row);
    } else {
      sums.add(row, __shfl_sync(kAllLanes, inverse_, lane_of_norm_));
      if (lane_of_thread() == lane_of_norm_) sums.unit_sq += double(unit_sq_);
    }
    lane_of_norm_ += kLanesPerRow;
  }

 private:
  static constexpr int kPieceBytes = 16 * kWarpSize, kPiecesPerOctet = int(sizeof(In)) / 2;
  static constexpr int kLanesPerRow = kWarpSize / Shape::kBatch;

  // The place of a row after the one that came last.
  __device__ __forceinline__ const unsigned char* after(int rows) const {
    return at_ + (slot_ + rows < Shape::kRows ? rows : rows - Shape::kRows) * Shape::kRowBytes;
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
  __device__ __forceinline__ void take_norms(WarpSums<In, kOctets>& sums) {
    wait_for_copies<Shape::kRows - Shape::kBatch>();
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
    const float norm_sq = sums_of_lanes(squares);
    const bool there = lane_of_thread() / kLanesPerRow < to_come_;
    const bool safe = norm_sq >= kLeastSafeNormSq && norm_sq <= kMostSafeNormSq;  // NaN is not
    unsafe_ = __ballot_sync(kAllLanes, there && !safe);
    float inverse = rsqrtf(norm_sq);
    inverse *= fmaf(-0.5f * norm_sq * inverse, inverse, 1.5f);  // a step of Newton's: to the last bit or two
    inverse_ = inverse;
    unit_sq_ = norm_sq * inverse * inverse;
    if (there && safe && lane_of_thread() % kLanesPerRow == 0) {
      sums.norm_sum += double(norm_sq * inverse);
      sums.norm_sq_sum += double(norm_sq);
    }
    to_come_ -= Shape::kBatch;
    lane_of_norm_ = 0;
  }

  __device__ __forceinline__ void start_copy(unsigned char* to) {
    const unsigned char* const from = cursor_.next();
    if (from != nullptr) {
#pragma unroll
      for (int o = 0; o < kOctets; ++o)
#pragma unroll
        for (int i = 0; i < kPiecesPerOctet; ++i)
          copy_async(to + (o * kPiecesPerOctet + i) * kPieceBytes, from + o * kWarpColumns * int(sizeof(In)) + 16 * i,
                     octet_column(o) < int(hidden_.d) ? 16 : 0);
    }
    commit_copies();
  }

  const HiddenStates& hidden_;
  int to_come_;        // rows whose norms are not taken yet
  unsigned char* at_;  // the row that came last, in slot_
  int slot_ = Shape::kRows - 1;
  // Of the rows whose norms are taken: where the next one's is, and what this lane has of its row.
  int lane_of_norm_ = kWarpSize;
  unsigned unsafe_ = 0;  // of lanes whose rows' squares do not fit float32
  float inverse_ = 0, unit_sq_ = 0;
  TokenCursor<In> cursor_;
};

}  // namespace cuda
}  // namespace cone
