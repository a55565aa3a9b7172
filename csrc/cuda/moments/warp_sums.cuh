// The sums of a warp that takes whole rows, each lane eight columns of every 256. They have three levels, so that no
// sum in float32 has more than some 32 terms: registers for 32 rows or a sentence, shared memory for 32 of those,
// float64 in global memory for the rest, which is seldom needed. All lanes run the same way; a lane reads another's
// columns at the end of a group alone.
#pragma once

#include <cfloat>

#include "cuda/common/block_sums.cuh"
#include "cuda/common/ptx.cuh"
#include "cuda/moments/warp_moments.cuh"

namespace cone {
namespace cuda {

constexpr int kMostTerms = 32;

// Octets of a lane that rows take.
constexpr int octets_of(int64_t d) { return int((d + kWarpColumns - 1) / kWarpColumns); }

// Sums of float32 in shared memory, in the order of WideField.
enum SharedField : int { kSharedSum, kSharedSq, kSharedUnitSq, kSharedUnit, kSharedDirection, kSharedFields };

// How a warp's shared memory is laid out. A field or a row is pieces of 16 bytes a lane, side by side.
template <class In, int kOctets>
struct WarpShape {
  static constexpr int kColumns = kOctets * kWarpColumns;
  static constexpr int kPieces = kOctets * int(sizeof(In)) / 2;  // of a row
  static constexpr int kRowBytes = kPieces * 16 * kWarpSize;
  static constexpr int kRows = 12 / int(sizeof(In));  // rows that are there or on their way
  static constexpr int kBatch = 8 / int(sizeof(In));  // rows whose norms are taken together
  static constexpr int kFieldBytes = kColumns * int(sizeof(float));
  static constexpr int kBytes = kSharedFields * kFieldBytes + kRows * kRowBytes;
};

// Pieces of 16 bytes of a row go to the lanes in turn. So the eight columns of a lane's octet are neighbours where they
// are one piece, and two fours where they are two.
template <class In>
__device__ __forceinline__ int first_of_four(int octet, int half, int lane) {
  constexpr bool kOnePiece = sizeof(In) == 2;
  return octet * kWarpColumns + (kOnePiece ? lane * kColumns + half * 4 : half * 4 * kWarpSize + lane * 4);
}

// 1/√x of a number that float32 holds well, to the last bit or two: by a step of Newton's.
__device__ __forceinline__ float inverse_root(float x) {
  const float inverse = rsqrtf(x);
  return inverse * fmaf(-0.5f * x * inverse, inverse, 1.5f);
}

// ‖x‖² of a row in float64, in every lane. row(octet) reads it.
template <class In, int kOctets, class Row>
__device__ __forceinline__ double exact_norm_sq(const Row& row) {
  double norm_sq = 0;
#pragma unroll 1
  for (int o = 0; o < kOctets; ++o) {
    const Octet<In> octet = row(o);
#pragma unroll
    for (int k = 0; k < kColumns; ++k) norm_sq += double(octet[k]) * double(octet[k]);
  }
  return sum_of_lanes(norm_sq);
}

template <class In, int kOctets>
class WarpSums {
 public:
  using Shape = WarpShape<In, kOctets>;
  float unit[kOctets][kColumns] = {}, sum[kOctets][kColumns] = {};  // of the sentence
  int left_out = 0;                                                 // rows of the sentence
  uint8_t seen = kUsed;                                             // its status
  double sentence_sq = 0;                                           // Σ ‖g‖² of the group, of this lane's columns
  bool cancels = false;  // whether the sentence that ended last has no direction: g = Σ u is too short

  // memory: the warp's kSharedFields fields; wide: its kWideFields fields of float64, not yet written.
  __device__ __forceinline__ WarpSums(unsigned char* memory, double* wide, WarpNotes& notes)
      : fields_(reinterpret_cast<float4*>(memory) + lane_of_thread()), wide_(wide + lane_of_thread()), notes_(notes) {
#pragma unroll 1
    for (int i = 0; i < kSharedFields * kFieldPieces; ++i) fields_[i * kWarpSize] = make_float4(0, 0, 0, 0);
  }

