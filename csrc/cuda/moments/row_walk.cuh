// The rows of a part in the order in which they are added, a batch at a time. Items and rows are numbered in 32 bits,
// which the launchers see to; offsets are counted in 64.
#pragma once

#include "cuda/common/block_sums.cuh"
#include "cuda/moments/moments.cuh"

namespace cone {
namespace cuda {

// Some rows of one run: of a sentence, or of the rows of one group that a part takes.
struct BatchPlace {
  int group, run, first, n;  // first: which of the run's rows the batch starts with
  bool ends_run;
};

// Walks the groups of part blockIdx.x, and the items of its slice of each.
class ItemWalk {
 public:
  __device__ __forceinline__ explicit ItemWalk(const Segments& segments)
      : segments_(segments), group_(int(blockIdx.x) / segments.slices - segments.group_parts) {}

  __device__ __forceinline__ int group() const { return group_; }
  __device__ __forceinline__ int begin() const { return begin_; }
  __device__ __forceinline__ int end() const { return end_; }
  __device__ __forceinline__ int item(int group, int k) const {
    return segments_.order != nullptr ? int(__ldg(segments_.order + k)) : group + k * int(segments_.groups);
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
      begin_ = int(start + size * slice() / segments_.slices);
      end_ = int(start + size * (slice() + 1) / segments_.slices);
    } while (begin_ == end_);
    return true;
  }

 private:
  __device__ __forceinline__ int slice() const { return int(blockIdx.x) % segments_.slices; }

  const Segments& segments_;
  int group_, begin_ = 0, end_ = 0;
};

// Rows one by one. The numbers of the next 32 are kept one a lane, so kRows must divide 32.
template <int kRows>
class RowWalk {
 public:
  __device__ __forceinline__ RowWalk(const Segments& segments, const RowView& rows) : items_(segments), rows_(rows) {}

  // The next batch; false after the last one. No row makes an empty run.
  template <class OnEmpty>
  __device__ __forceinline__ bool next(BatchPlace& place, const OnEmpty&) {
    if (at_ == items_.end()) {
      if (!items_.next_group()) return false;
      at_ = items_.begin();
    }
    if (window(at_) == 0) of_lane_ = items_.item(items_.group(), min(at_ + lane_of_thread(), items_.end() - 1));
    place = {items_.group(), items_.group(), at_, min(kRows, items_.end() - at_), at_ + kRows >= items_.end()};
    at_ += place.n;
    return true;
  }

  // Row t of the batch that came last; all lanes must ask.
  __device__ __forceinline__ int row(const BatchPlace& last, int t) const {
    return __shfl_sync(kAllLanes, of_lane_, window(last.first) + t);
  }
  // Row t of any batch.
  __device__ __forceinline__ int row_of(const BatchPlace& place, int t) const {
    return items_.item(place.group, place.first + t);
  }
  __device__ __forceinline__ int64_t offset(int, int row) const { return row * rows_.row_stride; }
  __device__ __forceinline__ int64_t number(int, int row) const { return row; }

 private:
  __device__ __forceinline__ int window(int k) const { return (k - items_.begin()) % kWarpSize; }

  ItemWalk items_;
  const RowView& rows_;
  int at_ = 0, of_lane_ = 0;
};

// Tokens sentence by sentence; a row is a position in the padded sentence, or a row of the packed tokens.
template <int kRows>
class TokenWalk {
 public:
  __device__ __forceinline__ TokenWalk(const Segments& segments, const HiddenStates& hidden, const TokenLists& lists)
      : items_(segments), hidden_(hidden), lists_(lists) {}

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
    place = {items_.group(), sentence_, at_, min(kRows, size_ - at_), at_ + kRows >= size_};
    at_ += place.n;
    return true;
  }

  __device__ __forceinline__ int row(const BatchPlace& last, int t) const {
    return __shfl_sync(kAllLanes, of_lane_, last.first % kWarpSize + t);
  }
  __device__ __forceinline__ int row_of(const BatchPlace& place, int t) const {
    return position(place.run, place.first + t);
  }
  __device__ __forceinline__ int64_t offset(int sentence, int row) const {
    return row * hidden_.token_stride + (lists_.padded() ? sentence * hidden_.sentence_stride : 0);
  }
  __device__ __forceinline__ int64_t number(int sentence, int row) const {
    return row + (lists_.padded() ? sentence * hidden_.n_tokens : 0);
  }
  __device__ __forceinline__ int size(int sentence) const {
    if (lists_.padded()) return __ldg(lists_.sizes + sentence);
    return int(__ldg(lists_.cu_seqlens + sentence + 1) - __ldg(lists_.cu_seqlens + sentence));
  }
  __device__ __forceinline__ int position(int sentence, int k) const {
    if (lists_.padded()) return __ldg(lists_.positions + sentence * hidden_.n_tokens + k);
    return int(__ldg(lists_.cu_seqlens + sentence)) + k;
  }

 private:
  ItemWalk items_;
  const HiddenStates& hidden_;
  const TokenLists& lists_;
  int item_ = 0, upcoming_ = 0, sentence_ = 0, at_ = 0, size_ = 0, of_lane_ = 0;
};

}  // namespace cuda
}  // namespace cone
