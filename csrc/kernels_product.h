// Products with quantised weights: whole numbers within a block of 32 columns, exact in any order,
// then one float32 sum per output over the blocks, in their order, whatever the number of tokens:
//   acc = fma(sum of products, scale d, acc), with a minimum also acc = fma(min, d sum of q, acc)
// Few tokens: codes are unpacked on their way from memory. Many: a stretch of columns of kPanels
// panels is unpacked once and meets tiles of kTokens tokens.
// Include after a kernels_lanes_*.h.
#pragma once

#include "kernels_inputs.h"

namespace flyweight {
namespace {

// Panels that few tokens meet at once, far apart: memory gives a core half as much again from many
// places that are read on and on as from one.
constexpr int kStreams = 16;
constexpr int64_t kAhead = 2;  // blocks between what is read and what is prefetched

// The codes of one block: pair(v) are groups v and v + 4.
template <Format format>
struct PackedBlock {
  static constexpr Layout l = layout(format);
  using L = Lanes;
  const uint8_t* codes;
  L::B high[2];

  explicit PackedBlock(const uint8_t* at) : codes(at) {
    if constexpr (l.bits == 5 || l.bits == 6) high[0] = L::bload(at + 256);
    if constexpr (l.bits == 6) high[1] = L::bload(at + 320);
  }

  template <int v>
  void pair(L::B& first, L::B& second) const {
    if constexpr (l.bits == 8) {
      first = L::bload(codes + 64 * v);
      second = L::bload(codes + 64 * (v + 4));
    } else {
      const L::B raw = L::bload(codes + 64 * v), mask = L::bset(15);
      first = L::band(raw, mask);
      second = L::band(L::template bshr<4>(raw), mask);
      if constexpr (l.bits == 5) {
        const L::B bit = L::bset(16);
        first = L::bor(first, L::band(L::template bshl<4 - v>(high[0]), bit));
        second = L::bor(second, L::band(L::template bshr<v>(high[0]), bit));
      }
      if constexpr (l.bits == 6) {
        const L::B two = L::bset(48);
        first = L::bor(first, L::band(shift_to_4<2 * v>(high[0]), two));
        second = L::bor(second, L::band(shift_to_4<2 * v>(high[1]), two));
      }
      if constexpr (l.table) {
        first = L::lookup(kNonLinear, first);
        second = L::lookup(kNonLinear, second);
      }
    }
  }

  // Of 4 bits: the second group's codes stand in the high halves of their bytes.
  template <int v>
  void halves(L::B& first, L::B& second) const {
    const L::B raw = L::bload(codes + 64 * v);
    first = L::band(raw, L::bset(15));
    second = L::band(raw, L::bset(240));
  }

 private:
  // Bits from, from + 1 of each byte to 4, 5.
  template <int from>
  static L::B shift_to_4(L::B v) {
    if constexpr (from < 4) return L::template bshl<4 - from>(v);
    else return L::template bshr<from - 4>(v);
  }
};

// The scales (of each part) and minimum of block `part` of a record, 16 rows.
template <Format format>
inline void read_scales(const uint8_t* record, int part, Lanes::F* scale, Lanes::F* min) {
  using L = Lanes;
  constexpr Layout l = layout(format);
  scale[0] = L::half(record);
  if constexpr (l.scales == Scales::DM) *min = L::half(record + 32);
  if constexpr (l.scales == Scales::K) {
    scale[0] = L::mul(scale[0], L::unsigned_bytes(record + 64 + 16 * part));
    const L::F down = L::sub(L::set(0.0f), L::half(record + 32));
    *min = L::mul(down, L::unsigned_bytes(record + 192 + 16 * part));
  }
  if constexpr (l.scales == Scales::K16) {
    scale[1] = L::mul(scale[0], L::signed_bytes(record + 48 + 32 * part));
    scale[0] = L::mul(scale[0], L::signed_bytes(record + 32 + 32 * part));
  }
}

template <bool wide>
inline Lanes::I dot_codes(Lanes::I sum, Lanes::B codes, Lanes::Q x) {
  if constexpr (wide) return Lanes::dot_wide(sum, codes, x);
  else return Lanes::dot(sum, codes, x);
}

// The eight groups of four inputs of a block of T tokens: at hand for one token, whose products
// with several panels are made at once, else read where they lie.
template <int T>
class Fours {
 public:
  explicit Fours(const int8_t* const (&codes)[T]) : codes_(codes) {
    if constexpr (T == 1) {
      for (int g = 0; g < kGroups; ++g) held_[g] = Lanes::four(codes[0] + 4 * g);
    }
  }
  Lanes::Q operator()(int i, int g) const {
    if constexpr (T == 1) return held_[g];
    else return Lanes::four(codes_[i] + 4 * g);
  }

