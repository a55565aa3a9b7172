// The rows of a part in the order in which they are added, a batch at a time.
#pragma once

#include "cuda/block_sums.cuh"
#include "cuda/moments.cuh"

namespace cone {
namespace cuda {

// Some rows of one run: of a sentence, or of the rows of one group that a part takes.
struct BatchPlace {
  int64_t group, run, first;  // first: which of the run's rows the batch starts with
  int n;
};

// Walks the groups of a part, and the items of its slice of each.
class ItemWalk {
 public:
  __device__ __forceinline__ ItemWalk(const Segments& segments, int part)
      : segments_(segments), slice_(part % segments.slices), group_(part / segments.slices - segments.group_parts) {}

  __device__ __forceinline__ int64_t group() const { return group_; }
  __device__ __forceinline__ int64_t begin() const { return begin_; }
  __device__ __forceinline__ int64_t end() const { return end_; }
  __device__ __forceinline__ int64_t item(int64_t group, int64_t k) const {
    return segments_.order != nullptr ? __ldg(segments_.order + k) : group + k * segments_.groups;
  }

  // Goes on to the next group that has items; false where there is none.
  __device__ __forceinline__ bool next_group() {
    do {
      group_ += segments_.group_parts;
      if (group_ >= segments_.groups) return false;
      int64_t start = 0, size = 0;
      if (segments_.order != nullptr) {
        start = __ldg(segments_.starts + group_);
        size = __ldg(segments_.starts + group_ + 1) - start;
      } else if (group_ < segments_.items) {
        size = (segments_.items - group_ + segments_.groups - 1) / segments_.groups;
      }
      begin_ = start + size * slice_ / segments_.slices;
      end_ = start + size * (slice_ + 1) / segments_.slices;
    } while (begin_ == end_);
    return true;
  }

 private:
  const Segments& segments_;
  const int slice_;
  int64_t group_, begin_ = 0, end_ = 0;
};

// Rows one by one. The numbers of the next 32 are kept one a lane, so kRows must divide 32.
template <int kRows>
class RowWalk {
 public:
  __device__ __forceinline__ RowWalk(const Segments& segments, int part, int64_t row_stride)
      : items_(segments, part), row_stride_(row_stride) {}

  // The next batch; false after the last one. No row makes an empty run.
  template <class OnEmpty>
  __device__ __forceinline__ bool next(BatchPlace& place, const OnEmpty&) {
    if (at_ == items_.end()) {
      if (!items_.next_group()) return false;
      at_ = items_.begin();
    }
    in_window_ = int(at_ - items_.begin()) % kWarpSize;
    if (in_window_ == 0) of_lane_ = items_.item(items_.group(), min(at_ + lane_of_thread(), items_.end() - 1));
    place = {items_.group(), items_.group(), at_, int(min(int64_t{kRows}, items_.end() - at_))};
    at_ += place.n;
    return true;
  }

  // Row t of the batch that came last; all lanes must ask.
  __device__ __forceinline__ int64_t row(int t) const { return __shfl_sync(kAllLanes, of_lane_, in_window_ + t); }
  // Row t of any batch.
  __device__ __forceinline__ int64_t row_of(const BatchPlace& place, int t) const {
    return items_.item(place.group, place.first + t);
  }
  __device__ __forceinline__ int64_t offset(const BatchPlace&, int64_t row) const { return row * row_stride_; }
  __device__ __forceinline__ int64_t number(const BatchPlace&, int64_t row) const { return row; }

 private:
  ItemWalk items_;
  const int64_t row_stride_;
  int64_t at_ = 0, of_lane_ = 0;
  int in_window_ = 0;
};

// Tokens sentence by sentence; a "row" is a position in the padded sentence, or a row of the packed tokens.
template <int kRows>
class TokenWalk {
 public:
  __device__ __forceinline__ TokenWalk(const Segments& segments, int part, const HiddenStates& hidden,
                                       const TokenLists& lists)
      : items_(segments, part), hidden_(hidden), lists_(lists) {}

  // Sentences without a token are handed to on_empty.
  template <class OnEmpty>
  __device__ __forceinline__ bool next(BatchPlace& place, const OnEmpty& on_empty) {
    while (at_ == size_) {
      if (item_ == items_.end()) {
        if (!items_.next_group()) return false;
        item_ = items_.begin();
        upcoming_ = items_.item(items_.group(), item_);
      }
      sentence_ = upcoming_;
      if (++item_ < items_.end()) upcoming_ = items_.item(items_.group(), item_);
      at_ = 0;
      size_ = size(sentence_);
      if (size_ == 0) on_empty(sentence_);
    }
    if (at_ % kWarpSize == 0) of_lane_ = position(sentence_, min(at_ + lane_of_thread(), size_ - 1));
    place = {items_.group(), sentence_, at_, int(min(int64_t{kRows}, size_ - at_))};
    at_ += place.n;
    return true;
  }

  __device__ __forceinline__ int64_t row(int t) const {
    return __shfl_sync(kAllLanes, of_lane_, int(at_ - 1) / kRows * kRows % kWarpSize + t);
  }
  __device__ __forceinline__ int64_t row_of(const BatchPlace& place, int t) const {
    return position(place.run, place.first + t);
  }
  __device__ __forceinline__ int64_t offset(const BatchPlace& place, int64_t row) const {
    return row * hidden_.token_stride + (lists_.positions != nullptr ? place.run * hidden_.sentence_stride : 0);
  }
  __device__ __forceinline__ int64_t number(const BatchPlace& place, int64_t row) const {
    return row + (lists_.positions != nullptr ? place.run * hidden_.n_tokens : 0);
  }

  __device__ __forceinline__ int64_t size(int64_t sentence) const {
    if (lists_.positions != nullptr) return __ldg(lists_.sizes + sentence);
    return __ldg(lists_.cu_seqlens + sentence + 1) - __ldg(lists_.cu_seqlens + sentence);
  }
  __device__ __forceinline__ int64_t position(int64_t sentence, int64_t k) const {
    if (lists_.positions != nullptr) return __ldg(lists_.positions + sentence * hidden_.n_tokens + k);
    return __ldg(lists_.cu_seqlens + sentence) + k;
  }

 private:
  ItemWalk items_;
  const HiddenStates& hidden_;
  const TokenLists& lists_;
  int64_t item_ = 0, upcoming_ = 0, sentence_ = 0, at_ = 0, size_ = 0, of_lane_ = 0;
};

}  // namespace cuda
}  // namespace cone