  // Adds a row of norm 1/inverse. row(octet) reads it.
  template <class Row>
  __device__ __forceinline__ void add(const Row& row, float inverse) {
#pragma unroll
    for (int o = 0; o < kOctets; ++o) {
      const Octet<In> octet = row(o);
#pragma unroll
      for (int k = 0; k < kColumns; ++k) {
        const float x = octet[k], u = x * inverse;
        unit[o][k] += u;
        sum[o][k] += x;
        sq_[o][k] = fmaf(x, x, sq_[o][k]);
        unit_sq_[o][k] = fmaf(u, u, unit_sq_[o][k]);
      }
    }
  }

  // By a lane of its own for each place of a row in a batch.
  __device__ __forceinline__ void note_norm(int place, float norm, float norm_sq) {
    static_assert(Shape::kBatch <= kMostBatch);
    notes_.norm_sum[place] += double(norm);
    notes_.norm_sq_sum[place] += double(norm_sq);
  }
  __device__ __forceinline__ void note_unit_sq(int place, float unit_sq) { notes_.unit_sq[place] += double(unit_sq); }

  // Makes room in the registers of squares, after 32 rows.
  __device__ __forceinline__ void make_room() {
    share(kSharedSq, sq_);
    share(kSharedUnitSq, unit_sq_);
    if (++square_terms_ < kMostTerms) return;
    widen(kSharedSq, kWideSq);
    widen(kSharedUnitSq, kWideUnitSq);
    square_terms_ = 0;
  }

  // As add, wholly in float64; also says why a row is left out. Its sentence goes on in float64.
  template <class Row>
  __device__ __forceinline__ void add_unsafe(const Row& row) {
    const double norm_sq = exact_norm_sq<In, kOctets>(row);
    const Status status = !(norm_sq <= DBL_MAX) ? kNonfinite : norm_sq < DBL_MIN ? kZero : kUsed;
    seen |= status;
    if (lane_of_thread() == 0) {
      notes_.n_zero += status == kZero;
      notes_.n_nonfinite += status == kNonfinite;
    }
    if (status != kUsed) {
      ++left_out;
      return;
    }
    const double norm = sqrt(norm_sq), inverse = 1 / norm;
    if (lane_of_thread() == 0) {
      notes_.norm_sum[0] += norm;
      notes_.norm_sq_sum[0] += norm_sq;
      notes_.unit_sq[0] += norm_sq * inverse * inverse;
    }
    begin_long_run();
    widen_run();
#pragma unroll 1
    for (int o = 0; o < kOctets; ++o) {
      const Octet<In> octet = row(o);
#pragma unroll
      for (int k = 0; k < kColumns; ++k) {
        const double x = double(octet[k]), u = x * inverse;
        add_wide(kWideRunSum, o, k, x);
        add_wide(kWideRunUnit, o, k, u);
        add_wide(kWideSq, o, k, x * x);
        add_wide(kWideUnitSq, o, k, u * u);
      }
    }
    in_wide_ |= 1 << kWideRunSum | 1 << kWideRunUnit | 1 << kWideSq | 1 << kWideUnitSq;
  }

  // From here on what registers hold of the sentence may go to shared memory.
  __device__ __forceinline__ void begin_long_run() {
    if (is_long_) return;
    widen_sentences();
    is_long_ = true;
  }
  __device__ __forceinline__ bool is_long() const { return is_long_; }

  // Makes room in the registers of a long sentence.
  __device__ __forceinline__ void share_run() {
    share(kSharedSum, sum);
    share(kSharedUnit, unit);
    if (++run_terms_ == kMostTerms) widen_run();
  }

