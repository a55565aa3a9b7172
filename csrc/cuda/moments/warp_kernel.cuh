// pool_moments where a warp takes whole rows. Rows come by asynchronous copies into a ring of the warp's own, each lane
// the columns that it adds, so that no lane waits for another; a norm takes one sum over lanes, and no block barrier.
// Every layer is shared out among the same number of warps, with about as much work each, in one wave of blocks.
#pragma once

#include "cuda/common/launch.cuh"
#include "cuda/moments/warp_launch.cuh"
#include "cuda/moments/warp_sums.cuh"

namespace cone {
namespace cuda {
namespace {

// The first column of a lane's octet.
__device__ __forceinline__ int octet_column(int octet) { return octet * kWarpColumns + lane_of_thread() * kColumns; }

// The rows of the tokens that count, one after the other. A window is 32 places of a sentence's row of tokens; what the
// next one holds is read while this one's rows are on their way.
class TokenCursor {
 public:
  // lane: where this lane's columns of the layer's first row are.
  __device__ __forceinline__ TokenCursor(const WarpParams& params, const void* lane, int begin, int end)
      : params_(params), lane_(static_cast<const unsigned char*>(lane)), next_(begin), end_(end) {
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
    if (hidden.mask != nullptr) {
      begin_ = 0;
      size_ = int(hidden.n_tokens);
      next_window_ = lane_ + sentence_ * params_.sentence_bytes;
    } else {
      const int64_t first = __ldg(hidden.cu_seqlens + sentence_);
      begin_ = 0;
      size_ = int(__ldg(hidden.cu_seqlens + sentence_ + 1) - first);
      next_window_ = lane_ + first * params_.token_bytes;
    }
    read_window();
  }

  __device__ __forceinline__ void read_window() {
    const HiddenStates& hidden = params_.tokens.hidden;
    const int token = begin_ + lane_of_thread();
    next_kept_ =
        token < size_ && (hidden.mask == nullptr || __ldg(hidden.mask + sentence_ * hidden.n_tokens + token) != 0);
  }

  const WarpParams& params_;
  const unsigned char* const lane_;
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
  __device__ __forceinline__ RowRing(unsigned char* memory, int64_t d, int n, const TokenCursor& cursor)
      : octets_(int(d - lane_of_thread() * kColumns + kWarpColumns - 1) / kWarpColumns),
        to_come_(n),
        at_(memory + lane_of_thread() * 16),
        cursor_(cursor) {
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
                     o < octets_ ? 16 : 0);
    }
    commit_copies();
  }

  const int octets_;   // that this lane has columns of
  int to_come_;        // rows whose norms are not taken yet
  unsigned char* at_;  // the row that came last, in slot_
  int slot_ = Shape::kRows - 1;
  // Of the rows whose norms are taken: where the next one's is, and what this lane has of its row.
  int lane_of_norm_ = kWarpSize;
  unsigned unsafe_ = 0;  // of lanes whose rows' squares do not fit float32
  float inverse_ = 0, unit_sq_ = 0;
  TokenCursor cursor_;
};

// A part of a layer: its sentences, group after group.
template <class In, int kOctets>
class Part {
 public:
  using Sums = WarpSums<In, kOctets>;

  __device__ __forceinline__ Part(const WarpParams& params, int layer, int part, int warp, Sums& sums)
      : params_(params),
        hidden_(params.tokens.hidden),
        layer_(layer),
        begin_(params.plan.cuts[part]),
        end_(params.plan.cuts[part + 1]),
        warp_(warp),
        sums_(sums) {}

  __device__ __forceinline__ void add_all(unsigned char* ring_memory) {
    if (begin_ < end_) {
      const int n = params_.plan.first[end_] - params_.plan.first[begin_];
      RowRing<In, kOctets> ring(ring_memory, hidden_.d, n,
                                TokenCursor(params_, first_row() + octet_column(0), begin_, end_));
      int group = group_at(begin_);
      for (int k = begin_; k < end_; ++k) {
        if (k == params_.plan.starts[group + 1]) {
          end_group(group);
          group = group_at(k);
        }
        add_sentence(int(__ldg(params_.plan.order + k)), params_.plan.first[k + 1] - params_.plan.first[k], ring);
      }
      end_group(group);
      wait_for_copies<0>();
    }
    const double norms = sum_of_lanes(sums_.norm_sum), norms_sq = sum_of_lanes(sums_.norm_sq_sum);
    if (lane_of_thread() > 0) return;
    double* const to = params_.partials.norms + 2 * int64_t{warp_};
    to[0] = norms;
    to[1] = norms_sq;
  }

 private:
  __device__ __forceinline__ int64_t number() const { return params_.layers.first + layer_; }
  __device__ __forceinline__ const In* first_row() const {
    return static_cast<const In*>(params_.layers.addresses[layer_]);
  }

