// Blocks as fibers: a block's threads take turns on one system thread and change places at barriers and shuffles.
// Shared memory starts as NaN in every block. A barrier that not all threads reach at the same line is an error.
#include <ucontext.h>

#include <algorithm>
#include <exception>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cuda/common/launch.cuh"

namespace simt {
namespace {

constexpr size_t kStackBytes = 128 << 10;
constexpr unsigned kMostBlocksUp = 65535;  // of gridDim.y and z

enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kEnded };

// Where a fiber goes on. The compiler's own jumps ask nothing of the C library, whose jumps take ten times as long.
using Spot = void* [5];
[[noreturn]] __attribute__((noinline)) void jump(Spot& spot) { __builtin_longjmp(spot, 1); }

struct Fiber {
  Place place;
  State state = State::kEnded;
  int line;
  bool started = false;
  Spot here;
  std::unique_ptr<unsigned char[]> stack;
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<unsigned char> shared;
  Fiber* running = nullptr;
  const std::function<void()>* body = nullptr;
  std::exception_ptr failure;
  Spot scheduler;
  ucontext_t blank;
};

Block block;
std::mutex one_grid_at_a_time;
int order_seed = 0;
int launches = 0;
std::unordered_map<const void*, uint64_t> adders;  // of this launch, by number of the thread

// A fiber that has ended begins anew in the next block.
void enter() {
  while (true) {
    try {
      (*block.body)();
    } catch (...) {
      block.failure = std::current_exception();
    }
    block.running->state = State::kEnded;
    if (__builtin_setjmp(block.running->here) == 0) jump(block.scheduler);
  }
}

void resume(Fiber& fiber) {
  block.running = &fiber;
  running = &fiber.place;
  if (__builtin_setjmp(block.scheduler) != 0) return;
  if (fiber.started) jump(fiber.here);
  fiber.started = true;
  if (!fiber.stack) fiber.stack.reset(new unsigned char[kStackBytes]);
  ucontext_t context = block.blank;
  context.uc_stack.ss_sp = fiber.stack.get();
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, enter, 0);
  setcontext(&context);
}

void wait(State state, int line) {
  Fiber& fiber = *block.running;
  fiber.state = state;
  fiber.line = line;
  if (__builtin_setjmp(fiber.here) == 0) jump(block.scheduler);
}

bool waits_like(const Fiber& a, const Fiber& b) { return a.state == b.state && a.line == b.line; }

// Lets the `count` threads from `first` on go on if all of them wait in this state at one line.
bool release(State state, size_t first, size_t count) {
  for (size_t i = first; i < first + count; ++i)
    if (block.fibers[i].state != state || !waits_like(block.fibers[first], block.fibers[i])) return false;
  for (size_t i = first; i < first + count; ++i) block.fibers[i].state = State::kReady;
  return true;
}

std::string divergence(const char* op, size_t threads) {
  std::string message = std::string(op) + ": divergent barrier:";
  for (size_t i = 0; i < threads && message.size() < 600; ++i) {
    const Fiber& fiber = block.fibers[i];
    const bool ended = fiber.state == State::kEnded;
    if (i > 0 && waits_like(fiber, block.fibers[i - 1])) continue;
    message += " thread " + std::to_string(i) + (ended ? " has ended" : " waits at line " + std::to_string(fiber.line));
    if (fiber.state == State::kAtWarpBarrier) message += " for its warp";
    message += ";";
  }
  return message;
}

bool run_if_ready(Fiber& fiber) {
  if (fiber.state != State::kReady) return false;
  resume(fiber);
  if (block.failure) std::rethrow_exception(std::exchange(block.failure, nullptr));
  return true;
}

// Runs a warp on to its next block barrier, while the others stay where they are.
bool run_ahead(size_t first) {
  bool ran = false;
  do {
    for (size_t i = first; i < first + kWarp; ++i) ran = run_if_ready(block.fibers[i]) || ran;
  } while (release(State::kAtWarpBarrier, first, kWarp));
  return ran;
}

