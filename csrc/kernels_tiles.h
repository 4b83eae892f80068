// Products of many tokens on AMX: a tile instruction multiplies 16 tokens by 16 rows over one
// scale's columns (32, or 16 of Q6_K) in whole numbers; the sums then go through memory (L1) to the
// same float32 arithmetic as elsewhere, in the same order, so that results are those of avx512.
// Include after kernels_product.h.
#pragma once

#include <immintrin.h>

namespace flyweight {
namespace {

constexpr int kTile = 16;          // tokens of a tile
constexpr int kTileTokens = 256;   // tokens that are brought together at once
constexpr int kFewestTiled = 32;   // tokens, below which bringing them together costs more
constexpr int kTilePanels = 2;

// Tiles 0-3 are sums (16 x 64 bytes), 4 and 6 inputs (16 x depth), 5 and 7 weights.
inline void configure_tiles(int depth) {
  alignas(64) uint8_t config[64] = {1};
  const auto shape = [&](int tile, int rows, int bytes) {
    config[16 + 2 * tile] = static_cast<uint8_t>(bytes);
    config[48 + tile] = static_cast<uint8_t>(rows);
  };
  for (int c = 0; c < 4; ++c) shape(c, kTile, 64);
  for (int a = 4; a < 8; a += 2) {
    shape(a, kTile, depth);
    shape(a + 1, depth / 4, 64);
  }
  // The compiler takes the intrinsic to read only the first bytes.
  __asm__ volatile("" ::"r"(config) : "memory");
  _tile_loadconfig(config);
}

// Inputs of up to kTileTokens tokens over a stretch of columns; absent tokens are zeros.
template <int kParts>
struct alignas(64) TileInputs {
  static constexpr int kDepth = kBlock / kParts;
  int8_t codes[kTileTokens / kTile][kStretch * kParts][kTile][kDepth];
  float scale[kStretch][kTileTokens];
  float sum[kStretch][kTileTokens];  // with a minimum

  void fill(const Inputs& x, int64_t t, int64_t tokens, int64_t from, int64_t to, bool min) {
    const int64_t n = tokens - t < kTileTokens ? tokens - t : kTileTokens;
    const int64_t filled = (n + kTile - 1) / kTile * kTile;
    for (int64_t i = 0; i < filled; ++i) {
      const bool present = i < n;
      const int8_t* row = present ? x.codes(t + i) + from * kBlock : nullptr;
      for (int64_t step = 0; step < (to - from) * kParts; ++step) {
        int8_t* out = codes[i / kTile][step][i % kTile];
        if (present) std::memcpy(out, row + step * kDepth, kDepth);
        else std::memset(out, 0, kDepth);
      }
      for (int64_t b = from; b < to; ++b) {
        scale[b - from][i] = present ? x.scales(t + i)[b] : 0.0f;
        if (min) sum[b - from][i] = present ? x.sums(t + i)[b] : 0.0f;
      }
    }
  }
};

// The codes of a stretch become signed: 0 is 0.
template <Format format>
inline void make_signed(Stretch* w, int64_t blocks) {
  constexpr int zero = layout(format).zero;
  if constexpr (zero != 0) {
    const __m512i offset = _mm512_set1_epi8(static_cast<char>(zero));
    for (int64_t b = 0; b < blocks; ++b) {
      for (auto& group : w->codes[b]) {
        _mm512_store_si512(group, _mm512_sub_epi8(_mm512_load_si512(group), offset));
      }
    }
  }
}

// A step is one scale's columns: the kSums-th tile is zeroed, summed in and stored.
template <int kDepth, int kSums>
[[gnu::always_inline]] inline void tile_step(const int8_t* x, const uint8_t* w, int32_t* sums) {
#define FLYWEIGHT_STEP(c, a, b) \
  _tile_zero(c);                \
  _tile_loadd(a, x, kDepth);    \
  _tile_loadd(b, w, 64);        \
  _tile_dpbssd(c, a, b);        \
  _tile_stored(c, sums, 64)
  if constexpr (kSums == 0) {
    FLYWEIGHT_STEP(0, 4, 5);
  } else if constexpr (kSums == 1) {
    FLYWEIGHT_STEP(1, 6, 7);
  } else if constexpr (kSums == 2) {
    FLYWEIGHT_STEP(2, 4, 5);
  } else {
    FLYWEIGHT_STEP(3, 6, 7);
  }
#undef FLYWEIGHT_STEP
}

constexpr int kDeep = 4;  // steps between a tile's sums and their use: they take that long

// 16 tokens of one panel over a stretch.
template <Format format>
struct TileStretch {
  static constexpr Layout l = layout(format);
  static constexpr int kParts = l.parts(), kDepth = kBlock / kParts;
  const int8_t* codes;       // of the first step of the tokens
  const float *scale, *sum;  // of the first block
  const Stretch& w;
  int32_t (*sums)[kTile][kPanel];  // of 2 kDeep steps

