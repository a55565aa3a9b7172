#include "cone/parallel.h"
#include "cpu/isa.h"
#include "cpu/row_pipeline.h"
#include "cpu/token_order.h"

namespace cone {
namespace CONE_ISA {
namespace {

constexpr int64_t kSentencesPerTask = 16;

// Takes a sentence whose tokens have all been added.
template <class In>
struct FinishMean {
  using Out = ComputeOf<In>;
  const HiddenStates& hidden;
  const TokenOrder& order;
  const In* base;
  Out* pooled;  // (B, d)

  template <class T>
  void operator()(int64_t sentence, const RowTally&, const T*, const T* plain) const {
    constexpr int V = kLanes<double>;
    Out* to = pooled + sentence * hidden.d;
    const double scale = 1 / double(order.size(sentence));
    Vec<double> zeros{};  // NaN where a mean is not finite
    int64_t j = 0;
    for (; j + V <= hidden.d; j += V) {
      const Vec<double> mean = load<double>(plain + j) * scale;
      store(to + j, mean);
      zeros += mean * 0.0;
    }
    double tail = 0;
    for (; j < hidden.d; ++j) {
      to[j] = Out(double(plain[j]) * scale);
      tail += double(to[j]) * 0.0;
    }
    // A sum that left float32 need not leave float64. NaN is not 0 either.
    if (add_lanes<double>(zeros) + tail != 0) pool_plainly(hidden, order, base, sentence, to);
  }
};

// Pools sentences [begin, end) of one layer.
template <class In>
void pool_sentences(const HiddenStates& hidden, const TokenOrder& order, int64_t layer, int64_t begin, int64_t end,
                    void* pooled) {
  using Out = ComputeOf<In>;
  const In* base = static_cast<const In*>(hidden.layers[layer]);
  const FinishMean<In> finish{hidden, order, base, static_cast<Out*>(pooled) + layer * hidden.n_sentences * hidden.d};
  RowPipeline<In, kPlainSum, FinishMean<In>> pipeline(hidden.d, hidden.col_stride, nullptr, nullptr, finish);
  for (int64_t sentence = begin; sentence < end; ++sentence) {
    if (order.size(sentence) == 0) {
      pool_plainly(hidden, order, base, sentence, finish.pooled + sentence * hidden.d);
      continue;
    }
    pipeline.add(
        sentence, order.size(sentence), [](int64_t k) { return k; },
        [&](int64_t k) { return base + order.offset(sentence, k); });
  }
  pipeline.drain();
}

template <class In>
void pool_layers(const MaskedMeanPoolArgs& args) {
  const HiddenStates& hidden = args.hidden;
  const TokenOrder order(hidden);
  const int64_t tasks = (hidden.n_sentences + kSentencesPerTask - 1) / kSentencesPerTask;
  const int threads = threads_for(hidden.n_layers * order.total() * hidden.d, args.threads);
  parallel_for(hidden.n_layers * tasks, threads, [&](int64_t task) {
    const int64_t begin = task % tasks * kSentencesPerTask, past = begin + kSentencesPerTask;
    pool_sentences<In>(hidden, order, task / tasks, begin, past < hidden.n_sentences ? past : hidden.n_sentences,
                       args.pooled);
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