void run_block(const char* op, const std::vector<size_t>& order) {
  const size_t threads = order.size();
  while (true) {
    bool ran = false;
    for (const size_t i : order)
      ran = (order_seed > 1 ? run_ahead(i / kWarp * kWarp) : run_if_ready(block.fibers[i])) || ran;
    bool released = false;
    for (size_t first = 0; first < threads; first += kWarp)
      released = release(State::kAtWarpBarrier, first, kWarp) || released;
    released = release(State::kAtBlockBarrier, 0, threads) || released;
    if (ran || released) continue;
    for (size_t i = 0; i < threads; ++i)
      if (block.fibers[i].state != State::kEnded) throw std::logic_error(divergence(op, threads));
    return;
  }
}

// 0: in order, 1: from the last to the first, else shuffled, and warps run ahead of each other.
std::vector<size_t> order_of(size_t n) {
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), size_t{0});
  if (order_seed == 1) std::reverse(order.begin(), order.end());
  if (order_seed > 1) std::shuffle(order.begin(), order.end(), std::mt19937(unsigned(order_seed)));
  return order;
}

}  // namespace

const Place* running = nullptr;
int most_shared = 227 << 10;
alignas(kSlotBytes) unsigned char slots[2][kMostThreads][kSlotBytes];
unsigned turns[kMostThreads];
unsigned char* shared_memory() { return block.shared.data(); }
void note_adder(const void* address) {
  const Place& at = *running;
  const uint64_t block_number = (uint64_t{at.block.z} * at.grid.y + at.block.y) * at.grid.x + at.block.x;
  const uint64_t thread = block_number * kMostThreads + at.thread.x;
  if (adders.emplace(address, thread).first->second != thread)
    throw std::logic_error("add_to: two threads of a launch add to one number");
}
void block_barrier(int line) { wait(State::kAtBlockBarrier, line); }
void warp_barrier(unsigned mask, int line) {
  if (mask != kAllLanes) throw std::logic_error("a warp's barrier: got some lanes; the shim knows all 32 only");
  wait(State::kAtWarpBarrier, line);
}

void run(const char* op, dim3 grid, unsigned threads, size_t shared_bytes, const std::function<void()>& body) {
  const std::lock_guard<std::mutex> lock(one_grid_at_a_time);
  if (threads == 0 || threads > kMostThreads || threads % kWarp != 0 || shared_bytes > size_t(most_shared))
    throw std::invalid_argument(std::string(op) + ": a block of " + std::to_string(threads) + " threads with " +
                                std::to_string(shared_bytes) + " bytes of shared memory cannot be launched");
  if (grid.y > kMostBlocksUp || grid.z > kMostBlocksUp)
    throw std::invalid_argument(std::string(op) + ": a grid of " + std::to_string(grid.x) + " x " +
                                std::to_string(grid.y) + " x " + std::to_string(grid.z) + " blocks cannot be launched");
  ++launches;
  adders.clear();
  block.body = &body;
  block.fibers.resize(std::max(block.fibers.size(), size_t(threads)));
  getcontext(&block.blank);
  const std::vector<size_t> order = order_of(threads);
  for (const size_t number : order_of(size_t(grid.x) * grid.y * grid.z)) {
    const dim3 at(unsigned(number % grid.x), unsigned(number / grid.x % grid.y), unsigned(number / grid.x / grid.y));
    block.shared.assign(shared_bytes, 0xff);
    for (unsigned i = 0; i < threads; ++i) {
      Fiber& fiber = block.fibers[i];
      fiber.place = {dim3(i), at, dim3(threads), grid};
      fiber.started = fiber.started && fiber.state == State::kEnded;  // others were left at a barrier
      fiber.state = State::kReady;
      turns[i] = 0;
    }
    run_block(op, order);
  }
}

}  // namespace simt

// Chooses the order in which blocks, and threads between barriers, run: answers must not depend on it.
extern "C" __attribute__((visibility("default"))) void simt_order(int seed) { simt::order_seed = seed; }

// How many kernels have been launched so far.
extern "C" __attribute__((visibility("default"))) int simt_launches() { return simt::launches; }

// How many bytes of shared memory a block may have from now on.
extern "C" __attribute__((visibility("default"))) void simt_most_shared(int bytes) { simt::most_shared = bytes; }
