// What stands between the products of a training step, and its gradients: one pass where a chain of
// elementwise operations takes many. Include after kernels_elementwise.h.
#pragma once

#include <cmath>

#include "kernels_row.h"

namespace flyweight {
namespace {

// y = gain x r, r = 1 / sqrt(mean(x²) + eps), which is returned for the gradient.
float rms_norm_row(Format format, int64_t n, const void* x, const float* gain, float eps, void* y) {
  using L = Lanes;
  float inverse = 0.0f;
  with_rows(format, [&](auto row) {
    const auto from = row(x), to = row(y);
    F squares = L::set(0.0f);
    for_lanes(n, [&](int m, int64_t i) {
      const F v = from.load(m, i);
      squares = L::fma(v, v, squares);
    });
    inverse = 1.0f / std::sqrt(L::sum(squares) / static_cast<float>(n) + eps);
    const F factor = L::set(inverse);
    for_lanes(n, [&](int m, int64_t i) {
      const F v = L::mul(from.load(m, i), factor);
      to.store(m, i, gain ? L::mul(v, load_lanes(gain + i, m)) : v);
    });
  });
  return inverse;
}

// dx = r (g gain - x r² mean(g gain x)); dgain += g x r, where it is wanted.
void rms_norm_gradient(Format format, int64_t n, const void* grad, const void* x, const float* gain,
                       float inverse, void* dx, float* dgain) {
  using L = Lanes;
  with_rows(format, [&](auto row) {
    const auto g = row(grad), from = row(x), to = row(dx);
    const auto weighted = [&](int m, int64_t i) {
      const F v = g.load(m, i);
      return gain ? L::mul(v, load_lanes(gain + i, m)) : v;
    };
    F total = L::set(0.0f);
    for_lanes(n, [&](int m, int64_t i) { total = L::fma(weighted(m, i), from.load(m, i), total); });
    const F factor = L::set(inverse);
    const F along = L::set(-inverse * inverse * inverse * L::sum(total) / static_cast<float>(n));
    for_lanes(n, [&](int m, int64_t i) {
      const F v = from.load(m, i);
      if (dgain) {
        const F part = L::mul(L::mul(g.load(m, i), v), factor);
        store_lanes(dgain + i, m, L::add(load_lanes(dgain + i, m), part));
      }
      to.store(m, i, L::fma(v, along, L::mul(weighted(m, i), factor)));
    });
  });
}

// The first 2 `pairs` of n numbers turned by their angles, back where `back`; the rest as it is.
void rotate_row(Format format, int64_t n, int64_t pairs, const float* cos, const float* sin,
                bool interleaved, bool back, const void* x, void* y) {
  using L = Lanes;
  const F sign = L::set(back ? -1.0f : 1.0f);
  with_rows(format, [&](auto row) {
    const auto from = row(x), to = row(y);
    if (interleaved) {
      for (int64_t i = 0; i < pairs; ++i) {
        const float a = from.at(2 * i), b = from.at(2 * i + 1), s = back ? -sin[i] : sin[i];
        to.put(2 * i, a * cos[i] - b * s);
        to.put(2 * i + 1, a * s + b * cos[i]);
      }
    } else {
      for_lanes(pairs, [&](int m, int64_t i) {
        const F a = from.load(m, i), b = from.load(m, pairs + i);
        const F c = load_lanes(cos + i, m), s = L::mul(load_lanes(sin + i, m), sign);
        to.store(m, i, L::sub(L::mul(a, c), L::mul(b, s)));
        to.store(m, pairs + i, L::add(L::mul(a, s), L::mul(b, c)));
      });
    }
    for_lanes(n - 2 * pairs, [&](int m, int64_t i) {
      to.store(m, 2 * pairs + i, from.load(m, 2 * pairs + i));
    });
  });
}

// y = max(x, 0)², or, with a gradient, y = 2 max(x, 0) grad.
void relu2_row(Format format, int64_t n, const void* grad, const void* x, void* y) {
  using L = Lanes;
  with_rows(format, [&](auto row) {
    const auto from = row(x), to = row(y);
    for_lanes(n, [&](int m, int64_t i) {
      const F v = relu(from.load(m, i));
      to.store(m, i, L::mul(v, grad ? L::mul(L::set(2.0f), row(grad).load(m, i)) : v));
    });
  });
}

}  // namespace
}  // namespace flyweight
