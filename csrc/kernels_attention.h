// Attention of one key-value head over a stretch of positions, with a running maximum and sum
// (arXiv:1805.02867). A row's result does not depend on how many rows are given.
// Include after kernels_elementwise.h.
#pragma once

#include <limits>

namespace flyweight {
namespace {

constexpr int kKeys = 32;  // positions that share one update of the maximum

// A cached row: F32 and BF16 as they are; Q8_0 the 8-bit numbers of all blocks of 32 (the last one
// filled up with zeros), then a float32 scale for each.
size_t stored_bytes(Format format, int64_t head_dim) {
  const size_t n = static_cast<size_t>(head_dim);
  if (format == Format::F32) return 4 * n;
  if (format == Format::BF16) return 2 * n;
  const size_t blocks = (n + kBlock - 1) / kBlock;
  return blocks * (kBlock + 4);
}

void store(Format format, int64_t head_dim, const float* x, void* out) {
  auto* to = static_cast<uint8_t*>(out);
  if (format == Format::F32) {
    std::memcpy(to, x, sizeof(float) * head_dim);
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
inline F cached(Format format, int64_t head_dim, const uint8_t* row, int64_t v, int n) {
  using L = Lanes;
  if (format == Format::F32) return load_lanes(reinterpret_cast<const float*>(row) + 16 * v, n);
  if (format == Format::BF16) {
    if (n == 16) return L::bf16(row + 32 * v);
    uint16_t tail[16] = {};
    std::memcpy(tail, row + 32 * v, 2 * n);
    return L::bf16(tail);
  }
  const int64_t blocks = (head_dim + kBlock - 1) / kBlock;
  float scale;
  std::memcpy(&scale, row + blocks * kBlock + 4 * (v / 2), 4);
  return L::mul(L::signed_bytes(row + 16 * v), L::set(scale));
}

inline int lanes_at(int64_t head_dim, int64_t v) {
  return head_dim - 16 * v < 16 ? static_cast<int>(head_dim - 16 * v) : 16;
}

// What a stretch of keys adds to one row: scores in, probabilities relative to the new maximum
// out. Returns the factor for what came before.
inline float update_row(float* scores, float* max, float* sum) {
  using L = Lanes;
  const F low = L::load(scores), high = L::load(scores + 16);
  const float seen = L::largest(L::max(low, high));
  const float top = seen > *max ? seen : *max;
  if (top == -std::numeric_limits<float>::infinity()) {
    for (int k = 0; k < kKeys; ++k) scores[k] = 0.0f;
    return 1.0f;
  }
  const F base = L::set(top);
  const F p_low = exponential(L::sub(low, base)), p_high = exponential(L::sub(high, base));
  L::store(scores, p_low);
  L::store(scores + 16, p_high);
  float first[16];
  L::store(first, exponential(L::set(*max - top)));
  *sum = *sum * first[0] + L::sum(L::add(p_low, p_high));
  *max = top;
  return first[0];
}

void attend(Format format, int64_t head_dim, int64_t rows, const float* const* queries, float scale,
            const float* slopes, const int64_t* position, const int64_t* from, const void* keys,
            const void* values, size_t stride, int64_t first, int64_t count, float* max,
            float* sum, float* acc) {
  using L = Lanes;
  const auto* key = static_cast<const uint8_t*>(keys);
  const auto* value = static_cast<const uint8_t*>(values);
  const int64_t vectors = (head_dim + 15) / 16;
  for (int64_t done = 0; done < count; done += kKeys) {
    const int n = count - done < kKeys ? static_cast<int>(count - done) : kKeys;
    const int64_t begin = first + done;
    for (int64_t r = 0; r < rows; ++r) {
      if (position[r] < begin || from[r] >= begin + n) continue;
      alignas(64) float scores[kKeys];
      for (int k = 0; k < kKeys; ++k) {
        const int64_t at = begin + k;
        if (k >= n || at < from[r] || at > position[r]) {
          scores[k] = -std::numeric_limits<float>::infinity();
          continue;
        }
        F dot = L::set(0.0f);
        for (int64_t v = 0; v < vectors; ++v) {
          const int m = lanes_at(head_dim, v);
          dot = L::fma(load_lanes(queries[r] + 16 * v, m),
                       cached(format, head_dim, key + (done + k) * stride, v, m), dot);
        }
        scores[k] = scale * L::sum(dot);
        if (slopes) scores[k] -= slopes[r] * static_cast<float>(position[r] - at);
      }
      const F before = L::set(update_row(scores, &max[r], &sum[r]));
      for (int64_t v = 0; v < vectors; ++v) {
        const int m = lanes_at(head_dim, v);
        float* out = acc + r * head_dim + 16 * v;
        F total = L::mul(load_lanes(out, m), before);
        for (int k = 0; k < n; ++k) {
          const F row = cached(format, head_dim, value + (done + k) * stride, v, m);
          total = L::fma(L::set(scores[k]), row, total);
        }
        store_lanes(out, m, total);
      }
    }
  }
}

}  // namespace
}  // namespace flyweight