  // Ends a sentence of at most 32 rows, of which `used` are: take(octet, sums) for each octet's Σ x.
  template <class Take>
  __device__ __forceinline__ void end_short_run(int used, const Take& take) {
    float total = 0;
#pragma unroll
    for (int o = 0; o < kOctets; ++o) {
#pragma unroll
      for (int k = 0; k < kColumns; ++k) total = fmaf(unit[o][k], unit[o][k], total);
      take(o, sum[o]);
    }
    sentence_sq += double(total);
    const float norm_sq = sum_of_lanes(total);
    cancels = !(norm_sq > float(least_norm_sq(used)));
    share_direction(cancels ? 0.0f : inverse_root(norm_sq));
    share(kSharedSum, sum);
    share(kSharedUnit, unit);
    if (++run_terms_ == kMostTerms) widen_sentences();
  }

  // The same for a long one, with sums of float64.
  template <class Take>
  __device__ __forceinline__ void end_long_run(int used, const Take& take) {
    widen_run();
    double total = 0;
#pragma unroll 1
    for (int o = 0; o < kOctets; ++o) {
      double sums[kColumns];
#pragma unroll
      for (int k = 0; k < kColumns; ++k) {
        sums[k] = wide(kWideRunSum, o, k);
        const double g = wide(kWideRunUnit, o, k);
        total += g * g;
        sentence_sq += g * g;
        add_wide(kWideSum, o, k, sums[k]);
        add_wide(kWideUnit, o, k, g);
      }
      take(o, sums);
    }
    const double norm_sq = sum_of_lanes(total);
    cancels = !(norm_sq > least_norm_sq(used));
    const double inverse = cancels ? 0.0 : 1 / sqrt(norm_sq);
#pragma unroll 1
    for (int o = 0; o < kOctets; ++o)
#pragma unroll
      for (int k = 0; k < kColumns; ++k) add_wide(kWideDirection, o, k, wide(kWideRunUnit, o, k) * inverse);
    in_wide_ |= 1 << kWideSum | 1 << kWideUnit | 1 << kWideDirection;
    in_wide_ &= ~(1 << kWideRunSum | 1 << kWideRunUnit);
    is_long_ = false;
  }

  // Hands out Σ u and Σ g/‖g‖ of the group, take(column, value) for each column, neighbours to neighbouring lanes; and
  // starts a new group.
  template <class TakeUnit, class TakeDirection>
  __device__ __forceinline__ void end_group(const TakeUnit& take_unit, const TakeDirection& take_direction) {
    hand_out(kSharedUnit, kWideUnit, take_unit);
    hand_out(kSharedDirection, kWideDirection, take_direction);
    sentence_sq = 0;
  }

  // Leaves all squares in shared memory or in float64. Returns which fields have something in float64.
  __device__ __forceinline__ int end() {
    make_room();
    return in_wide_;
  }

 private:
  static constexpr int kFieldPieces = 2 * kOctets;

  // The least ‖g‖² of a sentence of so many rows that has a direction.
  static __device__ __forceinline__ double least_norm_sq(int used) {
    return (kLeastMeanUnit * used) * (kLeastMeanUnit * used);
  }

  // Hands out what shared memory and float64 have in these fields, and clears them.
  template <class Take>
  __device__ __forceinline__ void hand_out(SharedField field, WideField rest, const Take& take) {
    const bool any = (in_wide_ >> rest & 1) != 0;
    __syncwarp();  // a lane reads what others have summed
#pragma unroll 4
    for (int i = 0; i < Shape::kColumns / kWarpSize; ++i) {
      const int place = i * kWarpSize + read_lane(), piece = place / (4 * kWarpSize);
      const int lane = place / 4 % kWarpSize, k = place % 4;
      const float* const of_warp = reinterpret_cast<const float*>(fields_ - lane_of_thread());
      double value = double(of_warp[field * Shape::kColumns + place]);
      if (any)
        value += wide_[((rest * kOctets + piece / 2) * kColumns + piece % 2 * 4 + k) * kWarpSize +
                       (lane - lane_of_thread())];
      take(first_of_four<In>(piece / 2, piece % 2, lane) + k, value);
    }
    __syncwarp();  // before any lane begins the next group
#pragma unroll
    for (int i = 0; i < kFieldPieces; ++i) fields_[(field * kFieldPieces + i) * kWarpSize] = make_float4(0, 0, 0, 0);
    in_wide_ &= ~(1 << rest);
  }