  // The group of the sentence at place k of the plan's order.
  __device__ __forceinline__ int group_at(int k) const {
    return int(__ldg(params_.tokens.groups + __ldg(params_.plan.order + k)));
  }

  __device__ __forceinline__ void add_sentence(int sentence, int size, RowRing<In, kOctets>& ring) {
    if (size > kMostTerms) sums_.begin_long_run();
    for (int t = 0; t < size; ++t) {
      if (t > 0 && t % kMostTerms == 0) sums_.share_run();
      ring.add_next(sums_);
    }
    uint8_t status = sums_.seen;
    if (size == 0) {
      status = kEmpty;
      write_nan(sentence);
    } else if (sums_.is_long()) {
      const double share = 1 / double(size);
      sums_.end_long_run([&](int octet, const double (&sums)[kColumns]) {
        float means[kColumns];
#pragma unroll
        for (int k = 0; k < kColumns; ++k) means[k] = float(sums[k] * share);
        write_pooled(sentence, octet, means);
      });
    } else {
      const float n = float(size), share = 1 / n;
      sums_.end_short_run([&](int octet, const float (&sums)[kColumns]) {
        float means[kColumns];
#pragma unroll
        for (int k = 0; k < kColumns; ++k) {
          const float quotient = sums[k] * share;
          means[k] = fmaf(fmaf(-quotient, n, sums[k]), share, quotient);  // rounded once, but for a last bit at times
        }
        write_pooled(sentence, octet, means);
      });
    }
    if (status & kNonfinite) write_mean_of_all(sentence, 1 / double(size));
    if (lane_of_thread() == 0) {
      const int64_t at = number() * hidden_.n_sentences + sentence;
      params_.tokens.status[at] = status;
      if (params_.pooled_status != nullptr) params_.pooled_status[at] = status & kEmpty;
    }
    used_ += sums_.used;
    n_sentences_ += sums_.used > 0;
    size_squares_ += double(sums_.used) * double(sums_.used);
    sums_.used = 0;
    sums_.seen = kUsed;
  }

  __device__ __forceinline__ void write_pooled(int sentence, int octet, const float (&means)[kColumns]) const {
    const int column = octet_column(octet);
    if (column >= hidden_.d) return;
    float* to = static_cast<float*>(params_.tokens.pooled) + (number() * hidden_.n_sentences + sentence) * hidden_.d;
    store_four(to + column, means[0], means[1], means[2], means[3]);
    store_four(to + column + 4, means[4], means[5], means[6], means[7]);
  }

  __device__ __forceinline__ void write_nan(int sentence) const {
    float means[kColumns];
#pragma unroll
    for (int k = 0; k < kColumns; ++k) means[k] = __uint_as_float(0x7fc00000u);
#pragma unroll 1
    for (int o = 0; o < kOctets; ++o) write_pooled(sentence, o, means);
  }

  // The plain mean of a sentence with a token that is not finite.
  __device__ __forceinline__ void write_mean_of_all(int sentence, double share) const {
#pragma unroll 1
    for (int o = 0; o < kOctets; ++o) {
      const int column = octet_column(o);
      double total[kColumns] = {};
      const bool padded = hidden_.mask != nullptr;
      const int64_t begin = padded ? 0 : hidden_.cu_seqlens[sentence];
      const int64_t end = padded ? hidden_.n_tokens : hidden_.cu_seqlens[sentence + 1];
      if (column < hidden_.d)
        for (int64_t token = begin; token < end; ++token) {
          if (padded && hidden_.mask[sentence * hidden_.n_tokens + token] == 0) continue;
          const In* row =
              first_row() + (padded ? sentence * hidden_.sentence_stride : 0) + token * hidden_.token_stride;
          Octet<In> octet = {};
#pragma unroll
          for (int k = 0; k < kColumns; ++k) octet.put(k, row[column + k]);
#pragma unroll
          for (int k = 0; k < kColumns; ++k) total[k] += double(octet[k]);
        }
      float means[kColumns];
#pragma unroll
      for (int k = 0; k < kColumns; ++k) means[k] = float(total[k] * share);
      write_pooled(sentence, o, means);
    }
  }

