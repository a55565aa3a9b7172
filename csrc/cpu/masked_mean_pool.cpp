#include "cone/moments.h"
#include "cone/parallel.h"
#include "cpu/isa.h"
#include "cpu/scratch.h"
#include "cpu/simd.h"
#include "cpu/token_order.h"

namespace cone {
namespace CONE_ISA {
namespace {

constexpr int64_t kSentencesPerTask = 16;
constexpr int kRowsAtOnce = 2;
constexpr int kRowsAhead = 8;         // how far ahead of the rows that are added those are that are being fetched
constexpr int kRowsPerWidening = 32;  // added in the compute type before they are added to float64
constexpr int kCacheLine = 64;

// A column's sum, plus two rows added up first, as pool_moments does: the means are the same to the bit.
template <class C, class In, bool kRagged>
inline void add_pair(const In* const* rows, int64_t j, int64_t d, C* sums) {
  const auto at = [&](int r) { return kRagged ? load_first<C>(rows[r] + j, d - j) : load<C>(rows[r] + j); };
  add_in_place(sums + j, at(0) + at(1));
}

// sums (d) += two rows, while two others are fetched. Memory is fastest in order: one after the other, line by line.
template <class C, class In>
void add_rows(const In* const* rows, const In* const* ahead, int64_t d, C* sums) {
  constexpr int V = kLanes<C>, kStep = kRowsAtOnce * V, kLine = kCacheLine / int(sizeof(In));
  const int64_t half = d / kStep * V;  // columns added while one row is fetched
  int64_t j = 0;
  for (int r = 0; r < kRowsAtOnce; ++r) {
    const In* fetched = ahead[r];
    for (const int64_t past = j + half; j < past; j += V, fetched += kStep) {
#pragma GCC unroll 8
      for (int k = 0; k < kStep; k += kLine) __builtin_prefetch(fetched + k, 0, 2);
      add_pair<C, In, false>(rows, j, d, sums);
    }
  }
  for (; j + V <= d; j += V) add_pair<C, In, false>(rows, j, d, sums);
  if (j < d) add_pair<C, In, true>(rows, j, d, sums);
}

// The means of sentences, one after the other. Its sums are in float64 where a sentence has many tokens.
template <class In>
class Pooling {
  using C = ComputeOf<In>;

 public:
  Pooling(const HiddenStates& hidden, const TokenOrder& order, int64_t layer)
      : hidden_(hidden),
        order_(order),
        base_(static_cast<const In*>(hidden.layers[layer])),
        zeros_(hidden.d, In{}),
        copies_(hidden.col_stride == 1 ? 0 : kRowsAtOnce * hidden.d),
        sums_(hidden.d + kLanes<C>),
        wide_(hidden.d) {}

  // Sentences [begin, end), to pooled (B, d).
  void run(int64_t begin, int64_t end, C* pooled) {
    const Scratch<const In*> tokens(order_.start(end) - order_.start(begin) + kRowsAhead + kRowsAtOnce);
    const In** last = tokens.get();
    for (int64_t sentence = begin; sentence < end; ++sentence)
      for (int64_t k = 0; k < order_.size(sentence); ++k) *last++ = base_ + order_.offset(sentence, k);
    for (int r = 0; r < kRowsAhead + kRowsAtOnce; ++r) last[r] = base_;  // fetched at the end
    const In* const* rows = tokens.get();
    for (int64_t sentence = begin; sentence < end; ++sentence) {
      const int64_t size = order_.size(sentence);
      C* mean = pooled + sentence * hidden_.d;
      // A sum that left float32 need not leave float64.
      if (size == 0 || !write_mean(rows, size, mean)) pool_plainly(hidden_, order_, base_, sentence, mean);
      rows += size;
    }
  }

 private:
  // Whether the mean is finite.
  bool write_mean(const In* const* rows, int64_t size, C* mean) {
    const int64_t d = hidden_.d;
    std::memset(sums_.get(), 0, size_t(d + kLanes<C>) * sizeof(C));
    if (size <= kRowsPerWidening) {
      add(rows, size);
      return divide(sums_.get(), size, mean);
    }
    std::memset(wide_.get(), 0, size_t(d) * sizeof(double));
    for (int64_t k = 0; k < size; k += kRowsPerWidening) {
      add(rows + k, size - k < kRowsPerWidening ? size - k : kRowsPerWidening);
      add_widened(wide_.get(), sums_.get(), d);
      std::memset(sums_.get(), 0, size_t(d) * sizeof(C));
    }
    return divide(wide_.get(), size, mean);
  }

  void add(const In* const* rows, int64_t n) {
    for (int64_t k = 0; k < n; k += kRowsAtOnce) {
      const In* pair[] = {rows[k], k + 1 < n ? rows[k + 1] : zeros_.get()};
      if (hidden_.col_stride != 1) make_contiguous(pair, k + 1 < n ? 2 : 1);
      add_rows(pair, rows + k + kRowsAhead, hidden_.d, sums_.get());
    }
  }

  void make_contiguous(const In** rows, int n) {
    for (int r = 0; r < n; ++r) {
      In* copy = copies_.get() + r * hidden_.d;
      for (int64_t j = 0; j < hidden_.d; ++j) copy[j] = rows[r][j * hidden_.col_stride];
      rows[r] = copy;
    }
  }

  template <class T>
  bool divide(const T* sums, int64_t size, C* mean) const {
    constexpr int V = kLanes<double>;
    const double scale = 1 / double(size);
    Vec<double> zeros{};  // NaN where a mean is not finite
    int64_t j = 0;
    for (; j + V <= hidden_.d; j += V) {
      const Vec<double> quotient = load<double>(sums + j) * scale;
      store(mean + j, quotient);
      zeros += quotient * 0.0;
    }
    double tail = 0;
    for (; j < hidden_.d; ++j) {
      mean[j] = C(double(sums[j]) * scale);
      tail += double(mean[j]) * 0.0;
    }
    return add_lanes<double>(zeros) + tail == 0;
  }

  const HiddenStates& hidden_;
  const TokenOrder& order_;
  const In* base_;
  const Scratch<In> zeros_;  // a row
  const Scratch<In> copies_;
  const Scratch<C> sums_;
  const Scratch<double> wide_;
};

template <class In>
void pool_layers(const MaskedMeanPoolArgs& args) {
  const HiddenStates& hidden = args.hidden;
  const TokenOrder order(hidden);
  const int64_t n = hidden.n_sentences, tasks = (n + kSentencesPerTask - 1) / kSentencesPerTask;
  const int threads = threads_for(hidden.n_layers * order.total() * hidden.d, args.threads);
  parallel_for(hidden.n_layers * tasks, threads, [&](int64_t task) {
    const int64_t layer = task / tasks, begin = task % tasks * kSentencesPerTask, past = begin + kSentencesPerTask;
    auto* pooled = static_cast<ComputeOf<In>*>(args.pooled) + layer * n * hidden.d;
    Pooling<In>(hidden, order, layer).run(begin, past < n ? past : n, pooled);
  });
}

}  // namespace

void masked_mean_pool(const MaskedMeanPoolArgs& args) {
  with_element_type(args.hidden.dtype, [&](auto* element) {
    pool_layers<std::remove_const_t<std::remove_pointer_t<decltype(element)>>>(args);
  });
}

}  // namespace CONE_ISA

CONE_FORWARD(masked_mean_pool, MaskedMeanPoolArgs)

}  // namespace cone
