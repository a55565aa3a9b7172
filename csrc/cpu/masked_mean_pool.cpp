#include "cone/parallel.h"
#include "cpu/block_sums.h"
#include "cpu/token_order.h"

namespace cone {
namespace CONE_ISA {
namespace {

constexpr int64_t kSentencesPerTask = 8;

// Pools sentences [begin, end) of one layer; `sum` (d) is zero before and after.
template <class In>
void pool_sentences(const HiddenStates& hidden, const TokenOrder& order, int64_t layer, int64_t begin, int64_t end,
                    double* sum, ComputeOf<In>* pooled) {
  using C = ComputeOf<In>;
  const int block = block_rows(hidden.d, sizeof(In));
  const In* base = static_cast<const In*>(hidden.layers[layer]);
  const ColumnSums to = {nullptr, sum, nullptr, nullptr};
  RowGatherer<In> gatherer(hidden.d, hidden.col_stride, block);
  const In* rows[kMaxBlockRows];
  for (int64_t sentence = begin; sentence < end; ++sentence, pooled += hidden.d) {
    const int64_t size = order.size(sentence);
    for (int64_t k = 0; k < size; k += block) {
      const int n = int(size - k < block ? size - k : block);
      gatherer.take([&](int r) { return base + order.offset(sentence, k + r); }, n, rows);
      add_block<C, In, kPlainSum>(rows, nullptr, n, nullptr, 0, hidden.d, to);
    }
    bool finite = true;
    for (int64_t j = 0; j < hidden.d; ++j) {
      pooled[j] = C(sum[j] / double(size));
      finite &= bool(std::isfinite(sum[j]));
      sum[j] = 0;
    }
    // A sum that left float32 need not leave float64.
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
    std::vector<double> sum(static_cast<size_t>(hidden.d));
    auto* pooled = static_cast<ComputeOf<In>*>(args.pooled) + (layer * hidden.n_sentences + begin) * hidden.d;
    pool_sentences<In>(hidden, order, layer, begin, past < hidden.n_sentences ? past : hidden.n_sentences, sum.data(),
                       pooled);
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
