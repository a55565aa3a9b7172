#include <algorithm>
#include <limits>

#include "cone/parallel.h"
#include "cpu/block_sums.h"
#include "cpu/token_order.h"

namespace cone {
namespace CONE_ISA {
namespace {

// The sentences group by group, in their order within a group.
std::vector<std::vector<int64_t>> sentences_by_task(const PoolMomentsArgs& args, int64_t tasks) {
  std::vector<std::vector<int64_t>> by_group(size_t(args.sums.groups)), by_task(static_cast<size_t>(tasks));
  for (int64_t b = 0; b < args.hidden.n_sentences; ++b) by_group[size_t(args.groups[b])].push_back(b);
  for (int64_t g = 0; g < args.sums.groups; ++g)
    by_task[size_t(g % tasks)].insert(by_task[size_t(g % tasks)].end(), by_group[size_t(g)].begin(),
                                      by_group[size_t(g)].end());
  return by_task;
}

// Sums of the sentence at hand; zero between sentences.
struct SentenceColumns {
  std::vector<double> unit_sum, sum;
  explicit SentenceColumns(int64_t d) : unit_sum(size_t(d)), sum(size_t(d)) {}
};

// Adds the sentence to its group and returns Σ g_j².
inline double finish_unit_sum(double* unit_sum, int64_t d, double* group_unit_sum) {
  constexpr int V = kLanes<double>;
  Vec<double> squares{};
  double tail = 0;
  int64_t j = 0;
  for (; j + V <= d; j += V) {
    const Vec<double> g = load<double>(unit_sum + j);
    squares += g * g;
    add_to(group_unit_sum + j, g);
  }
  for (; j < d; ++j) {
    tail += unit_sum[j] * unit_sum[j];
    group_unit_sum[j] += unit_sum[j];
  }
  std::memset(unit_sum, 0, size_t(d) * sizeof(double));
  return add_lanes<double>(squares) + tail;
}

// Writes the pooled vector and adds the sentence's sum to the task's.
template <class Out>
void finish_sum(double* __restrict sum, int64_t d, double scale, Out* __restrict pooled, double* __restrict task_sum) {
  for (int64_t j = 0; j < d; ++j) {
    pooled[j] = Out(sum[j] * scale);
    task_sum[j] += sum[j];
  }
  std::memset(sum, 0, size_t(d) * sizeof(double));
}

template <class In>
void add_sentences(const PoolMomentsArgs& args, const TokenOrder& order, const std::vector<int64_t>& sentences,
                   int64_t layer, SharedSums& shared, int64_t task) {
  using Out = ComputeOf<In>;
  const HiddenStates& hidden = args.hidden;
  const int64_t d = hidden.d;
  const int block = block_rows(d, sizeof(In));
  const In* base = static_cast<const In*>(hidden.layers[layer]);
  RowGatherer<In> gatherer(d, hidden.col_stride, block);
  SentenceColumns columns(d);
  const ColumnSums to = {columns.unit_sum.data(), columns.sum.data(), shared.sq_sum(task), shared.unit_sq_sum(task)};
  const In *rows[kMaxBlockRows], *ahead[kMaxBlockRows];
  RowTally task_tally;
  for (size_t i = 0; i < sentences.size(); ++i) {
    const int64_t sentence = sentences[i], size = order.size(sentence);
    const int64_t at = layer * args.sums.groups + args.groups[sentence];
    Out* pooled = static_cast<Out*>(args.pooled) + (layer * hidden.n_sentences + sentence) * d;
    RowTally tally;
    uint8_t seen = size == 0 ? kEmpty : 0;
    for (int64_t k = 0; k < size; k += block) {
      const int n = int(size - k < block ? size - k : block);
      const int64_t next = k + n < size ? sentence : (i + 1 < sentences.size() ? sentences[i + 1] : -1);
      const int64_t next_k = next == sentence ? k + n : 0;
      const int64_t left = next < 0 || hidden.col_stride != 1 ? 0 : order.size(next) - next_k;
      const int n_ahead = int(left < n ? left : n);
      gatherer.take([&](int r) { return base + order.offset(sentence, k + r); }, n, rows);
      for (int r = 0; r < n_ahead; ++r) ahead[r] = base + order.offset(next, next_k + r);
      seen |= add_rows<In, kAllSums>(rows, n, ahead, n_ahead, d, to, tally, nullptr);
    }
    const double unit_sq = finish_unit_sum(columns.unit_sum.data(), d, args.sums.unit_sum + at * d);
    finish_sum(columns.sum.data(), d, 1 / double(size), pooled, shared.sum(task));
    if (size == 0) std::fill(pooled, pooled + d, std::numeric_limits<Out>::quiet_NaN());
    if (seen & kNonfinite) pool_plainly(hidden, order, base, sentence, pooled);
    args.status[layer * hidden.n_sentences + sentence] = seen;
    add_tally(args.sums, at, tally);
    task_tally.norm_sum += tally.norm_sum;
    task_tally.norm_sq_sum += tally.norm_sq_sum;
    args.sentence_sq_sum[at] += unit_sq;
    args.sentence_size_sq_sum[at] += double(tally.count) * double(tally.count);
    args.n_sentences[at] += tally.count > 0;
  }
  shared.set_norms(task, task_tally);
}

template <class In>
void add_layers(const PoolMomentsArgs& args) {
  const HiddenStates& hidden = args.hidden;
  const TokenOrder order(hidden);
  const int64_t tasks = tasks_of(order.total() * hidden.d, args.sums.groups);
  const auto sentences = sentences_by_task(args, tasks);
  SharedSums shared(hidden.n_layers * tasks, hidden.d, true);
  parallel_for(hidden.n_layers * tasks, args.threads, [&](int64_t task) {
    add_sentences<In>(args, order, sentences[size_t(task % tasks)], task / tasks, shared, task);
  });
  parallel_for(hidden.n_layers, args.threads,
               [&](int64_t layer) { shared.add_to(args.sums, layer, layer * tasks, (layer + 1) * tasks); });
}

}  // namespace

void pool_moments(const PoolMomentsArgs& args) {
  with_element_type(args.hidden.dtype, [&](auto* element) {
    add_layers<std::remove_const_t<std::remove_pointer_t<decltype(element)>>>(args);
  });
}

}  // namespace CONE_ISA
}  // namespace cone
