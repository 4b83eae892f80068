// 16 lanes in the compiler's vector types (GCC and Clang, any processor).
#pragma once

#include <cstring>

#include "kernels_half.h"
#include "kernels_layout.h"

namespace flyweight {
namespace {

struct Lanes {
  typedef float F __attribute__((vector_size(64)));
  typedef int32_t I __attribute__((vector_size(64)));
  typedef uint32_t U __attribute__((vector_size(64)));
  typedef int16_t S __attribute__((vector_size(64)));
  typedef uint8_t B __attribute__((vector_size(64)));
  typedef uint16_t H __attribute__((vector_size(32)));
  typedef uint8_t B16 __attribute__((vector_size(16)));
  typedef int8_t C16 __attribute__((vector_size(16)));
  using Q = int32_t;  // four signed bytes, the same in every lane

  static constexpr const char* kName = "portable";
  static constexpr bool kSignedWide = false;  // dot_wide takes codes - 128
  static constexpr bool kDotsBytes = true;    // dot takes codes to 255, not only to 63
  static constexpr bool kScales = false;      // scale by powers of two is there
  static constexpr bool kPairsBf16 = false;   // BF16's inputs are bf16 as well
  static constexpr int kTokens = 2, kPanels = 1;            // the tile of integer products
  static constexpr int kStretch = 16;  // blocks
  static constexpr int kFloatTokens = 2, kFloatPanels = 1;  // and of float ones
  static constexpr int kValueVectors = 1;

  template <class V>
  static V read(const void* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }

  static F load(const float* p) { return read<F>(p); }
  static void store(float* p, F v) { std::memcpy(p, &v, sizeof v); }
  static F load_n(const float* p, int n) {
    F v{};
    std::memcpy(&v, p, sizeof(float) * n);
    return v;
  }
  static void store_n(float* p, int n, F v) { std::memcpy(p, &v, sizeof(float) * n); }
  static F set(float v) { return v - F{}; }
  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F div(F a, F b) { return a / b; }
  static F fma(F a, F b, F c) { return a * b + c; }
  // v, but 0 where x < low.
  static F unless_less(F x, F low, F v) { return x < low ? F{} : v; }
  static F max(F a, F b) { return a > b ? a : b; }  // b where one is NaN
  static F min(F a, F b) { return a < b ? a : b; }  // b where one is NaN

  static I iset(int32_t v) { return v - I{}; }
  static I bits(F v) { return reinterpret_cast<I>(v); }
  static F floats(I v) { return reinterpret_cast<F>(v); }
  static I iadd(I a, I b) { return a + b; }
  static I isub(I a, I b) { return a - b; }
  static I iand(I a, I b) { return a & b; }
  static I imax(I a, I b) { return a > b ? a : b; }
  template <int n>
  static I ishl(I a) {
    return reinterpret_cast<I>(reinterpret_cast<U>(a) << n);
  }
  template <int n>
  static I isar(I a) {
    return a >> n;
  }
  static F to_float(I v) { return __builtin_convertvector(v, F); }

  static F half(const void* p) {
    const U h = __builtin_convertvector(read<H>(p), U);
    const U rest = h & 0x7fff;
    const F finite = reinterpret_cast<F>(rest << 13) * 0x1p112f;
    const U special = (rest << 13) | 0x7f800000;
    const U magnitude = rest >= 0x7c00 ? special : reinterpret_cast<U>(finite);
    return reinterpret_cast<F>(magnitude | (h & 0x8000) << 16);
  }
  static void store_half(void* p, F v) {
    auto* to = static_cast<uint8_t*>(p);
    for (int i = 0; i < 16; ++i) {
      const uint16_t h = float_to_half(v[i]);
      std::memcpy(to + 2 * i, &h, 2);
    }
  }
  static F bf16(const void* p) {
    return reinterpret_cast<F>(__builtin_convertvector(read<H>(p), U) << 16);
  }
  static F unsigned_bytes(const void* p) { return __builtin_convertvector(read<B16>(p), F); }
  static F signed_bytes(const void* p) { return __builtin_convertvector(read<C16>(p), F); }
  // The low byte of each lane.
  static void store_bytes(void* p, I v) {
    const B16 bytes = __builtin_convertvector(reinterpret_cast<U>(v), B16);
    std::memcpy(p, &bytes, sizeof bytes);
  }

  static void store_bf16(void* p, F v) {
    const U u = reinterpret_cast<U>(v);
    const H rounded = __builtin_convertvector((u + (u >> 16 & 1) + 0x7fff) >> 16, H);
    std::memcpy(p, &rounded, sizeof rounded);
  }

