// Attention of one key-value head over a stretch of positions, with a running maximum and sum
// (arXiv:1805.02867). A row's result does not depend on how many rows are given.
// Include after kernels_elementwise.h.
#pragma once

#include <bit>
#include <limits>

namespace flyweight {
namespace {

constexpr int kKeys = 32;  // positions that share one update of the maximum

// A cached row: F32, F16 and BF16 as they are; Q8_0 the 8-bit numbers of all blocks of 32 (the last one
// filled up with zeros), then a float32 scale for each.
size_t stored_bytes(Format format, int64_t head_dim) {
  const size_t n = static_cast<size_t>(head_dim);
  if (format == Format::F32) return 4 * n;
  if (format == Format::F16 || format == Format::BF16) return 2 * n;
  const size_t blocks = (n + kBlock - 1) / kBlock;
  return blocks * (kBlock + 4);
}

// Numbers that F16 has not are stored as its largest: an infinite key would make every score that
// sees it no number. What is no number stays none.
constexpr float kLargestHalf = 65504.0f;

inline F within_half(F v) {
  const F low = Lanes::min(Lanes::set(kLargestHalf), v);  // the second where one is no number
  return Lanes::max(Lanes::set(-kLargestHalf), low);
}

void store(Format format, int64_t head_dim, const float* x, void* out) {
  auto* to = static_cast<uint8_t*>(out);
  if (format == Format::F32) {
    std::memcpy(to, x, sizeof(float) * head_dim);
    return;
  }
  if (format == Format::F16) {
    int64_t i = 0;
    for (; i + 16 <= head_dim; i += 16) {
      Lanes::store_half(to + 2 * i, within_half(Lanes::load(x + i)));
    }
    if (i < head_dim) {
      uint8_t tail[32];
      const int n = static_cast<int>(head_dim - i);
      Lanes::store_half(tail, within_half(load_lanes(x + i, n)));
      std::memcpy(to + 2 * i, tail, 2 * n);
    }
    return;
  }
  if (format == Format::BF16) {
    for (int64_t i = 0; i < head_dim; ++i) {
      const uint16_t v = float_to_bf16(x[i]);
      std::memcpy(to + 2 * i, &v, 2);
    }
    return;
  }
  const int64_t blocks = (head_dim + kBlock - 1) / kBlock;
  for (int64_t b = 0; b < blocks; ++b) {
    alignas(64) float block[kBlock] = {};
    const int64_t n = head_dim - b * kBlock < kBlock ? head_dim - b * kBlock : kBlock;
    std::memcpy(block, x + b * kBlock, sizeof(float) * n);
    alignas(64) uint8_t prepared[64];
    prepare_blocks(layout(Format::Q8_0), kBlock, block, prepared);
    std::memcpy(to + b * kBlock, prepared, kBlock);
    std::memcpy(to + blocks * kBlock + 4 * b, prepared + kBlock, 4);
  }
}

// Numbers [16 v, 16 v + 16) of a cached row, n of them there.
template <Format format>
inline F cached(int64_t head_dim, const uint8_t* row, int64_t v, int n) {
  using L = Lanes;
  if constexpr (format == Format::F32) {
    return load_lanes(reinterpret_cast<const float*>(row) + 16 * v, n);
  } else if constexpr (format == Format::F16 || format == Format::BF16) {
    const auto widened = [](const void* p) {
      if constexpr (format == Format::F16) return L::half(p);
      else return L::bf16(p);
    };
    if (n == 16) return widened(row + 32 * v);
    uint16_t tail[16] = {};
    std::memcpy(tail, row + 32 * v, 2 * n);
    return widened(tail);
  } else {
    const int64_t blocks = (head_dim + kBlock - 1) / kBlock;
    float scale;
    std::memcpy(&scale, row + blocks * kBlock + 4 * (v / 2), 4);
    return L::mul(L::signed_bytes(row + 16 * v), L::set(scale));
  }
}

inline int lanes_at(int64_t head_dim, int64_t v) {
  return head_dim - 16 * v < 16 ? static_cast<int>(head_dim - 16 * v) : 16;
}

// What a row brings along and keeps.
struct Row {
  const float* query;
  int64_t position, from;
  float slope;
  float *max, *sum, *acc;

