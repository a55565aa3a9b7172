// The tokens of hidden states that count, sentence by sentence, and the plain mean of them.
#pragma once

#include <vector>

#include "cone/moments.h"
#include "cpu/simd.h"

namespace cone {
namespace CONE_ISA {
namespace {

// The tokens that the mask keeps, sentence by sentence; the same for every layer.
class TokenOrder {
 public:
  explicit TokenOrder(const HiddenStates& hidden) : hidden_(hidden) {
    if (hidden.cu_seqlens != nullptr) return;
    starts_.reserve(size_t(hidden.n_sentences) + 1);
    for (int64_t b = 0; b < hidden.n_sentences; ++b) {
      starts_.push_back(int64_t(positions_.size()));
      for (int64_t t = 0; t < hidden.n_tokens; ++t)
        if (hidden.mask[b * hidden.n_tokens + t]) positions_.push_back(int32_t(t));
    }
    starts_.push_back(int64_t(positions_.size()));
  }

  int64_t start(int64_t sentence) const {
    return hidden_.cu_seqlens ? hidden_.cu_seqlens[sentence] : starts_[size_t(sentence)];
  }
  int64_t size(int64_t sentence) const { return start(sentence + 1) - start(sentence); }
  int64_t total() const { return start(hidden_.n_sentences) - start(0); }

  // Offset in elements of token k of a sentence from the first element of the layer.
  int64_t offset(int64_t sentence, int64_t k) const {
    if (hidden_.cu_seqlens != nullptr) return (start(sentence) + k) * hidden_.token_stride;
    return sentence * hidden_.sentence_stride + positions_[size_t(start(sentence) + k)] * hidden_.token_stride;
  }

 private:
  const HiddenStates& hidden_;
  std::vector<int64_t> starts_;
  std::vector<int32_t> positions_;
};

// The plain mean of all tokens, finite or not; only for sentences that have a token that is not finite.
template <class In, class Out>
void pool_plainly(const HiddenStates& hidden, const TokenOrder& order, const In* base, int64_t sentence, Out* pooled) {
  const int64_t size = order.size(sentence);
  for (int64_t j = 0; j < hidden.d; ++j) {
    double total = 0;
    for (int64_t k = 0; k < size; ++k) total += double(widen(base[order.offset(sentence, k) + j * hidden.col_stride]));
    pooled[j] = Out(total / double(size));
  }
}

}  // namespace
}  // namespace CONE_ISA
}  // namespace cone