 private:
  const int8_t* const (&codes_)[T];
  Lanes::Q held_[T == 1 ? kGroups : 1];
};

// `count` panels, kStreams at most and `apart` bytes from one to the next, and T tokens from token t
// on, straight from the packed codes.
template <Format format, int T>
inline void product_packed(int64_t cols, const uint8_t* panels, int count, size_t apart,
                           const Inputs& x, int64_t t, Lanes::F (&acc)[T][kStreams]) {
  using L = Lanes;
  constexpr Layout l = layout(format);
  constexpr int kParts = l.unit / kBlock, kCodes = l.code_bytes();
  // High halves stay where they are in their bytes: 16 times their products are as exact.
  constexpr bool kSixteenfold = l.bits == 4 && !l.table && L::kDotsBytes;
  const int64_t blocks = cols / kBlock;
  const size_t bytes = panel_bytes(format, cols), records = records_at(l, cols);
  const int8_t* codes[T];
  const float* scales[T];
  for (int i = 0; i < T; ++i) {
    codes[i] = x.codes(t + i);
    scales[i] = x.scales(t + i);
    for (int p = 0; p < count; ++p) acc[i][p] = L::set(0.0f);
  }
  for (int64_t b = 0; b < blocks; ++b) {
    const Fours<T> four(codes);
    const uint8_t* panel = panels + b * kCodes;
    const uint8_t* record = panels + records + b / kParts * l.record;
    const int part = static_cast<int>(b % kParts);
    // Behind a panel's end, the one after it.
    const bool end = b + kAhead >= blocks;
    const int64_t then = end ? b + kAhead - blocks : b + kAhead;
    auto ahead = reinterpret_cast<uintptr_t>(panels) + (end ? bytes : 0);
    for (int p = 0; p < count; ++p, panel += apart, record += apart, ahead += apart) {
      for (int line = 0; line < kCodes; line += 64) L::prefetch(ahead + then * kCodes + line);
      for (int line = 0; line < l.record / kParts; line += 64) {
        L::prefetch(ahead + records + then * (l.record / kParts) + line);
      }
      const PackedBlock<format> block(panel);
      L::I sum[T][2];
      for (int i = 0; i < T; ++i) {
        const int32_t* starts = x.starts(t + i) + b * l.parts();
        sum[i][0] = L::iset(l.has_min() ? 0 : starts[0]);
        sum[i][1] = L::iset(l.parts() == 2 ? starts[1] : 0);
      }
      const auto step = [&]<int v>() {
        L::B first, second;
        if constexpr (kSixteenfold) block.template halves<v>(first, second);
        else block.template pair<v>(first, second);
        for (int i = 0; i < T; ++i) {
          sum[i][0] = dot_codes<l.wide>(sum[i][0], first, four(i, v));
          sum[i][1] = dot_codes<l.wide>(sum[i][1], second, four(i, v + 4));
        }
      };
      step.template operator()<0>();
      step.template operator()<1>();
      step.template operator()<2>();
      step.template operator()<3>();
      L::F scale[2], min;
      read_scales<format>(record, part, scale, &min);
      for (int i = 0; i < T; ++i) {
        const L::F d = L::set(*scales[i]);
        L::F so_far = acc[i][p];
        if constexpr (l.parts() == 2) {
          so_far = L::fma(L::to_float(sum[i][0]), L::mul(scale[0], d), so_far);
          so_far = L::fma(L::to_float(sum[i][1]), L::mul(scale[1], d), so_far);
        } else {
          if constexpr (kSixteenfold) sum[i][1] = L::template isar<4>(sum[i][1]);
          const L::F whole = L::to_float(L::iadd(sum[i][0], sum[i][1]));
          so_far = L::fma(whole, L::mul(scale[0], d), so_far);
        }
        if constexpr (l.has_min()) so_far = L::fma(min, L::set(x.sums(t + i)[b]), so_far);
        acc[i][p] = so_far;
      }
    }
    for (int i = 0; i < T; ++i) codes[i] += kBlock, scales[i] += 1;
  }
}

// A stretch of columns of a panel, unpacked.
constexpr int kStretch = Lanes::kStretch;  // blocks

struct alignas(64) Stretch {
  uint8_t codes[kStretch][kGroups][64];
  float scale[kStretch][2][kPanel];
  float min[kStretch][kPanel];
};

// Where stretches come from: packed panels.
template <Format format>
struct PackedPanels {
  static constexpr Layout l = layout(format);
  using L = Lanes;
  int64_t cols;
  const uint8_t* panels;

