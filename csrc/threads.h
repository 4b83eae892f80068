// One pool of threads per executor, woken once per run of the program; within a run the threads
// meet at barriers and allocate nothing.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace flyweight {

class Pool {
 public:
  // `threads` includes the caller of run. `pin`: thread i stays on the i-th processor that this
  // process may use (the caller, who is not ours, stays free).
  Pool(int threads, bool pin);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int size() const { return threads_; }

  // Whether this process was forked off: the threads are not there.
  bool forked() const;
  // Throws Error where they are wanted and are not there.
  void check_process() const;

  // Calls work(thread) on every thread, the caller being number 0; returns when all have returned.
  // work must not throw. One caller at a time.
  template <class Work>
  void run(Work& work) {
    start([](void* w, int thread) { (*static_cast<Work*>(w))(thread); }, &work);
  }

  // Within run: returns when every thread has come here.
  void barrier();

  struct Range {
    int64_t first, last;
  };
  // [first, last) of `count` things, of one kind between two barriers, for the thread that asks, so
  // that a core that is slower, or used by others as well, does fewer. Empty: all are given. First a
  // thread's share of half of what is left, in multiples of 2 `least`; at last `least`.
  Range next(int64_t count, int64_t least);

  // [first, last) of `count` things for a thread: contiguous, the sizes differing by one at most.
  Range share(int64_t count, int thread) const {
    return {count * thread / threads_, count * (thread + 1) / threads_};
  }

 private:
  void start(void (*call)(void*, int), void* work);
  // Ends the threads.
  void stop();
  void serve(int thread);
  // Until `word` is no longer `old`: spins a while, then sleeps.
  void wait_while(std::atomic<uint32_t>& word, uint32_t old);
  void wake(std::atomic<uint32_t>& word);

  const int threads_;
  bool spins_;
  int64_t owner_;
  void (*call_)(void*, int) = nullptr;
  void* work_ = nullptr;
  bool stop_ = false;
  alignas(64) std::atomic<uint32_t> epoch_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> sleepers_{0};
  alignas(64) std::atomic<int64_t> given_{0};  // of the things that next() hands out
  std::vector<std::thread> workers_;
};

// How many processors this process may use.
int available_processors();

}  // namespace flyweight
