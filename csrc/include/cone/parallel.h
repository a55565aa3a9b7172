// Threads over tasks. A kernel cuts its work into tasks by shape alone and gives each task its own output, so that
// the answer does not depend on the number of threads or on which thread takes which task.
#pragma once

#include <cstdint>
#include <exception>

namespace cone {

// To wake a sleeping thread takes some 5 to 50 µs; a thread goes through so many elements of rows in some 20 µs.
constexpr int64_t kElementsPerThread = int64_t{1} << 17;

// How many of `threads` so many elements are worth waking, at least 1.
inline int threads_for(int64_t elements, int threads) {
  const int64_t worth = elements / kElementsPerThread;
  return worth >= threads ? threads : (worth < 1 ? 1 : int(worth));
}

// Calls body(task) for every task in [0, tasks). An exception in a task is rethrown after all threads have joined.
// OpenMP is shared with torch where torch is loaded, so that there is one pool of threads and not two.
template <class Body>
void parallel_for(int64_t tasks, int threads, const Body& body) {
  std::exception_ptr failure = nullptr;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1 && tasks > 1)
  for (int64_t task = 0; task < tasks; ++task) {
    try {
      body(task);
    } catch (...) {
#pragma omp critical
      failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace cone
