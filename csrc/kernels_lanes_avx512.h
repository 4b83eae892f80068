// 16 lanes in one 512-bit register: AVX-512 F, BW, DQ, VL, VNNI; with BF16 where FLYWEIGHT_BF16
// says so.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "kernels_half.h"
#include "kernels_layout.h"

namespace flyweight {
namespace {

struct Lanes {
  using F = __m512;
  using I = __m512i;
  using B = __m512i;
  using Q = __m512i;  // four signed bytes, the same in every lane

#if defined(FLYWEIGHT_AMX)
  static constexpr const char* kName = "amx";
#elif defined(FLYWEIGHT_BF16)
  static constexpr const char* kName = "avx512";
#else
  static constexpr const char* kName = "avx512vnni";
#endif
#ifdef FLYWEIGHT_AMX
  static constexpr int kStretch = 16;  // blocks: what tiles are made from stays near
#else
  static constexpr int kStretch = 32;
#endif
#ifdef FLYWEIGHT_BF16
  static constexpr bool kPairsBf16 = true;
#else
  static constexpr bool kPairsBf16 = false;
#endif
  static constexpr bool kSignedWide = false, kDotsBytes = true;
  static constexpr bool kScales = true;
  // A load of 64 bytes is as dear as two products: a tile as near to square as the registers allow.
  static constexpr int kTokens = 4, kPanels = 3;
  static constexpr int kFloatTokens = 12, kFloatPanels = 2;
  static constexpr int kValueVectors = 4;

  static __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1); }

  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static F load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static void store_n(float* p, int n, F v) { _mm512_mask_storeu_ps(p, first(n), v); }
  static F set(float v) { return _mm512_set1_ps(v); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  // v, but 0 where x < low.
  static F unless_less(F x, F low, F v) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, low, _CMP_NLT_UQ), v);
  }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F scale(F v, F n) { return _mm512_scalef_ps(v, n); }  // v 2^n
  static F min(F a, F b) { return _mm512_min_ps(a, b); }

  static I iset(int32_t v) { return _mm512_set1_epi32(v); }
  static I bits(F v) { return _mm512_castps_si512(v); }
  static F floats(I v) { return _mm512_castsi512_ps(v); }
  static I iadd(I a, I b) { return _mm512_add_epi32(a, b); }
  static I isub(I a, I b) { return _mm512_sub_epi32(a, b); }
  static I iand(I a, I b) { return _mm512_and_si512(a, b); }
  static I imax(I a, I b) { return _mm512_max_epi32(a, b); }
  template <int n>
  static I ishl(I a) {
    return _mm512_slli_epi32(a, n);
  }
  template <int n>
  static I isar(I a) {
    return _mm512_srai_epi32(a, n);
  }
  static F to_float(I v) { return _mm512_cvtepi32_ps(v); }

  static __m256i read256(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  static __m128i read128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
  static F half(const void* p) { return _mm512_cvtph_ps(read256(p)); }
  static void store_half(void* p, F v) {
    _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  static F bf16(const void* p) {
    return floats(_mm512_slli_epi32(_mm512_cvtepu16_epi32(read256(p)), 16));
  }
  static F unsigned_bytes(const void* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(read128(p)));
  }
  static F signed_bytes(const void* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(read128(p)));
  }
  static void store_bytes(void* p, I v) {
    _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v));
  }

  static void store_bf16(void* p, F v) {
    const I odd = iand(isar<16>(bits(v)), iset(1));
    const I rounded = isar<16>(iadd(bits(v), iadd(odd, iset(0x7fff))));
    _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtepi32_epi16(rounded));
  }

  static B bload(const void* p) { return _mm512_loadu_si512(p); }
  static void bstore(void* p, B v) { _mm512_storeu_si512(p, v); }
  static B bset(uint8_t v) { return _mm512_set1_epi8(static_cast<char>(v)); }
  static B band(B a, B b) { return _mm512_and_si512(a, b); }
  static B bor(B a, B b) { return _mm512_or_si512(a, b); }
  static B bxor(B a, B b) { return _mm512_xor_si512(a, b); }
  // 32 bytes of each of 16 rows: group g has bytes 4g to 4g + 3 of all of them.
  static void groups(const uint8_t* const (&rows)[16], int64_t at, B (&g)[8]) {
    __m512d a[8], b[8];
    const auto word = [](__m512d v) { return _mm512_castpd_ps(v); };
    const auto pair = [](__m512 v) { return _mm512_castps_pd(v); };
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(read256(rows[i] + at)),
                                              read256(rows[i + 8] + at), 1);
      a[i] = _mm512_castsi512_pd(both);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
      b[i] = pair(_mm512_unpacklo_ps(word(a[i]), word(a[i + 1])));
      b[i + 1] = pair(_mm512_unpackhi_ps(word(a[i]), word(a[i + 1])));
    }
    // a[4 i + c]: words c and c + 4 of rows 4 i to 4 i + 3, and of those eight rows on.
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
      a[i] = _mm512_unpacklo_pd(b[i], b[i + 2]);
      a[i + 1] = _mm512_unpackhi_pd(b[i], b[i + 2]);
      a[i + 2] = _mm512_unpacklo_pd(b[i + 1], b[i + 3]);
      a[i + 3] = _mm512_unpackhi_pd(b[i + 1], b[i + 3]);
    }
    const I low = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
    const I high = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      g[c] = _mm512_castpd_si512(_mm512_permutex2var_pd(a[c], low, a[c + 4]));
      g[c + 4] = _mm512_castpd_si512(_mm512_permutex2var_pd(a[c], high, a[c + 4]));
    }
  }
  // Shifts leave neighbours' bits in each byte; what follows masks them.
  template <int n>
  static B bshl(B a) {
    return _mm512_slli_epi16(a, n);
  }
  template <int n>
  static B bshr(B a) {
    return _mm512_srli_epi16(a, n);
  }
  static B lookup(const uint8_t* table, B codes) {
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(read128(table)), codes);
  }

  static Q four(const int8_t* p) {
    int32_t v;
    std::memcpy(&v, p, 4);
    return _mm512_set1_epi32(v);
  }
  static I dot(I sum, B codes, Q x) { return _mm512_dpbusd_epi32(sum, codes, x); }
  static I dot_wide(I sum, B codes, Q x) { return dot(sum, codes, x); }