  bool sees(int64_t begin, int n) const { return from < begin + n && position >= begin; }
};

// All bits of the second half, or of the first.
struct HalfSet {
  alignas(64) float bits[2 * kKeys];
  constexpr explicit HalfSet(bool second) : bits{} {
    for (int i = 0; i < kKeys; ++i) bits[second ? kKeys + i : i] = std::bit_cast<float>(~0u);
  }
};

// Sums of products in, scores out: scaled, with ALiBi's bias, minus infinity where not seen.
inline void finish_scores(const Row& row, float scale, bool biased, int64_t begin, int n, F& low,
                          F& high) {
  using L = Lanes;
  alignas(64) static constexpr float kCount[kKeys] = {
      0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
      16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};
  static constexpr HalfSet kAfter(true), kBefore(false);
  const bool all = n == kKeys && row.from <= begin && row.position >= begin + n - 1;
  // Keys [first, last) of the stretch are seen.
  const int64_t after = row.from - begin, before = row.position - begin + 1;
  const int64_t first = after < 0 ? 0 : after < kKeys ? after : kKeys;
  const int64_t last = before < 0 ? 0 : before < n ? before : n;
  F* const scores[] = {&low, &high};
  for (int half = 0; half < 2; ++half) {
    F& score = *scores[half];
    score = L::mul(L::set(scale), score);
    if (biased) {
      const F at = L::set(static_cast<float>(row.position - begin));
      const F distance = L::sub(at, L::load(kCount + 16 * half));
      score = L::sub(score, L::mul(L::set(row.slope), distance));
    }
    if (all) continue;
    const int64_t at = kKeys + 16 * half;
    const I seen = L::iand(L::bits(L::load(kAfter.bits + at - first)),
                           L::bits(L::load(kBefore.bits + at - last)));
    const I nothing = L::bits(L::set(-std::numeric_limits<float>::infinity()));
    score = L::floats(L::iadd(L::iand(L::bits(score), seen),
                              L::isub(nothing, L::iand(nothing, seen))));
  }
}

// Sums of products of R rows in; out come probabilities relative to the new maximum, and factors for
// what was before.
template <int R>
inline void update_rows(const Row* rows, float scale, bool biased, int64_t begin, int n,
                        F (&low)[R], F (&high)[R], float (*probabilities)[kKeys], float* factors) {
  using L = Lanes;
  constexpr float kNothing = -std::numeric_limits<float>::infinity();
  F both[R];
  for (int r = 0; r < R; ++r) {
    finish_scores(rows[r], scale, biased, begin, n, low[r], high[r]);
    both[r] = L::max(low[r], high[r]);
  }
  float top[R], sums[R];
  alignas(64) float change[16] = {};
  L::each_largest(both, top);
  for (int r = 0; r < R; ++r) {
    const float before = *rows[r].max;
    top[r] = top[r] > before ? top[r] : before;
    change[r] = top[r] == before ? 0.0f : before - top[r];
    *rows[r].max = top[r];
    // Where nothing was seen yet the base is 0: e^-inf is 0.
    const F base = L::set(top[r] == kNothing ? 0.0f : top[r]);
    low[r] = exponential_below(L::sub(low[r], base));
    high[r] = exponential_below(L::sub(high[r], base));
    both[r] = L::add(low[r], high[r]);
    L::store(probabilities[r], low[r]);
    L::store(probabilities[r] + 16, high[r]);
  }
  L::store(change, exponential_below(L::load(change)));
  L::each_sum(both, sums);
  for (int r = 0; r < R; ++r) {
    factors[r] = change[r];
    *rows[r].sum = *rows[r].sum * change[r] + sums[r];
  }
}

// R rows straight from the cache, each of whose numbers is made float once for all of them.
// V: head_dim / 16 where that is known, else 0.
template <Format format, int V, int R>
void attend_rows(int64_t head_dim, const Row* rows, float scale, bool biased, const uint8_t* key,
                 const uint8_t* value, size_t stride, int64_t begin, int n) {
  using L = Lanes;
  const int64_t vectors = V ? V : (head_dim + 15) / 16;
  const auto lanes = [&](int64_t v) { return V ? 16 : lanes_at(head_dim, v); };
  // What the next stretch reads is asked for while this one is read.
  const auto fetch_next = [&](const uint8_t* p) {
    for (size_t line = 0; line < stride; line += 64) {
      L::prefetch(reinterpret_cast<uintptr_t>(p) + kKeys * stride + line);
    }
  };
  F sums[2][R];
  for (int half = 0; half < kKeys; half += 16) {
    F dots[R][16];
#pragma GCC unroll 2
    for (int k = 0; k < 16; ++k) {
      // Beyond the last row: the last one again, whose score finish_scores throws away.
      const uint8_t* at = key + (half + k < n ? half + k : n - 1) * stride;
      fetch_next(at);
      F dot[R];
      for (int r = 0; r < R; ++r) dot[r] = L::set(0.0f);
      for (int64_t v = 0; v < vectors; ++v) {
        const F number = cached<format>(head_dim, at, v, lanes(v));
        for (int r = 0; r < R; ++r) {
          dot[r] = L::fma(load_lanes(rows[r].query + 16 * v, lanes(v)), number, dot[r]);
        }
      }
      for (int r = 0; r < R; ++r) dots[r][k] = dot[r];
    }
    for (int r = 0; r < R; ++r) sums[half / 16][r] = L::sums(dots[r]);
  }
  alignas(64) float scores[R][kKeys];
  float factors[R];
  update_rows<R>(rows, scale, biased, begin, n, sums[0], sums[1], scores, factors);
  // As many sums at once as hide the time that each addition takes.
  constexpr int kSums = R == 1 ? (V ? V : 1) : V < L::kValueVectors ? (V ? V : 1) : L::kValueVectors;
  for (int64_t v = 0; v < vectors; v += kSums) {
    F total[R][kSums];
    for (int r = 0; r < R; ++r) {
      for (int i = 0; i < kSums; ++i) {
        total[r][i] = L::mul(load_lanes(rows[r].acc + 16 * (v + i), lanes(v + i)), L::set(factors[r]));
      }
    }
    for (int k = 0; k < n; ++k) {
      const uint8_t* at = value + k * stride;
      if (v == 0) fetch_next(at);
      F number[kSums];
      for (int i = 0; i < kSums; ++i) {
        number[i] = cached<format>(head_dim, at, v + i, lanes(v + i));
      }
      for (int r = 0; r < R; ++r) {
        const F p = L::set(scores[r][k]);
        for (int i = 0; i < kSums; ++i) total[r][i] = L::fma(p, number[i], total[r][i]);
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int i = 0; i < kSums; ++i) {
        store_lanes(rows[r].acc + 16 * (v + i), lanes(v + i), total[r][i]);
      }
    }
  }
}

// Many rows share a stretch of keys: these are turned (a lane a key) and values made float once.
constexpr int kMostDim = 256;
constexpr int kFewestShared = 9;  // rows

struct SharedKeys {
  alignas(64) float keys[kMostDim * kKeys];
  alignas(64) float values[kKeys * kMostDim];
  int64_t vectors;  // of 16 numbers, to a row

