#include "cone/parallel.h"
#include "cpu/row_pipeline.h"
#include "cpu/token_order.h"

namespace cone {
namespace CONE_ISA {
namespace {

constexpr int64_t kSentencesPerTask = 8;

// Adds a sentence's tokens, four at a time, to `sum` (d).
template <class In>
void add_tokens(const TokenOrder& order, const In* base, int64_t sentence, int64_t d, const std::vector<In>& no_row,
                std::vector<ComputeOf<In>>& columns, double* sum) {
  using C = ComputeOf<In>;
  const Columns<C> sums = {nullptr, columns.data(), nullptr, nullptr};
  const int64_t size = order.size(sentence);
  for (int64_t begin = 0; begin < size; begin += kRowsPerFlush) {
    std::memset(columns.data(), 0, columns.size() * sizeof(C));
    const int64_t end = begin + kRowsPerFlush < size ? begin + kRowsPerFlush : size;
    for (int64_t k = begin; k < end; k += kChunkRows) {
      const In* rows[kChunkRows];
      for (int64_t r = 0; r < kChunkRows; ++r)
        rows[r] = k + r < end ? base + order.offset(sentence, k + r) : no_row.data();
      add_plain<C, In>(rows, d, sums);
    }
    add_widened(sum, columns.data(), d);
  }
}

// Pools sentences [begin, end) of one layer.
template <class In>
void pool_sentences(const HiddenStates& hidden, const TokenOrder& order, int64_t layer, int64_t begin, int64_t end,
                    ComputeOf<In>* pooled) {
  using C = ComputeOf<In>;
  const In* base = static_cast<const In*>(hidden.layers[layer]);
  const std::vector<In> no_row(static_cast<size_t>(hidden.d));
  std::vector<C> columns(static_cast<size_t>(hidden.d + kLanes<C>));
  std::vector<double> sum(static_cast<size_t>(hidden.d));
  for (int64_t sentence = begin; sentence < end; ++sentence, pooled += hidden.d) {
    bool finite = hidden.col_stride == 1;
    if (finite) add_tokens(order, base, sentence, hidden.d, no_row, columns, sum.data());
    const double scale = 1 / double(order.size(sentence));
    for (int64_t j = 0; j < hidden.d; ++j) {
      finite &= bool(std::isfinite(sum[size_t(j)] * scale));
      pooled[j] = C(sum[size_t(j)] * scale);
      sum[size_t(j)] = 0;
    }
    // A sum that left float32 need not leave float64; strided columns are not worth a path of their own.
    if (!finite) pool_plainly(hidden, order, base, sentence, pooled);
  }
}

template <class In>
void pool_layers(const MaskedMeanPoolArgs& args) {
  const HiddenStates& hidden = args.hidden;
  const TokenOrder order(hidden);
  const int64_t tasks = (hidden.n_sentences + kSentencesPerTask - 1) / kSentencesPerTask;
  parallel_for(hidden.n_layers * tasks, args.threads, [&](int64_t task) {
    const int64_t layer = task / tasks, begin = task % tasks * kSentencesPerTask, past = begin + kSentencesPerTask;
    auto* pooled = static_cast<ComputeOf<In>*>(args.pooled) + (layer * hidden.n_sentences + begin) * hidden.d;
    pool_sentences<In>(hidden, order, layer, begin, past < hidden.n_sentences ? past : hidden.n_sentences, pooled);
  });
}

}  // namespace

void masked_mean_pool(const MaskedMeanPoolArgs& args) {
  with_element_type(args.hidden.dtype, [&](auto* element) {
    pool_layers<std::remove_const_t<std::remove_pointer_t<decltype(element)>>>(args);
  });
}

}  // namespace CONE_ISA
}  // namespace cone
