#include "cone/gradients.h"
#include "cone/parallel.h"
#include "cpu/huge_pages.h"
#include "cpu/isa.h"
#include "cpu/row_access.h"
#include "cpu/scratch.h"

namespace cone {
namespace CONE_ISA {
namespace {

constexpr int64_t kSentencesPerTask = 16;

// How many of a sentence's tokens count.
int64_t size_of(const MaskedMeanPoolBackwardArgs& args, int64_t sentence) {
  if (args.cu_seqlens != nullptr) return args.cu_seqlens[sentence + 1] - args.cu_seqlens[sentence];
  int64_t size = 0;
  for (int64_t t = 0; t < args.n_tokens; ++t) size += args.mask[sentence * args.n_tokens + t];
  return size;
}

// share = grad/size, rounded to the result's type.
template <class Out>
void write_share(const ComputeOf<Out>* grad, int64_t col_stride, int64_t size, int64_t d, Out* share) {
  constexpr int V = kLanes<double>;
  const double count = double(size);
  int64_t j = 0;
  if (col_stride == 1)
    for (; j + V <= d; j += V) store(share + j, load<double>(grad + j) / count);
  for (; j < d; ++j) share[j] = narrow<Out>(double(grad[j * col_stride]) / count);
}

// Sentences [begin, end) of one layer.
template <class Out>
void backward_sentences(const MaskedMeanPoolBackwardArgs& args, int64_t layer, int64_t begin, int64_t end) {
  const int64_t d = args.grad.d, n_tokens = args.n_tokens;
  const bool packed = args.cu_seqlens != nullptr;
  const auto* grad = static_cast<const ComputeOf<Out>*>(args.layers[layer]);
  Out* out = static_cast<Out*>(args.grad_hidden) + layer * (packed ? 1 : args.grad.n) * n_tokens * d;
  const size_t row_bytes = size_t(d) * sizeof(Out);
  const Scratch<Out> share(d);
  for (int64_t b = begin; b < end; ++b) {
    const int64_t size = size_of(args, b);
    if (size > 0) write_share(grad + b * args.grad.row_stride, args.grad.col_stride, size, d, share.get());
    const int64_t first = packed ? args.cu_seqlens[b] : b * n_tokens;
    const int64_t rows = packed ? size : n_tokens;
    for (int64_t t = first; t < first + rows; ++t) {
      if (packed || args.mask[t]) {
        std::memcpy(static_cast<void*>(out + t * d), share.get(), row_bytes);
      } else {
        std::memset(static_cast<void*>(out + t * d), 0, row_bytes);
      }
    }
  }
}

template <class Out>
void backward_layers(const MaskedMeanPoolBackwardArgs& args) {
  const int64_t n = args.grad.n, tasks = (n + kSentencesPerTask - 1) / kSentencesPerTask;
  const int64_t rows = args.n_layers * args.n_tokens * (args.cu_seqlens != nullptr ? 1 : n);
  ask_for_huge_pages(args.grad_hidden, size_t(rows * args.grad.d) * sizeof(Out));
  parallel_for(args.n_layers * tasks, threads_for(rows * args.grad.d, args.threads), [&](int64_t task) {
    const int64_t begin = task % tasks * kSentencesPerTask, past = begin + kSentencesPerTask;
    backward_sentences<Out>(args, task / tasks, begin, past < n ? past : n);
  });
}

}  // namespace

void masked_mean_pool_backward(const MaskedMeanPoolBackwardArgs& args) {
  with_element_type(args.dtype, [&](auto* element) {
    backward_layers<std::remove_const_t<std::remove_pointer_t<decltype(element)>>>(args);
  });
}

}  // namespace CONE_ISA

CONE_FORWARD(masked_mean_pool_backward, MaskedMeanPoolBackwardArgs)

}  // namespace cone
