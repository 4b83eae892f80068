// What stands between the products: norms, activations, sums, rotations.
// Include after a kernels_lanes_*.h.
#pragma once

#include <cmath>

#include "kernels_math.h"

namespace flyweight {
namespace {

// body(lanes of this step, offset) for n numbers: 16 at a time, then the tail.
template <class Body>
inline void for_lanes(int64_t n, Body body) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) body(16, i);
  if (i < n) body(static_cast<int>(n - i), i);
}

inline F load_lanes(const float* p, int n) {
  return n == 16 ? Lanes::load(p) : Lanes::load_n(p, n);
}

inline void store_lanes(float* p, int n, F v) {
  n == 16 ? Lanes::store(p, v) : Lanes::store_n(p, n, v);
}

void rms_norm(int64_t n, const float* x, const float* gain, float eps, float* y) {
  using L = Lanes;
  F squares = L::set(0.0f);
  for_lanes(n, [&](int m, int64_t i) {
    const F v = load_lanes(x + i, m);
    squares = L::fma(v, v, squares);
  });
  const F factor = L::set(1.0f / std::sqrt(L::sum(squares) / static_cast<float>(n) + eps));
  for_lanes(n, [&](int m, int64_t i) {
    const F v = L::mul(load_lanes(x + i, m), factor);
    store_lanes(y + i, m, gain ? L::mul(v, load_lanes(gain + i, m)) : v);
  });
}

void layer_norm(int64_t n, const float* x, const float* gain, const float* bias, float eps,
                float* y) {
  using L = Lanes;
  F total = L::set(0.0f);
  for_lanes(n, [&](int m, int64_t i) { total = L::add(total, load_lanes(x + i, m)); });
  const float mean = L::sum(total) / static_cast<float>(n);
  float padding[16];  // the tail's empty lanes hold the mean, so that they add no variance
  for (float& p : padding) p = mean;
  F squares = L::set(0.0f);
  for_lanes(n, [&](int m, int64_t i) {
    F v;
    if (m == 16) {
      v = L::load(x + i);
    } else {
      for (int k = 0; k < m; ++k) padding[k] = x[i + k];
      v = L::load(padding);
    }
    v = L::sub(v, L::set(mean));
    squares = L::fma(v, v, squares);
  });
  const F factor = L::set(1.0f / std::sqrt(L::sum(squares) / static_cast<float>(n) + eps));
  for_lanes(n, [&](int m, int64_t i) {
    F v = L::mul(L::sub(load_lanes(x + i, m), L::set(mean)), factor);
    if (gain) v = L::mul(v, load_lanes(gain + i, m));
    store_lanes(y + i, m, bias ? L::add(v, load_lanes(bias + i, m)) : v);
  });
}

inline F silu(F x) { return Lanes::mul(x, sigmoid(x)); }

// 0.5 x (1 + tanh u) = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)
inline F gelu_tanh(F x) {
  using L = Lanes;
  const F cubic = L::fma(L::mul(x, x), L::set(0.0713548163f), L::set(1.59576912f));
  return L::mul(x, sigmoid(L::mul(x, cubic)));
}

// x - x h for x >= 0 and x h below, h = erfc(|x| / sqrt 2) / 2
inline F gelu_erf(F x) {
  using L = Lanes;
  const F size = L::floats(L::iand(L::bits(x), L::iset(0x7fffffff)));
  const F half = L::mul(L::set(0.5f), upper_tail(size));
  const F down = L::mul(size, half);
  return L::sub(L::max(L::set(0.0f), x), down);
}

inline F relu(F x) {
  const F zero = Lanes::set(0.0f);
  return Lanes::max(zero, x);
}

template <class Function>
inline void apply(int64_t n, const float* x, float* y, Function f) {
  for_lanes(n, [&](int m, int64_t i) { store_lanes(y + i, m, f(load_lanes(x + i, m))); });
}

void activate(Activation activation, int64_t n, const float* x, float* y) {
  switch (activation) {
    case Activation::None: return apply(n, x, y, [](F v) { return v; });
    case Activation::Silu: return apply(n, x, y, silu);
    case Activation::GeluTanh: return apply(n, x, y, gelu_tanh);
    case Activation::GeluErf: return apply(n, x, y, gelu_erf);
    case Activation::Relu: return apply(n, x, y, relu);
    case Activation::Relu2:
      return apply(n, x, y, [](F v) {
        v = relu(v);
        return Lanes::mul(v, v);
      });
  }
}

void multiply(int64_t n, const float* x, float* y) {
  for_lanes(n, [&](int m, int64_t i) {
    store_lanes(y + i, m, Lanes::mul(load_lanes(x + i, m), load_lanes(y + i, m)));
  });
}

void add(int64_t n, float scale, const float* x, float* y) {
  const F s = Lanes::set(scale);
  for_lanes(n, [&](int m, int64_t i) {
    store_lanes(y + i, m, Lanes::fma(s, load_lanes(x + i, m), load_lanes(y + i, m)));
  });
}

void rotate(int64_t pairs, const float* cos, const float* sin, bool interleaved, float* x) {
  using L = Lanes;
  if (interleaved) {
    for (int64_t i = 0; i < pairs; ++i) {
      const float a = x[2 * i], b = x[2 * i + 1];
      x[2 * i] = a * cos[i] - b * sin[i];
      x[2 * i + 1] = a * sin[i] + b * cos[i];
    }
    return;
  }
  for_lanes(pairs, [&](int m, int64_t i) {
    const F a = load_lanes(x + i, m), b = load_lanes(x + pairs + i, m);
    const F c = load_lanes(cos + i, m), s = load_lanes(sin + i, m);
    store_lanes(x + i, m, L::sub(L::mul(a, c), L::mul(b, s)));
    store_lanes(x + pairs + i, m, L::add(L::mul(a, s), L::mul(b, c)));
  });
}

}  // namespace
}  // namespace flyweight
