#include "kernels_peak.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "threads.h"

#ifdef FLYWEIGHT_X86
#include <immintrin.h>
#endif

namespace flyweight {
namespace {

#ifdef FLYWEIGHT_X86
constexpr int kChains = 12;  // more than the latency of any of these instructions

[[gnu::target("avx512f,avx512vnni"), gnu::noinline]] int64_t dot512(int64_t rounds) {
  __m512i sum[kChains];
#pragma GCC unroll 12
  for (__m512i& s : sum) s = _mm512_set1_epi32(0);
  const __m512i one = _mm512_set1_epi8(1);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (__m512i& s : sum) s = _mm512_dpbusd_epi32(s, one, one);
    __asm__ volatile("" : "+v"(sum[0]));  // so that rounds are not made one
  }
  __m512i all = sum[0];
#pragma GCC unroll 12
  for (__m512i s : sum) all = _mm512_add_epi32(all, s);
  return _mm512_cvtsi512_si32(all);
}

[[gnu::target("avx2,avxvnni"), gnu::noinline]] int64_t dot256(int64_t rounds) {
  __m256i sum[kChains];
#pragma GCC unroll 12
  for (__m256i& s : sum) s = _mm256_set1_epi32(0);
  const __m256i one = _mm256_set1_epi8(1);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (__m256i& s : sum) s = _mm256_dpbusd_avx_epi32(s, one, one);
    __asm__ volatile("" : "+x"(sum[0]));
  }
  __m256i all = sum[0];
#pragma GCC unroll 12
  for (__m256i s : sum) all = _mm256_add_epi32(all, s);
  return _mm256_cvtsi256_si32(all);
}

[[gnu::target("amx-tile,amx-int8"), gnu::noinline]] int64_t tiles(int64_t rounds) {
  alignas(64) uint8_t config[64] = {1};
  for (int i = 0; i < 6; ++i) {
    config[16 + 2 * i] = 64;
    config[48 + i] = 16;
  }
  // The compiler takes the intrinsic to read only the first bytes.
  __asm__ volatile("" ::"r"(config) : "memory");
  _tile_loadconfig(config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  for (int64_t i = 0; i < rounds; ++i) {
    _tile_dpbssd(0, 4, 5);
    _tile_dpbssd(1, 4, 5);
    _tile_dpbssd(2, 4, 5);
    _tile_dpbssd(3, 4, 5);
  }
  _tile_release();
  return rounds;
}
#endif

}  // namespace

double peak_operations([[maybe_unused]] const char* isa) {
#ifdef FLYWEIGHT_X86
  int64_t (*run)(int64_t) = nullptr;
  double operations = 0;  // of a round
  if (!std::strncmp(isa, "avx512", 6)) run = dot512, operations = 2.0 * 64 * kChains;
  if (!std::strcmp(isa, "avx2vnni")) run = dot256, operations = 2.0 * 32 * kChains;
  if (!std::strcmp(isa, "amx")) run = tiles, operations = 4 * 2.0 * 16 * 16 * 64;
  if (!run || !kernels(isa)) return 0;
  double best = 0;
  for (int i = 0; i < 20; ++i) {
    constexpr int64_t kRounds = 100000;
    const auto begin = std::chrono::steady_clock::now();
    volatile int64_t result = run(kRounds);
    (void)result;
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    const double rate = operations * kRounds / taken.count();
    best = rate > best ? rate : best;
  }
  return best;
#else
  return 0;
#endif
}

namespace {

typedef uint64_t Line __attribute__((vector_size(64)));

// 64 KiB from sixteen places at once, a little of each in turn: what the processor's own fetching
// follows at once.
constexpr size_t kPlaces = 16, kPlace = 4096, kPiece = 256, kAhead = 512;

void read_places(const uint8_t* data, Line (&sum)[4]) {
  for (size_t i = 0; i < kPlace; i += kPiece) {
    for (size_t place = 0; place < kPlaces; ++place) {
      const uint8_t* at = data + place * kPlace + i;
      for (size_t line = 0; line < kPiece; line += 64) __builtin_prefetch(at + kAhead + line);
      Line v[4];
      std::memcpy(v, at, sizeof v);
      for (int k = 0; k < 4; ++k) sum[k] += v[k];
    }
  }
}

}  // namespace

uint64_t read_all(const uint8_t* data, size_t bytes) {
  Line sums[4] = {};
  size_t i = 0;
  for (; i + kPlaces * kPlace <= bytes; i += kPlaces * kPlace) read_places(data + i, sums);
  sums[0] += sums[1] + sums[2] + sums[3];
  uint64_t sum = 0;
  for (int k = 0; k < 8; ++k) sum += sums[0][k];
  for (; i + 8 <= bytes; i += 8) {
    uint64_t word;
    std::memcpy(&word, data + i, 8);
    sum += word;
  }
  for (; i < bytes; ++i) sum += data[i];
  return sum;
}

double read_bandwidth(int threads) {
  constexpr size_t kBytes = size_t{256} << 20;  // larger than any processor's cache
  constexpr int kRounds = 4;
  const size_t each = kBytes / static_cast<size_t>(threads);
  std::vector<Region> parts(static_cast<size_t>(threads));
  Pool pool(threads, false);
  auto fill = [&](int thread) {
    Region& part = parts[static_cast<size_t>(thread)];
    std::memset(part.data(), 1, part.bytes());
  };
  for (Region& part : parts) part = Region(each, "measuring memory", false, true);
  pool.run(fill);
  std::vector<uint64_t> sums(static_cast<size_t>(threads));
  auto read = [&](int thread) {
    const auto i = static_cast<size_t>(thread);
    sums[i] += read_all(reinterpret_cast<const uint8_t*>(parts[i].data()), each);
  };
  double best = 0;
  for (int round = 0; round < kRounds; ++round) {
    const auto begin = std::chrono::steady_clock::now();
    pool.run(read);
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    best = std::max(best, static_cast<double>(each) * threads / taken.count());
  }
  return best;
}

}  // namespace flyweight
