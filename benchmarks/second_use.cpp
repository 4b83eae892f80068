// Two threads read blocks of memory, each its own half, from some places at once: distinct blocks, or
// half as many, each twice in a row. Arguments: MB of a thread's block, rounds, places. Prints bytes a second of both, and of second uses.
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
using Words = uint64_t __attribute__((vector_size(64)));
constexpr size_t kHuge = 2 << 20, kMemory = 256 << 20, kAhead = 512;

std::atomic<int> arrived{0}, phase{0};

void barrier() {
  const int now = phase.load();
  if (arrived.fetch_add(1) == 1) {
    arrived = 0;
    phase = now + 1;
  } else {
    while (phase.load() == now) {
    }
  }
}

Words read(const char* block, size_t bytes, size_t places, Words sum) {
  const size_t each = bytes / places / 64 * 64;
  for (size_t i = 0; i + 256 <= each; i += 256) {
    for (size_t place = 0; place < places; ++place) {
      const char* at = block + place * each + i;
      for (size_t line = 0; line < 256; line += 64) __builtin_prefetch(at + kAhead + line);
      const auto* words = reinterpret_cast<const Words*>(at);
      sum += (words[0] ^ words[1]) + (words[2] ^ words[3]);
    }
  }
  return sum;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 4) return 2;
  const auto bytes = static_cast<size_t>(std::atof(arguments[1]) * 1e6) / 4096 * 4096;
  const int rounds = std::atoi(arguments[2]);
  const auto places = static_cast<size_t>(std::atoi(arguments[3]));
  const size_t blocks = kMemory / bytes / 2 * 2;
  const char* memory[2];
  for (int t = 0; t < 2; ++t) {
    void* found = mmap(nullptr, kMemory + 2 * kHuge, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (found == MAP_FAILED) return 1;
    const auto at = (reinterpret_cast<uintptr_t>(found) + kHuge - 1) / kHuge * kHuge;
    auto* begin = reinterpret_cast<char*>(at);
#ifdef MADV_HUGEPAGE
    madvise(begin, kMemory + kHuge, MADV_HUGEPAGE);
#endif
    std::memset(begin, t + 1, kMemory + kHuge);
    memory[t] = begin;
  }
  std::vector<double> distinct, twice, second;
  Words sums[2] = {};
  const auto work = [&](int t) {
    Words sum{};
    const auto timed = [&](const char* block) {
      barrier();
      const auto begin = Clock::now();
      sum = read(block, bytes, places, sum);
      barrier();
      return std::chrono::duration<double>(Clock::now() - begin).count();
    };
    for (int round = 0; round <= rounds; ++round) {
      double once = 0, first = 0, again = 0;
      for (size_t i = 0; i < blocks; ++i) once += timed(memory[t] + i * bytes);
      for (size_t i = 0; i < blocks / 2; ++i) {
        first += timed(memory[t] + i * bytes);
        again += timed(memory[t] + i * bytes);
      }
      if (t || round == 0) continue;  // The first round warms up.
      const double all = 2.0 * static_cast<double>(bytes * blocks);
      distinct.push_back(all / once);
      twice.push_back(all / (first + again));
      second.push_back(all / 2 / again);
    }
    sums[t] = sum;
  };
  std::thread other(work, 1);
  work(0);
  other.join();
  std::fprintf(stderr, "%llu\n", static_cast<unsigned long long>((sums[0] + sums[1])[0]));
  std::printf("%g %g %g\n", median(distinct), median(twice), median(second));
}
