// exp and what is made of it, on 16 lanes. Include after a kernels_lanes_*.h.
#pragma once

namespace flyweight {
namespace {

using F = Lanes::F;
using I = Lanes::I;

// e^r for the remainder of a power of 2: x = n ln 2 + r, |r| <= ln 2 / 2; n is left in `whole`.
inline F reduced_exponential(F x, I& whole) {
  using L = Lanes;
  // Adding 1.5 * 2^23 rounds to a whole number and leaves it in the last bits.
  const F magic = L::set(12582912.0f);
  const F shifted = L::fma(x, L::set(1.44269504f), magic);
  const F n = L::sub(shifted, magic);
  whole = L::isub(L::bits(shifted), L::bits(magic));
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

// e^x within 2 units in the last place; 0 below -104, infinite above 89; NaN stays.
inline F exponential(F x) {
  using L = Lanes;
  x = L::min(L::set(89.0f), L::max(L::set(-104.0f), x));
  I whole;
  const F p = reduced_exponential(x, whole);
  // 2^n in two factors, so that neither leaves the exponent's range.
  const I first = L::isar<1>(whole), second = L::isub(whole, first);
  return L::mul(L::mul(p, power_of_two(first)), power_of_two(second));
}

// The same for x <= 0 but no less than e^-87, which is next to nothing.
inline F exponential_below(F x) {
  using L = Lanes;
  I whole;
  const F p = reduced_exponential(L::max(L::set(-87.0f), x), whole);
  return L::mul(p, power_of_two(whole));
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