  const float* key(int64_t number) const { return keys + kKeys * number; }
  const float* value(int64_t k) const { return values + 16 * vectors * k; }

  template <Format format>
  void fill(int64_t head_dim, const uint8_t* key, const uint8_t* value, size_t stride, int n) {
    using L = Lanes;
    vectors = (head_dim + 15) / 16;
    for (int64_t v = 0; v < vectors; ++v) {
      const int m = lanes_at(head_dim, v);
      for (int k = 0; k < n; ++k) {
        L::store(values + 16 * (vectors * k + v), cached<format>(head_dim, value + k * stride, v, m));
      }
      for (int half = 0; half < kKeys; half += 16) {
        F block[16];
        for (int k = 0; k < 16; ++k) {
          const bool there = half + k < n;
          block[k] = there ? cached<format>(head_dim, key + (half + k) * stride, v, m) : L::set(0);
        }
        L::transpose(block);
        for (int i = 0; i < 16; ++i) L::store(keys + kKeys * (16 * v + i) + half, block[i]);
      }
    }
  }
};

// Dot products of R rows with all keys, added up in the order of attend_rows: a lane's products over
// the vectors, then lanes l and l + 8, l + 4, l + 2, l + 1. Here the sum of lanes `lane`,
// lane + step, lane + 2 step and so on.
template <int R, int V, int lane, int step>
[[gnu::always_inline]] inline void shared_dots(const SharedKeys& shared,
                                               const float* const (&query)[R], F (&low)[R],
                                               F (&high)[R]) {
  using L = Lanes;
  if constexpr (step == 16) {
    const int64_t vectors = V ? V : shared.vectors;
    for (int r = 0; r < R; ++r) low[r] = high[r] = L::set(0.0f);
#pragma GCC unroll 4
    for (int64_t v = 0; v < vectors; ++v) {
      const float* key = shared.key(16 * v + lane);
      const F first = L::load(key), second = L::load(key + 16);
      for (int r = 0; r < R; ++r) {
        const F p = L::set(query[r][16 * v + lane]);
        low[r] = L::fma(p, first, low[r]);
        high[r] = L::fma(p, second, high[r]);
      }
    }
  } else {
    F other_low[R], other_high[R];
    shared_dots<R, V, lane, 2 * step>(shared, query, low, high);
    shared_dots<R, V, lane + step, 2 * step>(shared, query, other_low, other_high);
    for (int r = 0; r < R; ++r) {
      low[r] = L::add(low[r], other_low[r]);
      high[r] = L::add(high[r], other_high[r]);
    }
  }
}

// acc = acc factor + the sum over keys of probability value, for R rows and V vectors from v on.
template <int R, int V>
inline void add_values(const SharedKeys& shared, int64_t head_dim, const Row* rows,
                       const float* factors, const float (*p)[kKeys], int n, int64_t v) {
  using L = Lanes;
  F acc[R][V];
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < V; ++j) {
      const F old = load_lanes(rows[r].acc + 16 * (v + j), lanes_at(head_dim, v + j));
      acc[r][j] = L::mul(old, L::set(factors[r]));
    }
  }
  for (int k = 0; k < n; ++k) {
    F value[V];
    for (int j = 0; j < V; ++j) value[j] = L::load(shared.value(k) + 16 * (v + j));
    for (int r = 0; r < R; ++r) {
      const F probability = L::set(p[r][k]);
      for (int j = 0; j < V; ++j) acc[r][j] = L::fma(probability, value[j], acc[r][j]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int j = 0; j < V; ++j) {
      store_lanes(rows[r].acc + 16 * (v + j), lanes_at(head_dim, v + j), acc[r][j]);
    }
  }
}

// f<R>(r) over rows [0, n), four at a time.
template <class Function>
inline void for_rows(int n, Function f) {
  int r = 0;
  for (; r + 4 <= n; r += 4) f.template operator()<4>(r);
  if (n - r == 3) f.template operator()<3>(r);
  if (n - r == 2) f.template operator()<2>(r);
  if (n - r == 1) f.template operator()<1>(r);
}

// Rows that take the three steps of a stretch together, so that none waits for its own last step.
constexpr int kRowsAtOnce = 64;

template <int V>
void attend_shared(const SharedKeys& shared, int64_t head_dim, const Row* rows, int count,
                   float scale, bool biased, int64_t begin, int n) {
  using L = Lanes;
  alignas(64) float scores[kRowsAtOnce][kKeys];
  float factors[kRowsAtOnce];
  for_rows(count, [&]<int R>(int at) {
    const float* query[R];
    float padded[R][kMostDim];
    for (int r = 0; r < R; ++r) {
      query[r] = rows[at + r].query;
      if (head_dim % 16) {
        std::memcpy(padded[r], query[r], sizeof(float) * head_dim);
        for (int64_t i = head_dim; i < 16 * shared.vectors; ++i) padded[r][i] = 0.0f;
        query[r] = padded[r];
      }
    }
    F low[R], high[R];
    shared_dots<R, V, 0, 1>(shared, query, low, high);
    for (int r = 0; r < R; ++r) {
      L::store(scores[at + r], low[r]);
      L::store(scores[at + r] + 16, high[r]);
    }
  });
  for_rows(count, [&]<int R>(int at) {
    F low[R], high[R];
    for (int r = 0; r < R; ++r) {
      low[r] = L::load(scores[at + r]);
      high[r] = L::load(scores[at + r] + 16);
    }
    update_rows<R>(rows + at, scale, biased, begin, n, low, high, scores + at, factors + at);
  });
  for_rows(count, [&]<int R>(int at) {
    // What none of the rows sees has no probability.
    int64_t end = 0;
    for (int r = at; r < at + R; ++r) end = end > rows[r].position ? end : rows[r].position + 1;
    const int some = end < begin + n ? static_cast<int>(end - begin) : n;
    constexpr int kAtOnce = L::kValueVectors;
    int64_t v = 0;
    for (; v + kAtOnce <= shared.vectors; v += kAtOnce) {
      add_values<R, kAtOnce>(shared, head_dim, rows + at, factors + at, scores + at, some, v);
    }
    for (; v < shared.vectors; ++v) {
      add_values<R, 1>(shared, head_dim, rows + at, factors + at, scores + at, some, v);
    }
  });
}

// V: head_dim / 16 where few rows have kernels of their own for it, else 0.
template <Format format, int V>
void attend_all(int64_t head_dim, int64_t rows, const float* const* queries, float scale,
                const float* slopes, const int64_t* position, const int64_t* from,
                const void* keys, const void* values, size_t stride, int64_t first,
                int64_t count, float* max, float* sum, float* acc) {
  const auto* key = static_cast<const uint8_t*>(keys);
  const auto* value = static_cast<const uint8_t*>(values);
  // Heads of an odd size, few rows of which go through kernels one by one, are shared sooner.
  constexpr int kFewest = V ? kFewestShared : 3;
  const bool share = rows >= kFewest && head_dim <= kMostDim;
  for (int64_t done = 0; done < count; done += kKeys) {
    const int n = count - done < kKeys ? static_cast<int>(count - done) : kKeys;
    const int64_t begin = first + done;
    const uint8_t *k = key + done * stride, *v = value + done * stride;
    SharedKeys shared;
    bool filled = false;
    Row seeing[kRowsAtOnce];
    int there = 0;
    const auto take = [&] {
      if (share) {
        if (!filled) shared.fill<format>(head_dim, k, v, stride, n);
        filled = true;
        attend_shared<V>(shared, head_dim, seeing, there, scale, slopes, begin, n);
      } else if constexpr (V > 0) {
        for_rows(there, [&]<int R>(int at) {
          attend_rows<format, V, R>(head_dim, seeing + at, scale, slopes, k, v, stride, begin, n);
        });
      } else {
        for (int i = 0; i < there; ++i) {
          attend_rows<format, V, 1>(head_dim, seeing + i, scale, slopes, k, v, stride, begin, n);
        }
      }
      there = 0;
    };
    for (int64_t r = 0; r < rows; ++r) {
      const Row row{queries[r], position[r], from[r],           slopes ? slopes[r] : 0.0f,
                    max + r,    sum + r,     acc + r * head_dim};
      if (!row.sees(begin, n)) continue;
      seeing[there++] = row;
      if (there == kRowsAtOnce) take();
    }
    if (there) take();
  }
}

void attend(Format format, int64_t head_dim, int64_t rows, const float* const* queries, float scale,
            const float* slopes, const int64_t* position, const int64_t* from, const void* keys,
            const void* values, size_t stride, int64_t first, int64_t count, float* max,
            float* sum, float* acc) {
  const auto run = [&]<Format f>() {
    const auto all = head_dim == 64    ? attend_all<f, 4>
                     : head_dim == 128 ? attend_all<f, 8>
                                       : attend_all<f, 0>;
    all(head_dim, rows, queries, scale, slopes, position, from, keys, values, stride, first, count,
        max, sum, acc);
  };
  if (format == Format::F32) run.template operator()<Format::F32>();
  else if (format == Format::F16) run.template operator()<Format::F16>();
  else if (format == Format::BF16) run.template operator()<Format::BF16>();
  else run.template operator()<Format::Q8_0>();
}

}  // namespace
}  // namespace flyweight
