// Softmax cross-entropy of a row of logits; its gradient takes the logits' place.
// Include after kernels_elementwise.h.
#pragma once

#include <cmath>
#include <cstring>

namespace flyweight {
namespace {

// A row of float32 or bf16 numbers, 16 at a time; a tail's empty lanes read as `fill`.
template <Format format>
struct LogitRow {
  uint8_t* data;
  static constexpr int64_t kSize = format == Format::BF16 ? 2 : 4;

  F load(int n, int64_t i, float fill = 0.0f) const {
    const uint8_t* p = data + kSize * i;
    if (n == 16) return widen(p);
    uint8_t tail[16 * kSize];
    for (int k = 0; k < 16; ++k) write(tail + kSize * k, fill);
    std::memcpy(tail, p, kSize * n);
    return widen(tail);
  }
  void store(int n, int64_t i, F v) const {
    uint8_t* p = data + kSize * i;
    if (n == 16) return narrow(p, v);
    uint8_t tail[16 * kSize];
    narrow(tail, v);
    std::memcpy(p, tail, kSize * n);
  }
  float at(int64_t i) const {
    if constexpr (format == Format::BF16) {
      uint16_t v;
      std::memcpy(&v, data + 2 * i, 2);
      return bf16_to_float(v);
    } else {
      float v;
      std::memcpy(&v, data + 4 * i, 4);
      return v;
    }
  }
  void put(int64_t i, float v) const { write(data + kSize * i, v); }

 private:
  static void write(uint8_t* p, float v) {
    if constexpr (format == Format::BF16) {
      const uint16_t half = float_to_bf16(v);
      std::memcpy(p, &half, 2);
    } else {
      std::memcpy(p, &v, 4);
    }
  }
  static F widen(const uint8_t* p) {
    if constexpr (format == Format::BF16) return Lanes::bf16(p);
    return Lanes::load(reinterpret_cast<const float*>(p));
  }
  static void narrow(uint8_t* p, F v) {
    if constexpr (format == Format::BF16) {
      Lanes::store_bf16(p, v);
    } else {
      Lanes::store(reinterpret_cast<float*>(p), v);
    }
  }
};

template <Format format>
float cross_entropy_of(int64_t n, const LogitRow<format>& row, int64_t target,
                       const LossTerms& terms, float* scratch) {
  using L = Lanes;
  const F scale = L::set(terms.scale);
  const float low = terms.scale < 0.0f ? INFINITY : -INFINITY;  // nothing, once scaled
  F most = L::set(-INFINITY);
  F total = L::set(0.0f);
  for_lanes(n, [&](int m, int64_t i) {
    most = L::max(L::mul(row.load(m, i, low), scale), most);
  });
  const float max = L::largest(most);  // e^(u - max) waits in scratch for the sum
  const F shift = L::set(-max);
  for_lanes(n, [&](int m, int64_t i) {
    const F e = exponential_below(L::fma(row.load(m, i, low), scale, shift));
    total = L::add(total, e);
    store_lanes(scratch + i, m, e);
  });
  const float log_sum = max + std::log(L::sum(total));
  const float u = terms.scale * row.at(target);
  float loss = log_sum - u;
  if (terms.smoothing != 0.0f) {
    F sum = L::set(0.0f);
    for_lanes(n, [&](int m, int64_t i) { sum = L::add(sum, row.load(m, i)); });
    loss += terms.smoothing * (u - terms.scale * L::sum(sum) / static_cast<float>(n));
  }
  loss += terms.z * log_sum * log_sum;
  // d/dx = scale factor ((1 + 2 z log_sum) p - (1 - smoothing) [target] - smoothing / n)
  const float common = terms.scale * terms.factor;
  const float of_p = common * (1.0f + 2.0f * terms.z * log_sum);
  const F weight = L::set(of_p / L::sum(total));
  const F even = L::set(-common * terms.smoothing / static_cast<float>(n));
  for_lanes(n, [&](int m, int64_t i) {
    row.store(m, i, L::fma(load_lanes(scratch + i, m), weight, even));
  });
  row.put(target, of_p * std::exp(u - log_sum) -
                      common * (1.0f - terms.smoothing + terms.smoothing / static_cast<float>(n)));
  return loss;
}

float cross_entropy(Format format, int64_t n, void* logits, int64_t target, const LossTerms& terms,
                    float* scratch) {
  auto* data = static_cast<uint8_t*>(logits);
  if (target < 0) {
    std::memset(data, 0, (format == Format::BF16 ? 2 : 4) * n);
    return 0.0f;
  }
  if (format == Format::BF16) {
    return cross_entropy_of(n, LogitRow<Format::BF16>{data}, target, terms, scratch);
  }
  return cross_entropy_of(n, LogitRow<Format::F32>{data}, target, terms, scratch);
}

}  // namespace
}  // namespace flyweight
