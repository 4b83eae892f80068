// exp and what is made of it, on 16 lanes. Include after a kernels_lanes_*.h.
#pragma once

namespace flyweight {
namespace {

using F = Lanes::F;
using I = Lanes::I;

// Adding it rounds to a whole number and leaves that in the last bits.
constexpr float kRounding = 12582912.0f;  // 1.5 * 2^23

// e^r for the remainder of a power of 2: x = n ln 2 + r, |r| <= ln 2 / 2; `shifted` is n + kRounding.
inline F reduced_exponential(F x, F& shifted) {
  using L = Lanes;
  shifted = L::fma(x, L::set(1.44269504f), L::set(kRounding));
  const F n = L::sub(shifted, L::set(kRounding));
  F r = L::fma(n, L::set(-0.693145752f), x);  // ln 2 in two parts, the first of 15 bits
  r = L::fma(n, L::set(-1.42860682e-6f), r);
  // Taylor's series: |r| <= ln 2 / 2, the next term is below 2^-27.
  F p = L::set(1.0f / 5040);
  p = L::fma(p, r, L::set(1.0f / 720));
  p = L::fma(p, r, L::set(1.0f / 120));
  p = L::fma(p, r, L::set(1.0f / 24));
  p = L::fma(p, r, L::set(1.0f / 6));
  p = L::fma(p, r, L::set(0.5f));
  p = L::fma(p, r, L::set(1.0f));
  return L::fma(p, r, L::set(1.0f));
}

inline F power_of_two(I n) { return Lanes::floats(Lanes::ishl<23>(Lanes::iadd(n, Lanes::iset(127)))); }

// p 2^n for -252 <= n <= 254, n + kRounding being `shifted`.
inline F scaled(F p, F shifted) {
  using L = Lanes;
  if constexpr (L::kScales) {
    return L::scale(p, L::sub(shifted, L::set(kRounding)));
  } else {
    // In two factors, so that neither leaves the exponent's range.
    const I n = L::isub(L::bits(shifted), L::bits(L::set(kRounding)));
    const I first = L::isar<1>(n), second = L::isub(n, first);
    return L::mul(L::mul(p, power_of_two(first)), power_of_two(second));
  }
}

// The same for -126 <= n <= 127.
inline F scaled_little(F p, F shifted) {
  using L = Lanes;
  if constexpr (L::kScales) return scaled(p, shifted);
  else return L::mul(p, power_of_two(L::isub(L::bits(shifted), L::bits(L::set(kRounding)))));
}

// e^x within 2 units in the last place; 0 below -104, infinite above 89; NaN stays.
inline F exponential(F x) {
  using L = Lanes;
  F shifted;
  const F p = reduced_exponential(L::min(L::set(89.0f), L::max(L::set(-104.0f), x)), shifted);
  return scaled(p, shifted);
}

// The same for x <= 0, but 0 below -87: a processor may take a hundred times as long for results
// that are less than the smallest normal number.
inline F exponential_below(F x) {
  using L = Lanes;
  const F least = L::set(-87.0f);
  F shifted;
  const F p = reduced_exponential(L::max(least, x), shifted);
  return L::unless_less(x, least, scaled_little(p, shifted));
}

// 1 / (1 + e^-x)
inline F sigmoid(F x) {
  using L = Lanes;
  const F one = L::set(1.0f);
  return L::div(one, L::add(one, exponential(L::sub(L::set(0.0f), x))));
}

// erfc(x / sqrt 2) for x >= 0, within 4e-7 of itself: with t = 1 / (1 + 0.4 z), z = x / sqrt 2, it
// is t P(t) e^(-z^2), P fitted (least largest relative error 8e-9) over 0 <= z <= 10.
inline F upper_tail(F x) {
  using L = Lanes;
  constexpr float kP[] = {-0.0292053707f, 0.195900619f, -0.493843704f, 0.540810883f,
                          -0.278857827f,  0.269110084f, 0.13070111f,   0.214700341f,
                          0.224978328f,   0.225705564f};
  const F one = L::set(1.0f);
  const F t = L::div(one, L::fma(x, L::set(0.4f * 0.707106781f), one));
  F p = L::set(kP[0]);
  for (int i = 1; i < 10; ++i) p = L::fma(p, t, L::set(kP[i]));
  return L::mul(L::mul(p, t), exponential(L::mul(L::mul(x, L::set(-0.5f)), x)));
}

}  // namespace
}  // namespace flyweight
