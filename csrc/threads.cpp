#include "threads.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <system_error>
#include <utility>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

#include "error.h"

namespace flyweight {
namespace {

// Longer than sampling a token takes between two runs, short beside a scheduler's slice.
constexpr auto kSpin = std::chrono::microseconds(100);

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

void pin_to(std::thread& thread, int index) {
#if defined(__linux__)
  cpu_set_t all, one;
  if (sched_getaffinity(0, sizeof all, &all) != 0) return;
  for (int cpu = 0, seen = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &all) || seen++ != index) continue;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    pthread_setaffinity_np(thread.native_handle(), sizeof one, &one);
    return;
  }
#else
  (void)thread, (void)index;
#endif
}

}  // namespace

int available_processors() {
#if defined(__linux__)
  cpu_set_t all;
  if (sched_getaffinity(0, sizeof all, &all) == 0) return std::max(1, CPU_COUNT(&all));
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// Threads that share a processor would spin in each other's way.
Pool::Pool(int threads, bool pin)
    : threads_(threads), spins_(threads <= available_processors()), owner_(getpid()) {
  require(threads >= 1 && threads <= 1024, "threads = ", threads, ": 1 to 1024 are wanted");
  workers_.reserve(static_cast<size_t>(threads - 1));
  for (int i = 1; i < threads; ++i) {
    try {
      workers_.emplace_back([this, i] { serve(i); });
    } catch (const std::system_error&) {
      stop();
      throw Error(text("threads = ", threads, ": the system gives no more than ", i, " here"));
    }
    if (pin) pin_to(workers_.back(), i);
  }
}

Pool::~Pool() {
  if (!forked()) {
    stop();
  } else {
    // A fork has the objects of the threads, not the threads: nothing of them may be touched.
    static_cast<void>(new std::vector<std::thread>(std::move(workers_)));
  }
}

void Pool::stop() {
  stop_ = true;
  epoch_.fetch_add(1);
  epoch_.notify_all();
  for (auto& worker : workers_) worker.join();
}

bool Pool::forked() const { return owner_ != getpid(); }

void Pool::check_process() const {
  require(threads_ == 1 || !forked(),
          "this model was loaded before the process forked, and threads do not survive a fork; "
          "load it again in the new process");
}

void Pool::start(void (*call)(void*, int), void* work) {
  given_ = 0;
  if (threads_ == 1) return call(work, 0);
  check_process();
  call_ = call;
  work_ = work;
  epoch_.store(epoch_.load(std::memory_order_relaxed) + 1);
  wake(epoch_);
  call(work, 0);
  barrier();
}

void Pool::serve(int thread) {
  uint32_t seen = 0;
  for (;;) {
    wait_while(epoch_, seen);
    ++seen;
    if (stop_) return;
    call_(work_, thread);
    barrier();
  }
}

Pool::Range Pool::next(int64_t count, int64_t least) {
  int64_t first = given_.load(std::memory_order_relaxed), last;
  do {
    if (first >= count) return {count, count};
    const int64_t many = (count - first) / (2 * threads_) / (2 * least) * (2 * least);
    last = std::min(count, first + std::max(least, many));
  } while (!given_.compare_exchange_weak(first, last, std::memory_order_relaxed));
  return {first, last};
}

void Pool::barrier() {
  if (threads_ == 1) return given_.store(0, std::memory_order_relaxed);
  const uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
    arrived_.store(0, std::memory_order_relaxed);
    given_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1);
    wake(phase_);
  } else {
    wait_while(phase_, phase);
  }
}

void Pool::wait_while(std::atomic<uint32_t>& word, uint32_t old) {
  if (spins_) {
    const auto begin = std::chrono::steady_clock::now();
    do {
      for (int i = 0; i < 64; ++i) {
        if (word.load(std::memory_order_acquire) != old) return;
        pause();
      }
    } while (std::chrono::steady_clock::now() - begin < kSpin);
  }
  // Sequentially consistent on both sides: either the waker sees the sleeper, or the sleeper the
  // new word.
  sleepers_.fetch_add(1);
  while (word.load() == old) word.wait(old);
  sleepers_.fetch_sub(1);
}

void Pool::wake(std::atomic<uint32_t>& word) {
  if (sleepers_.load() > 0) word.notify_all();
}

}  // namespace flyweight