  static B bload(const void* p) { return read<B>(p); }
  static void bstore(void* p, B v) { std::memcpy(p, &v, sizeof v); }
  static B bset(uint8_t v) { return v - B{}; }
  static B band(B a, B b) { return a & b; }
  static B bor(B a, B b) { return a | b; }
  static B bxor(B a, B b) { return a ^ b; }
  // 32 bytes of each of 16 rows: group g has bytes 4g to 4g + 3 of all of them.
  static void groups(const uint8_t* const (&rows)[16], int64_t at, B (&g)[8]) {
    for (int c = 0; c < 8; ++c) {
      I words;
      for (int r = 0; r < 16; ++r) words[r] = read<int32_t>(rows[r] + at + 4 * c);
      g[c] = reinterpret_cast<B>(words);
    }
  }
  template <int n>
  static B bshl(B a) {
    return a << n;
  }
  template <int n>
  static B bshr(B a) {
    return a >> n;
  }
  static B lookup(const uint8_t* table, B codes) {
    B v;
    for (int i = 0; i < 64; ++i) v[i] = table[codes[i]];
    return v;
  }

  static Q four(const int8_t* p) { return read<int32_t>(p); }
  // sum + the products of each lane's 4 codes with the 4 signed bytes of x, which all lanes share.
  static I dot_wide(I sum, B codes, Q x) {
    const uint32_t u = static_cast<uint32_t>(x);
    const auto byte = [u](int i) { return static_cast<uint16_t>(static_cast<int8_t>(u >> i)); };
    const I even_x = iset(static_cast<int32_t>(byte(0) | static_cast<uint32_t>(byte(16)) << 16));
    const I odd_x = iset(static_cast<int32_t>(byte(8) | static_cast<uint32_t>(byte(24)) << 16));
    const U w = reinterpret_cast<U>(codes);
    // 255 * 128 < 2^15: a product of 16 bits is exact.
    const S even = reinterpret_cast<S>(w & 0x00ff00ff) * reinterpret_cast<S>(even_x);
    const S odd = reinterpret_cast<S>(w >> 8 & 0x00ff00ff) * reinterpret_cast<S>(odd_x);
    const I e = reinterpret_cast<I>(even), o = reinterpret_cast<I>(odd);
    return sum + (ishl<16>(e) >> 16) + (e >> 16) + (ishl<16>(o) >> 16) + (o >> 16);
  }
  static I dot(I sum, B codes, Q x) { return dot_wide(sum, codes, x); }

  // In the order that all sets share: lanes l and l + 8, then l + 4, l + 2, l + 1.
  static float sum(F v) {
    float a[16];
    store(a, v);
    for (int half = 8; half; half /= 2) {
      for (int i = 0; i < half; ++i) a[i] += a[i + half];
    }
    return a[0];
  }
  static F sums(const F (&m)[16]) {
    F v;
    for (int i = 0; i < 16; ++i) v[i] = sum(m[i]);
    return v;
  }
  // 16 rows of 16 become columns.
  static void transpose(F (&m)[16]) {
    float a[16][16], b[16][16];
    for (int i = 0; i < 16; ++i) store(a[i], m[i]);
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < 16; ++j) b[i][j] = a[j][i];
    }
    for (int i = 0; i < 16; ++i) m[i] = load(b[i]);
  }
  static float largest(F v) {
    float a[16];
    store(a, v);
    float m = a[0];
    for (int i = 1; i < 16; ++i) m = a[i] > m ? a[i] : m;
    return m;
  }
  static int32_t isum(I v) {
    int32_t s = 0;
    for (int i = 0; i < 16; ++i) s += v[i];
    return s;
  }
  static int32_t ilargest(I v) {
    int32_t m = v[0];
    for (int i = 1; i < 16; ++i) m = v[i] > m ? v[i] : m;
    return m;
  }
  // Of each of R registers.
  template <int R>
  static void each_sum(const F (&m)[R], float (&out)[R]) {
    for (int r = 0; r < R; ++r) out[r] = sum(m[r]);
  }
  template <int R>
  static void each_largest(const F (&m)[R], float (&out)[R]) {
    for (int r = 0; r < R; ++r) out[r] = largest(m[r]);
  }
  static void prefetch(uintptr_t p) { __builtin_prefetch(reinterpret_cast<const void*>(p)); }
  static F scale(F v, F n);                        // only where kScales
  static F pair_dot(F sum, B weights, int32_t x);  // only where kPairsBf16
};

}  // namespace
}  // namespace flyweight