  // Blocks [from, to) of a panel.
  void unpack(int64_t number, int64_t from, int64_t to, Stretch* out) const {
    constexpr int kParts = l.unit / kBlock;
    const uint8_t* panel = panels + number * panel_bytes(format, cols);
    const uint8_t* records = panel + records_at(l, cols);
    for (int64_t b = from; b < to; ++b) {
      const PackedBlock<format> block(panel + b * l.code_bytes());
      const int64_t i = b - from;
      const auto step = [&]<int v>() {
        L::B first, second;
        block.template pair<v>(first, second);
        L::bstore(out->codes[i][v], first);
        L::bstore(out->codes[i][v + 4], second);
      };
      step.template operator()<0>();
      step.template operator()<1>();
      step.template operator()<2>();
      step.template operator()<3>();
      L::F scale[2], min;
      read_scales<format>(records + b / kParts * l.record, static_cast<int>(b % kParts), scale, &min);
      L::store(out->scale[i][0], scale[0]);
      if constexpr (l.parts() == 2) L::store(out->scale[i][1], scale[1]);
      if constexpr (l.has_min()) L::store(out->min[i], min);
    }
  }
};

// Blocks [from, to) of P unpacked panels and T tokens; acc goes on.
template <Format format, int T, int P>
inline void product_tile(const Stretch* w, const Inputs& x, int64_t t, int64_t from, int64_t to,
                         Lanes::F (&acc)[T][P]) {
  using L = Lanes;
  constexpr Layout l = layout(format);
  constexpr int kPart = kGroups / l.parts();  // groups that share a scale
  for (int64_t b = from; b < to; ++b) {
    for (int part = 0; part < l.parts(); ++part) {
      L::I sum[T][P];
      for (int i = 0; i < T; ++i) {
        for (int p = 0; p < P; ++p) {
          if constexpr (l.has_min()) sum[i][p] = L::iset(0);
          else sum[i][p] = L::iset(x.starts(t + i)[b * l.parts() + part]);
        }
      }
#pragma GCC unroll 8
      for (int g = part * kPart; g < (part + 1) * kPart; ++g) {
        L::B codes[P];
        for (int p = 0; p < P; ++p) codes[p] = L::bload(w[p].codes[b - from][g]);
        for (int i = 0; i < T; ++i) {
          const L::Q q = L::four(x.codes(t + i) + b * kBlock + 4 * g);
          for (int p = 0; p < P; ++p) sum[i][p] = dot_codes<l.wide>(sum[i][p], codes[p], q);
        }
      }
      L::F scale[P];
      for (int p = 0; p < P; ++p) scale[p] = L::load(w[p].scale[b - from][part]);
      for (int i = 0; i < T; ++i) {
        const L::F d = L::set(x.scales(t + i)[b]);
        for (int p = 0; p < P; ++p) {
          acc[i][p] = L::fma(L::to_float(sum[i][p]), L::mul(scale[p], d), acc[i][p]);
        }
      }
    }
    if constexpr (l.has_min()) {
      for (int i = 0; i < T; ++i) {
        const L::F s = L::set(x.sums(t + i)[b]);
        for (int p = 0; p < P; ++p) {
          acc[i][p] = L::fma(L::load(w[p].min[b - from]), s, acc[i][p]);
        }
      }
    }
  }
}

// The outputs of a panel: fewer than 16 in the last one.
struct Outputs {
  float* out;
  int64_t stride, rows;