  template <int kSums>
  [[gnu::always_inline]] inline void multiply(int64_t s) {
    const uint8_t* weights = w.codes[0][0] + s * (kDepth * kPanel);
    tile_step<kDepth, kSums>(codes + s * (kTile * kDepth), weights, sums[s % (2 * kDeep)][0]);
  }

  [[gnu::always_inline]] inline void add(int64_t s, __m512 (&acc)[kTile]) const {
    const int64_t b = s / kParts;
    const __m512 factor = _mm512_load_ps(w.scale[b][s % kParts]);
    const float* d = scale + b * kTileTokens;
    const auto& from = sums[s % (2 * kDeep)];
#pragma GCC unroll 16
    for (int i = 0; i < kTile; ++i) {
      const __m512 both = _mm512_mul_ps(factor, _mm512_set1_ps(d[i]));
      acc[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(from[i])), both, acc[i]);
    }
    if constexpr (l.has_min()) {
      const __m512 min = _mm512_load_ps(w.min[b]);
      const float* total = sum + b * kTileTokens;
#pragma GCC unroll 16
      for (int i = 0; i < kTile; ++i) {
        acc[i] = _mm512_fmadd_ps(min, _mm512_set1_ps(total[i]), acc[i]);
      }
    }
  }

  // A number of steps that is a multiple of kDeep first, then the others one by one.
  [[gnu::always_inline]] inline void run(int64_t steps, __m512 (&acc)[kTile]) {
    const int64_t deep = steps / kDeep * kDeep;
    if (deep) {
      multiply<0>(0);
      multiply<1>(1);
      multiply<2>(2);
      multiply<3>(3);
    }
    for (int64_t s = 0; s + kDeep < deep; s += kDeep) {
      multiply<0>(s + kDeep);
      add(s, acc);
      multiply<1>(s + kDeep + 1);
      add(s + 1, acc);
      multiply<2>(s + kDeep + 2);
      add(s + 2, acc);
      multiply<3>(s + kDeep + 3);
      add(s + 3, acc);
    }
    for (int64_t s = deep ? deep - kDeep : 0; s < deep; ++s) add(s, acc);
    for (int64_t s = deep; s < steps; ++s) {
      multiply<0>(s);
      add(s, acc);
    }
  }
};

// The outputs of `present` tokens from t on: the stretch's own, or what it adds to those before.
template <Format format>
void tile_stretch(const Stretch& w, const TileInputs<layout(format).parts()>& x, int tile,
                  int64_t blocks, bool first, const Outputs& out, int64_t t, int present,
                  int64_t row) {
  __m512 acc[kTile];
#pragma GCC unroll 16
  for (int i = 0; i < kTile; ++i) {
    acc[i] = !first && i < present ? out.load(t + i, row) : _mm512_setzero_ps();
  }
  alignas(64) int32_t sums[2 * kDeep][kTile][kPanel];
  TileStretch<format> stretch{
      x.codes[tile][0][0], x.scale[0] + tile * kTile, x.sum[0] + tile * kTile, w, sums};
  stretch.run(blocks * stretch.kParts, acc);
#pragma GCC unroll 16
  for (int i = 0; i < kTile; ++i) {
    if (i < present) out.store(t + i, row, acc[i]);
  }
}

template <Format format, class Panels>
void product_tiles(int64_t cols, const Panels& panels, int64_t rows, const Inputs& x,
                   int64_t tokens, const Outputs& out) {
  constexpr Layout l = layout(format);
  const int64_t blocks = cols / kBlock, all = (rows + kPanel - 1) / kPanel;
  TileInputs<l.parts()> inputs;
  Stretch w[kTilePanels];
  configure_tiles(kBlock / l.parts());
  for (int64_t from = 0; from < blocks; from += kStretch) {
    const int64_t to = from + kStretch < blocks ? from + kStretch : blocks;
    for (int64_t t = 0; t < tokens; t += kTileTokens) {
      inputs.fill(x, t, tokens, from, to, l.has_min());
      for (int64_t panel = 0; panel < all; panel += kTilePanels) {
        const int64_t n = all - panel < kTilePanels ? all - panel : kTilePanels;
        for (int64_t p = 0; p < n; ++p) {
          panels.unpack(panel + p, from, to, &w[p]);
          make_signed<format>(&w[p], to - from);
        }
        __asm__ volatile("" ::: "memory");  // tile loads read what was written
        for (int64_t at = t; at < tokens && at < t + kTileTokens; at += kTile) {
          const int present = static_cast<int>(tokens - at < kTile ? tokens - at : kTile);
          for (int64_t p = 0; p < n; ++p) {
            tile_stretch<format>(w[p], inputs, static_cast<int>((at - t) / kTile), to - from,
                                 from == 0, out, at, present, (panel + p) * kPanel);
          }
        }
      }
    }
  }
  _tile_release();
}

}  // namespace
}  // namespace flyweight
