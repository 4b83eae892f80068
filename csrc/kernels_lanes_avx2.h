// 16 lanes in two 256-bit registers: AVX2, FMA, F16C; with AVX-VNNI where FLYWEIGHT_VNNI says so.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "kernels_half.h"
#include "kernels_layout.h"

namespace flyweight {
namespace {

struct Lanes {
  struct F {
    __m256 low, high;
  };
  struct I {
    __m256i low, high;
  };
  using B = I;
  using Q = __m256i;  // four signed bytes, the same in every lane

  static constexpr bool kPairsBf16 = false;
#ifdef FLYWEIGHT_VNNI
  static constexpr const char* kName = "avx2vnni";
  static constexpr bool kSignedWide = false, kDotsBytes = true;
#else
  static constexpr const char* kName = "avx2";
  static constexpr bool kSignedWide = true, kDotsBytes = false;
#endif
  static constexpr bool kScales = false;
  static constexpr int kTokens = 4, kPanels = 1;
  static constexpr int kStretch = 16;  // blocks
  static constexpr int kFloatTokens = 6, kFloatPanels = 1;
  static constexpr int kValueVectors = 1;

  static F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static void store(float* p, F v) {
    _mm256_storeu_ps(p, v.low);
    _mm256_storeu_ps(p + 8, v.high);
  }
  static F load_n(const float* p, int n) {
    alignas(32) float v[16] = {};
    for (int i = 0; i < n; ++i) v[i] = p[i];
    return load(v);
  }
  static void store_n(float* p, int n, F v) {
    alignas(32) float a[16];
    store(a, v);
    for (int i = 0; i < n; ++i) p[i] = a[i];
  }
  static F set(float v) { return {_mm256_set1_ps(v), _mm256_set1_ps(v)}; }
  static F add(F a, F b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
  static F sub(F a, F b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
  static F mul(F a, F b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
  static F div(F a, F b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
  static F fma(F a, F b, F c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
  }
  // v, but 0 where x < low.
  static F unless_less(F x, F low, F v) {
    return {_mm256_and_ps(_mm256_cmp_ps(x.low, low.low, _CMP_NLT_UQ), v.low),
            _mm256_and_ps(_mm256_cmp_ps(x.high, low.high, _CMP_NLT_UQ), v.high)};
  }
  static F max(F a, F b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
  static F min(F a, F b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }

  static I iset(int32_t v) { return {_mm256_set1_epi32(v), _mm256_set1_epi32(v)}; }
  static I bits(F v) { return {_mm256_castps_si256(v.low), _mm256_castps_si256(v.high)}; }
  static F floats(I v) { return {_mm256_castsi256_ps(v.low), _mm256_castsi256_ps(v.high)}; }
  static I iadd(I a, I b) {
    return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
  }
  static I isub(I a, I b) {
    return {_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)};
  }
  static I iand(I a, I b) {
    return {_mm256_and_si256(a.low, b.low), _mm256_and_si256(a.high, b.high)};
  }
  static I imax(I a, I b) {
    return {_mm256_max_epi32(a.low, b.low), _mm256_max_epi32(a.high, b.high)};
  }
  template <int n>
  static I ishl(I a) {
    return {_mm256_slli_epi32(a.low, n), _mm256_slli_epi32(a.high, n)};
  }
  template <int n>
  static I isar(I a) {
    return {_mm256_srai_epi32(a.low, n), _mm256_srai_epi32(a.high, n)};
  }
  static F to_float(I v) { return {_mm256_cvtepi32_ps(v.low), _mm256_cvtepi32_ps(v.high)}; }

  static __m128i read128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
  static __m128i next8(const void* p) { return _mm_srli_si128(read128(p), 8); }
  static const void* after(const void* p, int bytes) {
    return static_cast<const uint8_t*>(p) + bytes;
  }
  static F half(const void* p) {
    return {_mm256_cvtph_ps(read128(p)), _mm256_cvtph_ps(read128(after(p, 16)))};
  }
  static void store_half(void* p, F v) {
    auto* to = static_cast<__m128i*>(p);
    _mm_storeu_si128(to, _mm256_cvtps_ph(v.low, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(to + 1, _mm256_cvtps_ph(v.high, _MM_FROUND_TO_NEAREST_INT));
  }
  static F bf16(const void* p) {
    return floats(ishl<16>(
        {_mm256_cvtepu16_epi32(read128(p)), _mm256_cvtepu16_epi32(read128(after(p, 16)))}));
  }
  static F unsigned_bytes(const void* p) {
    return to_float({_mm256_cvtepu8_epi32(read128(p)), _mm256_cvtepu8_epi32(next8(p))});
  }
  static F signed_bytes(const void* p) {
    return to_float({_mm256_cvtepi8_epi32(read128(p)), _mm256_cvtepi8_epi32(next8(p))});
  }
  static void store_bytes(void* p, I v) {
    alignas(32) int32_t a[16];
    bstore(a, v);
    auto* to = static_cast<int8_t*>(p);
    for (int i = 0; i < 16; ++i) to[i] = static_cast<int8_t>(a[i]);
  }

  static void store_bf16(void* p, F v) {
    const I odd = iand(isar<16>(bits(v)), iset(1));
    const I rounded = iand(isar<16>(iadd(bits(v), iadd(odd, iset(0x7fff)))), iset(0xffff));
    const __m256i pairs = _mm256_packus_epi32(rounded.low, rounded.high);
    _mm256_storeu_si256(static_cast<__m256i*>(p), _mm256_permute4x64_epi64(pairs, 0xd8));
  }

  static B bload(const void* p) {
    const auto* v = static_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(v), _mm256_loadu_si256(v + 1)};
  }
  static void bstore(void* p, B v) {
    auto* to = static_cast<__m256i*>(p);
    _mm256_storeu_si256(to, v.low);
    _mm256_storeu_si256(to + 1, v.high);
  }
  static B bset(uint8_t v) {
    const __m256i a = _mm256_set1_epi8(static_cast<char>(v));
    return {a, a};
  }
  static B band(B a, B b) { return iand(a, b); }
  static B bor(B a, B b) { return {_mm256_or_si256(a.low, b.low), _mm256_or_si256(a.high, b.high)}; }
  static B bxor(B a, B b) {
    return {_mm256_xor_si256(a.low, b.low), _mm256_xor_si256(a.high, b.high)};
  }
  // 32 bytes of each of 8 rows: word c of g[c] of all of them.
  static void words(const uint8_t* const* rows, int64_t at, __m256i (&g)[8]) {
    __m256 a[8], b[8];
    for (int i = 0; i < 8; ++i) {
      a[i] = _mm256_loadu_ps(reinterpret_cast<const float*>(rows[i] + at));
    }
    for (int i = 0; i < 8; i += 2) {
      b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
      b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
      a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
      a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
      a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
      a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
    }
    for (int c = 0; c < 4; ++c) {
      g[c] = _mm256_castps_si256(_mm256_permute2f128_ps(a[c], a[c + 4], 0x20));
      g[c + 4] = _mm256_castps_si256(_mm256_permute2f128_ps(a[c], a[c + 4], 0x31));
    }
  }
  // 32 bytes of each of 16 rows: group g has bytes 4g to 4g + 3 of all of them.
  static void groups(const uint8_t* const (&rows)[16], int64_t at, B (&g)[8]) {
    __m256i low[8], high[8];
    words(rows, at, low);
    words(rows + 8, at, high);
    for (int c = 0; c < 8; ++c) g[c] = {low[c], high[c]};
  }
  // Shifts leave neighbours' bits in each byte; what follows masks them.
  template <int n>
  static B bshl(B a) {
    return {_mm256_slli_epi16(a.low, n), _mm256_slli_epi16(a.high, n)};
  }
  template <int n>
  static B bshr(B a) {
    return {_mm256_srli_epi16(a.low, n), _mm256_srli_epi16(a.high, n)};
  }
  static B lookup(const uint8_t* table, B codes) {
    const __m256i t = _mm256_broadcastsi128_si256(read128(table));
    return {_mm256_shuffle_epi8(t, codes.low), _mm256_shuffle_epi8(t, codes.high)};
  }

  static Q four(const int8_t* p) {
    int32_t v;
    std::memcpy(&v, p, 4);
    return _mm256_set1_epi32(v);
  }
#ifdef FLYWEIGHT_VNNI
  static I dot(I sum, B codes, Q x) {
    return {_mm256_dpbusd_avx_epi32(sum.low, codes.low, x),
            _mm256_dpbusd_avx_epi32(sum.high, codes.high, x)};
  }
  static I dot_wide(I sum, B codes, Q x) { return dot(sum, codes, x); }
#else
  // Pairs of products are added in 16 bits, which saturate: codes to 63 stay within.
  static __m256i dot8(__m256i sum, __m256i codes, __m256i x) {
    const __m256i pairs = _mm256_maddubs_epi16(codes, x);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  static I dot(I sum, B codes, Q x) {
    return {dot8(sum.low, codes.low, x), dot8(sum.high, codes.high, x)};
  }
  // Of codes - 128: magnitudes to 128 with the sign on x, 2 * 128 * 127 < 2^15.
  static __m256i dot8_signed(__m256i sum, __m256i codes, __m256i x) {
    const __m256i w = _mm256_xor_si256(codes, _mm256_set1_epi8(static_cast<char>(0x80)));
    return dot8(sum, _mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
  }
  static I dot_wide(I sum, B codes, Q x) {
    return {dot8_signed(sum.low, codes.low, x), dot8_signed(sum.high, codes.high, x)};
  }
#endif

  static float sum(F v) {
    const __m256 a = _mm256_add_ps(v.low, v.high);
    const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
  }
  static F sums(const F (&m)[16]) {
    alignas(32) float v[16];
    for (int i = 0; i < 16; ++i) v[i] = sum(m[i]);
    return load(v);
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
    const __m256 a = _mm256_max_ps(v.low, v.high);
    const __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
  }
  static int32_t isum(I v) {
    const __m256i a = _mm256_add_epi32(v.low, v.high);
    const __m128i b = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    const __m128i c = _mm_add_epi32(b, _mm_shuffle_epi32(b, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(c, _mm_shuffle_epi32(c, 0xb1)));
  }
  static int32_t ilargest(I v) {
    const __m256i a = _mm256_max_epi32(v.low, v.high);
    const __m128i b = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    const __m128i c = _mm_max_epi32(b, _mm_shuffle_epi32(b, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(c, _mm_shuffle_epi32(c, 0xb1)));
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
  static void prefetch(uintptr_t p) {
    _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0);
  }
  static F scale(F v, F n);                        // only where kScales
  static F pair_dot(F sum, B weights, int32_t x);  // only where kPairsBf16
};

}  // namespace
}  // namespace flyweight
