#include "team.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <mutex>

#include "threads.h"

#ifdef __linux__
#include <dlfcn.h>
#endif

namespace flyweight {
namespace {

// void GOMP_parallel(void (*)(void*), void* data, unsigned threads, unsigned flags)
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
std::atomic<Parallel> openmp{nullptr};

struct Job {
  int64_t count;
  int parts;
  const std::function<void(int64_t, int64_t)>& work;
  std::atomic<int> next{0};
  std::exception_ptr thrown = nullptr;
  std::mutex mutex = {};

  // Whichever thread comes takes the next part: what a part is does not depend on it.
  void run() {
    for (int i = next++; i < parts; i = next++) {
      try {
        work(count * i / parts, count * (i + 1) / parts);
      } catch (...) {
        const std::lock_guard<std::mutex> alone(mutex);
        thrown = std::current_exception();
      }
    }
  }
};

}  // namespace

bool use_openmp(const char* path) {
#ifdef __linux__
  if (void* library = dlopen(path, RTLD_LAZY | RTLD_NOLOAD)) {
    openmp = reinterpret_cast<Parallel>(dlsym(library, "GOMP_parallel"));
  }
#else
  (void)path;
#endif
  return openmp.load() != nullptr;
}

void in_parts(int threads, int64_t count, const std::function<void(int64_t, int64_t)>& work) {
  const auto parts = static_cast<int>(std::min<int64_t>(std::max(threads, 1), std::max<int64_t>(count, 1)));
  Job job{count, parts, work};
  if (parts == 1) {
    job.run();
  } else if (const Parallel parallel = openmp.load()) {
    parallel([](void* data) { static_cast<Job*>(data)->run(); }, &job,
             static_cast<unsigned>(threads), 0);
  } else {
    // One caller at a time, as the pool wants it.
    static std::mutex mutex;
    static std::unique_ptr<Pool> pool;
    const std::lock_guard<std::mutex> alone(mutex);
    if (!pool || pool->size() != threads || pool->forked()) {
      pool = std::make_unique<Pool>(threads, false);
    }
    auto run = [&job](int) { job.run(); };
    pool->run(run);
  }
  if (job.thrown) std::rethrow_exception(job.thrown);
}

}  // namespace flyweight