  __device__ __forceinline__ float4& piece(SharedField field, int octet, int half) {
    return fields_[(field * kFieldPieces + 2 * octet + half) * kWarpSize];
  }
  __device__ __forceinline__ double& wide(WideField field, int octet, int k) {
    return wide_[((field * kOctets + octet) * kColumns + k) * kWarpSize];
  }
  __device__ __forceinline__ void add_wide(WideField field, int octet, int k, double value) {
    double& to = wide(field, octet, k);
    to = (in_wide_ >> field & 1) != 0 ? to + value : value;
  }

  // Moves sums from registers to shared memory.
  __device__ __forceinline__ void share(SharedField field, float (&values)[kOctets][kColumns]) {
#pragma unroll
    for (int o = 0; o < kOctets; ++o)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float4& to = piece(field, o, half);
        float (&from)[kColumns] = values[o];
        const float4 four = to;
        to = make_float4(four.x + from[4 * half], four.y + from[4 * half + 1], four.z + from[4 * half + 2],
                         four.w + from[4 * half + 3]);
        from[4 * half] = from[4 * half + 1] = from[4 * half + 2] = from[4 * half + 3] = 0;
      }
  }

  // Moves sums from shared memory to float64.
  __device__ __forceinline__ void widen(SharedField from, WideField to) {
#pragma unroll 1
    for (int o = 0; o < kOctets; ++o)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float4& four = piece(from, o, half);
        add_wide(to, o, 4 * half, double(four.x));
        add_wide(to, o, 4 * half + 1, double(four.y));
        add_wide(to, o, 4 * half + 2, double(four.z));
        add_wide(to, o, 4 * half + 3, double(four.w));
        four = make_float4(0, 0, 0, 0);
      }
    in_wide_ |= 1 << to;
  }

  // Adds Σ u of a sentence, times 1/‖g‖, to the directions.
  __device__ __forceinline__ void share_direction(float inverse) {
#pragma unroll
    for (int o = 0; o < kOctets; ++o)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float4& to = piece(kSharedDirection, o, half);
        const float* const g = unit[o] + 4 * half;
        const float4 four = to;
        to = make_float4(fmaf(g[0], inverse, four.x), fmaf(g[1], inverse, four.y), fmaf(g[2], inverse, four.z),
                         fmaf(g[3], inverse, four.w));
      }
  }

  // Moves the sums of sentences that have ended to float64.
  __device__ __forceinline__ void widen_sentences() {
    widen(kSharedSum, kWideSum);
    widen(kSharedUnit, kWideUnit);
    widen(kSharedDirection, kWideDirection);
    run_terms_ = 0;
  }

  // Moves the long sentence's sums to float64.
  __device__ __forceinline__ void widen_run() {
    share(kSharedSum, sum);
    share(kSharedUnit, unit);
    widen(kSharedSum, kWideRunSum);
    widen(kSharedUnit, kWideRunUnit);
    run_terms_ = 0;
  }

  float4* const fields_;
  double* const wide_;
  WarpNotes& notes_;
  float sq_[kOctets][kColumns] = {}, unit_sq_[kOctets][kColumns] = {};
  int run_terms_ = 0, square_terms_ = 0;
  int in_wide_ = 0;  // bit f: there is something in wide field f
  bool is_long_ = false;
};

}  // namespace cuda
}  // namespace cone
