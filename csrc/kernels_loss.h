// Softmax cross-entropy of a row of logits; its gradient takes the logits' place.
// Include after kernels_elementwise.h.
#pragma once

#include <cmath>
#include <cstring>

#include "kernels_row.h"

namespace flyweight {
namespace {

template <Format format>
float cross_entropy_of(int64_t n, const NumberRow<format>& row, int64_t target,
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
    return cross_entropy_of(n, NumberRow<Format::BF16>{data}, target, terms, scratch);
  }
  return cross_entropy_of(n, NumberRow<Format::F32>{data}, target, terms, scratch);
}

}  // namespace
}  // namespace flyweight