  Lanes::F load(int64_t t, int64_t row) const {
    const float* p = out + t * stride + row;
    return rows - row >= kPanel ? Lanes::load(p) : Lanes::load_n(p, static_cast<int>(rows - row));
  }
  void fetch(int64_t t, int64_t row) const {
    Lanes::prefetch(reinterpret_cast<uintptr_t>(out + t * stride + row));
  }
  void store(int64_t t, int64_t row, Lanes::F v) const {
    float* p = out + t * stride + row;
    if (rows - row >= kPanel) Lanes::store(p, v);
    else Lanes::store_n(p, static_cast<int>(rows - row), v);
  }
};

// f<T>(t) over tokens [t, tokens), most at a time.
template <int T, class Function>
inline void for_tokens(int64_t t, int64_t tokens, Function f) {
  for (; t + T <= tokens; t += T) f.template operator()<T>(t);
  if constexpr (T > 1) {
    constexpr int kNext = T > 4 ? 4 : T / 2;
    if (t < tokens) for_tokens<kNext>(t, tokens, f);
  }
}

// f<P>(row) over rows [row, rows), most panels at a time.
template <int P, class Function>
inline void for_panels(int64_t row, int64_t rows, Function f) {
  for (; row + (P - 1) * kPanel < rows; row += P * kPanel) f.template operator()<P>(row);
  if constexpr (P > 1) {
    constexpr int kNext = P == 3 ? 2 : P / 2;
    if (row < rows) for_panels<kNext>(row, rows, f);
  }
}

template <Format format, int P, class Panels>
void product_many(int64_t cols, const Panels& panels, int64_t row, const Inputs& x, int64_t tokens,
                  const Outputs& out) {
  using L = Lanes;
  Stretch stretch[P];
  const int64_t blocks = cols / kBlock, stretches = (blocks + kStretch - 1) / kStretch;
  for (int64_t s = 0; s < stretches; ++s) {
    const int64_t from = blocks * s / stretches, to = blocks * (s + 1) / stretches;
    for (int p = 0; p < P; ++p) panels.unpack(row / kPanel + p, from, to, &stretch[p]);
    for_tokens<L::kTokens * L::kPanels / P>(0, tokens, [&]<int T>(int64_t t) {
      L::F acc[T][P];
      for (int i = 0; i < T; ++i) {
        for (int p = 0; p < P; ++p) {
          if (s) {
            acc[i][p] = out.load(t + i, row + p * kPanel);
          } else {
            // Asked for long before it is written: a store would wait for it.
            out.fetch(t + i, row + p * kPanel);
            acc[i][p] = L::set(0.0f);
          }
        }
      }
      product_tile<format, T, P>(stretch, x, t, from, to, acc);
      for (int i = 0; i < T; ++i) {
        for (int p = 0; p < P; ++p) out.store(t + i, row + p * kPanel, acc[i][p]);
      }
    });
  }
}

template <Format format, class Panels>
void product_unpacked(int64_t cols, const Panels& panels, int64_t rows, const Inputs& x,
                      int64_t tokens, const Outputs& out) {
  for_panels<Lanes::kPanels>(0, rows, [&]<int P>(int64_t row) {
    product_many<format, P>(cols, panels, row, x, tokens, out);
  });
}

template <Format format>
void product_quantised(int64_t cols, const uint8_t* panels, int64_t rows, const Inputs& x,
                       int64_t tokens, const Outputs& out) {
  constexpr int kFew = 5;
  if (tokens > kFew) {
    return product_unpacked<format>(cols, PackedPanels<format>{cols, panels}, rows, x, tokens, out);
  }
  const size_t bytes = panel_bytes(format, cols);
  const int64_t all = (rows + kPanel - 1) / kPanel, turns = (all + kStreams - 1) / kStreams;
  const size_t apart = turns * bytes;
  for (int64_t turn = 0; turn < turns; ++turn) {
    const int count = static_cast<int>((all - turn + turns - 1) / turns);
    for_tokens<4>(0, tokens, [&]<int T>(int64_t t) {
      Lanes::F acc[T][kStreams];
      product_packed<format, T>(cols, panels + turn * bytes, count, apart, x, t, acc);
      for (int i = 0; i < T; ++i) {
        for (int p = 0; p < count; ++p) out.store(t + i, (turn + p * turns) * kPanel, acc[i][p]);
      }
    });
  }
}

}  // namespace
}  // namespace flyweight