  // Adds the group to the totals where no other part has sentences of it; else leaves it for the end.
  __device__ __forceinline__ void end_group(int group) {
    const int64_t* starts = params_.plan.starts;
    const bool begun_before = starts[group]<begin_, goes_on = starts[group + 1]> end_;
    const MomentSums& totals = params_.tokens.sums;
    const int64_t at = number() * totals.groups + group, place = 2 * int64_t{warp_} + (begun_before ? 0 : 1);
    const bool whole = !begun_before && !goes_on;
    double* const units = whole ? totals.unit_sum + at * hidden_.d : params_.partials.units + place * hidden_.d;
    const double scalars[] = {double(used_),
                              double(sums_.n_zero),
                              double(sums_.n_nonfinite),
                              sum_of_lanes(sums_.unit_sq),
                              sum_of_lanes(sums_.sentence_sq),
                              size_squares_,
                              double(n_sentences_)};
    if (lane_of_thread() == 0) {
      if (whole) {
        add_group_scalars(params_.tokens, at, scalars);
      } else {
#pragma unroll
        for (int i = 0; i < kGroupScalars; ++i) params_.partials.scalars[place * kGroupScalars + i] = scalars[i];
      }
    }
    sums_.end_group([&](int octet, const double (&values)[kColumns]) {
      const int column = octet_column(octet);
      if (column >= hidden_.d) return;
      double2* to = reinterpret_cast<double2*>(units + column);
#pragma unroll
      for (int i = 0; i < kColumns / 2; ++i) {
        const double2 before = whole ? to[i] : make_double2(0, 0);
        to[i] = make_double2(before.x + values[2 * i], before.y + values[2 * i + 1]);
      }
    });
    used_ = n_sentences_ = 0;
    size_squares_ = 0;
  }

  const WarpParams& params_;
  const HiddenStates& hidden_;
  const int layer_;  // of this launch
  const int begin_, end_;
  const int warp_;
  Sums& sums_;
  int used_ = 0, n_sentences_ = 0;  // of the group
  double size_squares_ = 0;
};

// Adds up what the warps of a block leave in shared memory, layer by layer, in the order of the warps.
template <class In, int kOctets>
__device__ __forceinline__ void write_columns(const WarpParams& params, const unsigned char* memory,
                                              const Leaving* leaving) {
  using Shape = WarpShape<In, kOctets>;
  constexpr int kTeams = warps_of(kOctets);
  const int64_t d = params.tokens.hidden.d;
  const int64_t of_warp = int64_t{kWideFields} * Shape::kColumns;
  for (int first = 0; first < kTeams && leaving[first].layer >= 0;) {
    const int layer = leaving[first].layer;
    int end = first;
    while (end < kTeams && leaving[end].layer == layer) ++end;
    double* to = params.partials.columns + (int64_t{blockIdx.x} + layer) * 3 * d;
    for (int i = int(threadIdx.x); i < 3 * Shape::kColumns; i += int(blockDim.x)) {
      // Element i of a warp's fields in shared memory is column `column` of field `field`.
      const int field = i / Shape::kColumns, place = i % Shape::kColumns;
      const int half = place / (4 * kWarpSize), lane = place / 4 % kWarpSize;
      const int column = half / 2 * kWarpColumns + lane * kColumns + half % 2 * 4 + place % 4;
      const int in_field = (half / 2 * kColumns + half % 2 * 4 + place % 4) * kWarpSize + lane;
      double total = 0;
      for (int warp = first; warp < end; ++warp) {
        total += double(reinterpret_cast<const float*>(memory + warp * Shape::kBytes)[i]);
        if (leaving[warp].in_wide >> field & 1)
          total += params.partials
                       .wide[(int64_t{blockIdx.x} * kTeams + warp) * of_warp + field * Shape::kColumns + in_field];
      }
      if (column < d) to[field * d + column] = total;
    }
    first = end;
  }
}

template <class In, int kOctets>
__global__ void __launch_bounds__(warps_of(kOctets) * kWarpSize, 1)
    warp_moments_kernel(const __grid_constant__ WarpParams params) {
  using Shape = WarpShape<In, kOctets>;
  constexpr int kTeams = warps_of(kOctets);
  unsigned char* const memory = shared_memory<unsigned char>();
  Leaving* const leaving = reinterpret_cast<Leaving*>(memory + kTeams * Shape::kBytes);
  const int warp = int(blockIdx.x) * kTeams + warp_of_thread();
  const int layer = warp / params.plan.parts, part = warp % params.plan.parts;
  Leaving left = {-1, 0};
  if (layer < params.n_layers) {
    unsigned char* const own = memory + warp_of_thread() * Shape::kBytes;
    WarpSums<In, kOctets> sums(own, params.partials.wide + int64_t{warp} * kWideFields * Shape::kColumns);
    Part<In, kOctets>(params, layer, part, warp, sums).add_all(own + kSharedFields * Shape::kFieldBytes);
    left = {layer, sums.end()};
  }
  if (lane_of_thread() == 0) leaving[warp_of_thread()] = left;
  __syncthreads();
  write_columns<In, kOctets>(params, memory, leaving);
}

}  // namespace

template <class In>
void launch_warps(const WarpParams& params, int octets, unsigned blocks, size_t shared_bytes, const Queue& queue) {
  void (*const kernels[])(WarpParams) = {warp_moments_kernel<In, 1>, warp_moments_kernel<In, 2>,
                                         warp_moments_kernel<In, 3>, warp_moments_kernel<In, 4>};
  Stream("pool_moments", queue.device, queue.stream)
      .launch(kernels[octets - 1], dim3(blocks), warps_of(octets) * kWarpSize, shared_bytes, params);
}

}  // namespace cuda
}  // namespace cone