#ifdef FLYWEIGHT_BF16
  static F pair_dot(F sum, B weights, int32_t x) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(weights),
                            reinterpret_cast<__m512bh>(_mm512_set1_epi32(x)));
  }
#else
  static F pair_dot(F sum, B weights, int32_t x);  // only where kPairsBf16
#endif

  static float sum(F v) {
    const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
  }
  // 16 rows of 16 become columns.
  static void transpose(F (&m)[16]) {
    F a[16], b[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      a[2 * i] = _mm512_unpacklo_ps(m[2 * i], m[2 * i + 1]);
      a[2 * i + 1] = _mm512_unpackhi_ps(m[2 * i], m[2 * i + 1]);
    }
    // b[4 i + c]: in each quarter q the column 4 q + c of rows 4 i to 4 i + 3.
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
      const auto pair = [](F x, F y, bool high) {
        const __m512d p = _mm512_castps_pd(x), q = _mm512_castps_pd(y);
        return _mm512_castpd_ps(high ? _mm512_unpackhi_pd(p, q) : _mm512_unpacklo_pd(p, q));
      };
      b[i] = pair(a[i], a[i + 2], false);
      b[i + 1] = pair(a[i], a[i + 2], true);
      b[i + 2] = pair(a[i + 1], a[i + 3], false);
      b[i + 3] = pair(a[i + 1], a[i + 3], true);
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const F low01 = _mm512_shuffle_f32x4(b[c], b[4 + c], 0x44);
      const F high01 = _mm512_shuffle_f32x4(b[c], b[4 + c], 0xee);
      const F low23 = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0x44);
      const F high23 = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0xee);
      m[c] = _mm512_shuffle_f32x4(low01, low23, 0x88);
      m[4 + c] = _mm512_shuffle_f32x4(low01, low23, 0xdd);
      m[8 + c] = _mm512_shuffle_f32x4(high01, high23, 0x88);
      m[12 + c] = _mm512_shuffle_f32x4(high01, high23, 0xdd);
    }
  }
  // Lane i is sum(m[i]), added in the same order.
  static F sums(const F (&m)[16]) {
    F a[8], b[4], c[2];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      a[i] = _mm512_add_ps(_mm512_shuffle_f32x4(m[i], m[i + 8], 0x44),
                           _mm512_shuffle_f32x4(m[i], m[i + 8], 0xee));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      b[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a[i], a[i + 4], 0x88),
                           _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd));
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const __m512d x = _mm512_castps_pd(b[i]), y = _mm512_castps_pd(b[i + 2]);
      c[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                           _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
    }
    const F mixed = _mm512_add_ps(_mm512_shuffle_ps(c[0], c[1], 0x88),
                                  _mm512_shuffle_ps(c[0], c[1], 0xdd));
    const I order = _mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);
    return _mm512_permutexvar_ps(order, mixed);
  }
  static float largest(F v) { return _mm512_reduce_max_ps(v); }
  static int32_t isum(I v) { return _mm512_reduce_add_epi32(v); }
  static int32_t ilargest(I v) { return _mm512_reduce_max_epi32(v); }
  // Of each of R registers; four fold together.
  template <int R>
  static void each_sum(const F (&m)[R], float (&out)[R]) {
    if constexpr (R == 4) {
      _mm_storeu_ps(out, _mm512_castps512_ps128(fold_four(m, add)));
    } else {
      for (int r = 0; r < R; ++r) out[r] = sum(m[r]);
    }
  }
  template <int R>
  static void each_largest(const F (&m)[R], float (&out)[R]) {
    if constexpr (R == 4) {
      _mm_storeu_ps(out, _mm512_castps512_ps128(fold_four(m, max)));
    } else {
      for (int r = 0; r < R; ++r) out[r] = largest(m[r]);
    }
  }
  // Lanes l and l + 8, then l + 4, l + 2, l + 1, as sum() does; lane r of what comes out is m[r]'s.
  template <class Function>
  static F fold_four(const F (&m)[4], Function f) {
    const F a = f(_mm512_shuffle_f32x4(m[0], m[1], 0x44), _mm512_shuffle_f32x4(m[0], m[1], 0xee));
    const F b = f(_mm512_shuffle_f32x4(m[2], m[3], 0x44), _mm512_shuffle_f32x4(m[2], m[3], 0xee));
    const F c = f(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    const F d = f(c, _mm512_permute_ps(c, 0x4e));
    const F e = f(d, _mm512_permute_ps(d, 0xb1));
    return _mm512_permutexvar_ps(_mm512_castsi128_si512(_mm_setr_epi32(0, 4, 8, 12)), e);
  }
  static void prefetch(uintptr_t p) {
    _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0);
  }
};

}  // namespace
}  // namespace flyweight
