#include <algorithm>
#include <cmath>
#include <limits>

#include "cone/parallel.h"
#include "cpu/isa.h"
#include "cpu/shared_sums.h"
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

// Takes a sentence whose tokens have all been added.
template <class In>
struct FinishSentence {
  using Out = ComputeOf<In>;
  const PoolMomentsArgs& args;
  const TokenOrder& order;
  int64_t layer;
  SharedSums& shared;
  int64_t task;

  template <class T>
  void operator()(int64_t sentence, const RowTally& tally, const T* unit, const T* plain) const {
    const HiddenStates& hidden = args.hidden;
    const int64_t d = hidden.d, at = layer * args.sums.groups + args.groups[sentence];
    Out* pooled = static_cast<Out*>(args.pooled) + (layer * hidden.n_sentences + sentence) * d;
    const double norm_sq = add_columns_of_sentence(unit, plain, d, 1 / double(order.size(sentence)),
                                                   args.sums.unit_sum + at * d, shared.sum(task), pooled);
    args.sentence_sq_sum[at] += norm_sq;
    const double least = kLeastMeanUnit * double(tally.count);
    if (norm_sq > least * least)
      add_scaled(args.sentence_unit_sum + at * d, unit, 1 / std::sqrt(norm_sq), d);
    else
      args.n_cancelled[at] += tally.count > 0;
    if (tally.seen & kNonfinite) {
      pool_plainly(hidden, order, static_cast<const In*>(hidden.layers[layer]), sentence, pooled);
    }
    args.status[layer * hidden.n_sentences + sentence] = tally.seen;
    add_tally(args.sums, at, tally);
    shared.add_norms(task, tally);
    args.sentence_size_sq_sum[at] += double(tally.count) * double(tally.count);
    args.n_sentences[at] += tally.count > 0;
  }

  void empty(int64_t sentence) const {
    Out* pooled = static_cast<Out*>(args.pooled) + (layer * args.hidden.n_sentences + sentence) * args.hidden.d;
    std::fill(pooled, pooled + args.hidden.d, std::numeric_limits<Out>::quiet_NaN());
    args.status[layer * args.hidden.n_sentences + sentence] = kEmpty;
  }

 private:
  // Adds g = Σ u of the sentence to its group's and Σ x to the task's, writes the pooled vector, and returns ‖g‖².
  template <class T>
  static double add_columns_of_sentence(const T* unit, const T* plain, int64_t d, double scale, double* group_unit_sum,
                                        double* task_sum, Out* pooled) {
    constexpr int V = kLanes<double>;
    Vec<double> squares{};
    double tail = 0;
    int64_t j = 0;
    for (; j + V <= d; j += V) {
      const Vec<double> g = load<double>(unit + j), x = load<double>(plain + j);
      squares += g * g;
      add_in_place(group_unit_sum + j, g);
      add_in_place(task_sum + j, x);
      store(pooled + j, x * scale);
    }
    for (; j < d; ++j) {
      tail += double(unit[j]) * double(unit[j]);
      group_unit_sum[j] += double(unit[j]);
      task_sum[j] += double(plain[j]);
      pooled[j] = Out(double(plain[j]) * scale);
    }
    return add_lanes<double>(squares) + tail;
  }
};

template <class In>
void add_sentences(const PoolMomentsArgs& args, const TokenOrder& order, const std::vector<int64_t>& sentences,
                   int64_t layer, SharedSums& shared, int64_t task) {
  const In* base = static_cast<const In*>(args.hidden.layers[layer]);
  const FinishSentence<In> finish{args, order, layer, shared, task};
  RowPipeline<In, kAllSums, FinishSentence<In>> pipeline(args.hidden.d, args.hidden.col_stride, shared.sq_sum(task),
                                                         shared.unit_sq_sum(task), finish);
  for (const int64_t sentence : sentences) {
    if (order.size(sentence) == 0) {
      finish.empty(sentence);
      continue;
    }
    pipeline.add(
        sentence, order.size(sentence), [](int64_t k) { return k; },
        [&](int64_t k) { return base + order.offset(sentence, k); });
  }
  pipeline.drain();
}

// Tasks a layer is cut into: task p takes the groups g ≡ p (mod tasks). A power of two that depends on the shape alone.
int64_t tasks_of_tokens(int64_t elements, int64_t groups) {
  int64_t tasks = 1;
  while (tasks * 2 <= groups && tasks * (int64_t{1} << 17) < elements) tasks *= 2;
  return tasks;
}

template <class In>
void add_layers(const PoolMomentsArgs& args) {
  const HiddenStates& hidden = args.hidden;
  const TokenOrder order(hidden);
  const int64_t tasks = tasks_of_tokens(order.total() * hidden.d, args.sums.groups);
  const auto sentences = sentences_by_task(args, tasks);
  SharedSums shared(hidden.n_layers * tasks, hidden.d, true);
  const int threads = threads_for(hidden.n_layers * order.total() * hidden.d, args.threads);
  parallel_for(hidden.n_layers * tasks, threads, [&](int64_t task) {
    add_sentences<In>(args, order, sentences[size_t(task % tasks)], task / tasks, shared, task);
  });
  parallel_for(hidden.n_layers, threads,
               [&](int64_t layer) { shared.add_to(args.sums, layer, layer * tasks, (layer + 1) * tasks); });
}

}  // namespace

void pool_moments(const PoolMomentsArgs& args) {
  with_element_type(args.hidden.dtype, [&](auto* element) {
    add_layers<std::remove_const_t<std::remove_pointer_t<decltype(element)>>>(args);
  });
}

}  // namespace CONE_ISA

CONE_FORWARD(pool_moments, PoolMomentsArgs)

}  // namespace cone
