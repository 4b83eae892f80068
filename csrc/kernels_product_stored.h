// Products with rows as they are stored, one after another in ggml's layout: a model that is large
// need not be packed before its first token, nor be in memory twice. A stretch of columns of a few
// panels is laid out as packed panels have it, in L1, and meets all tokens there: the same sums in
// the same order. Sixteen rows and more are read at once, which is as fast as memory gives them.
// Include after kernels_product_float.h.
#pragma once

#include <utility>

namespace flyweight {
namespace {

// Sixteen rows, `apart` from one to the next; behind the last one there is, that one again.
struct StoredRows {
  const uint8_t* at[kPanel];

  StoredRows(const uint8_t* data, size_t stride, int64_t first, int64_t apart, int64_t rows) {
    for (int r = 0; r < kPanel; ++r) {
      const int64_t row = first + r * apart;
      at[r] = data + (row < rows ? row : rows - 1) * stride;
    }
  }
  // Asks for what is read a little later than `from` of a row's bytes.
  void fetch(int64_t from) const {
    constexpr int64_t kLater = 512;
    for (const uint8_t* row : at) Lanes::prefetch(reinterpret_cast<uintptr_t>(row) + from + kLater);
  }
};

// Block b of sixteen rows of Q8_0: eight groups of codes, as packed panels have them, and scales.
struct StoredBlock {
  static constexpr Layout l = layout(Format::Q8_0);
  using L = Lanes;
  L::B groups[kGroups];
  L::F scale;

  StoredBlock(const StoredRows& stored, int64_t b) {
    const int64_t at = b * l.bytes;
    if (b % 2 == 0) stored.fetch(at);
    L::groups(stored.at, at + 2, groups);
    const L::B sign = L::bset(l.zero);
    for (L::B& group : groups) group = L::bxor(group, sign);
    uint64_t scales[kPanel / 4];
    for (int i = 0; i < kPanel / 4; ++i) {
      scales[i] = 0;
      for (int r = 0; r < 4; ++r) {
        uint16_t d;
        std::memcpy(&d, stored.at[4 * i + r] + at, 2);
        scales[i] |= static_cast<uint64_t>(d) << 16 * r;
      }
    }
    scale = L::half(scales);
  }
};

// Block b of one panel and T tokens; acc[][p] goes on.
template <int T, int P>
inline void stored_block(const StoredRows& stored, int64_t b, const Inputs& x, int64_t t,
                         Lanes::F (&acc)[T][P], int p) {
  using L = Lanes;
  const StoredBlock block(stored, b);
  for (int i = 0; i < T; ++i) {
    const int8_t* codes = x.codes(t + i) + b * kBlock;
    L::I sum = L::iset(x.starts(t + i)[b]), more = L::iset(0);
    for (int g = 0; g < kGroups; g += 2) {
      sum = L::dot_wide(sum, block.groups[g], L::four(codes + 4 * g));
      more = L::dot_wide(more, block.groups[g + 1], L::four(codes + 4 * g + 4));
    }
    const L::F scale = L::mul(block.scale, L::set(x.scales(t + i)[b]));
    acc[i][p] = L::fma(L::to_float(L::iadd(sum, more)), scale, acc[i][p]);
  }
}

// Where stretches come from: rows of Q8_0.
struct StoredPanels {
  static constexpr Layout l = layout(Format::Q8_0);
  using L = Lanes;
  int64_t cols;
  const uint8_t* data;
  int64_t rows;

  void unpack(int64_t number, int64_t from, int64_t to, Stretch* out) const {
    const int64_t bytes = cols / kBlock * l.bytes;
    const StoredRows stored(data, bytes, number * kPanel, 1, rows);
    for (int64_t b = from; b < to; ++b) {
      const StoredBlock block(stored, b);
      for (int g = 0; g < kGroups; ++g) L::bstore(out->codes[b - from][g], block.groups[g]);
      L::store(out->scale[b - from][0], block.scale);
    }
  }
};

// F16 is laid out as F32, which is what its products are made with.
constexpr Format laid_out(Format format) { return format == Format::F16 ? Format::F32 : format; }

// Columns [from, to) of a panel of F32, F16 or BF16.
template <Format format>
void lay_out(const StoredRows& stored, int64_t cols, int64_t from, int64_t to, uint8_t* out) {
  using L = Lanes;
  constexpr int64_t kSize = layout(format).bytes;
  constexpr int64_t kStep = format == Format::BF16 ? 32 : 16;  // columns of one transposition
  for (int64_t c = from; c < to; c += kStep, out += kPanel * 64) {
    stored.fetch(c * kSize);
    const int64_t n = to - c < kStep ? to - c : kStep;
    F rows[kPanel];
    for (int r = 0; r < kPanel; ++r) {
      const uint8_t* at = stored.at[r] + c * kSize;
      alignas(64) uint8_t tail[64];
      if (n < kStep) {
        std::memset(tail, 0, sizeof tail);
        std::memcpy(tail, at, n * kSize);
        at = tail;
      }
      if constexpr (format == Format::F16) rows[r] = L::half(at);
      else rows[r] = L::load(reinterpret_cast<const float*>(at));
    }
    L::transpose(rows);
    auto* to_here = reinterpret_cast<float*>(out);
    for (int k = 0; k < kPanel; ++k) L::store(to_here + kPanel * k, rows[k]);
  }
}

// P panels from `row` on, all tokens.
template <Format format, int P>
void stored_panels(int64_t cols, const uint8_t* data, int64_t row, const Inputs& x, int64_t tokens,
                   const Outputs& out) {
  using L = Lanes;
  constexpr Format kLaid = laid_out(format);
  constexpr int kStep = kColumns<kLaid>;
  constexpr size_t kBytes = kStep * kPanel * layout(kLaid).bytes, kPanelBytes = 16384 / P;
  constexpr int64_t kMany = kPanelBytes / kBytes * kStep;
  alignas(64) uint8_t laid[P][kPanelBytes];
  const size_t stride = cols * layout(format).bytes;
  for (int64_t from = 0; from < cols; from += kMany) {
    const int64_t to = from + kMany < cols ? from + kMany : cols;
    for (int p = 0; p < P; ++p) {
      const StoredRows stored(data, stride, row + p * kPanel, 1, out.rows);
      lay_out<format>(stored, cols, from, to, laid[p]);
    }
    for_tokens<L::kFloatTokens>(0, tokens, [&]<int T>(int64_t t) {
      L::F acc[T][P];
      for (int i = 0; i < T; ++i) {
        for (int p = 0; p < P; ++p) {
          acc[i][p] = from ? out.load(t + i, row + p * kPanel) : L::set(0.0f);
        }
      }
      const uint8_t* begin = laid[0] - from / kStep * kBytes;
      for (int64_t c = from; c < to; c += kStep) {
        float_step<kLaid, T, P>(begin, kPanelBytes, x, t, c, acc);
      }
      for (int i = 0; i < T; ++i) {
        for (int p = 0; p < P; ++p) out.store(t + i, row + p * kPanel, acc[i][p]);
      }
    });
  }
}

// Few tokens: what is read goes on at once, tile by tile, so that memory never rests. The rows of P
// panels lie far apart, each followed by its neighbour in the next turn: 16 P places that are read on
// and on.
constexpr int kFewStored = 4;

template <Format format, int T, int P>
void stored_few(int64_t cols, const StoredRows (&panels)[P], const Inputs& x, int64_t t,
                Lanes::F (&acc)[T][P]) {
  using L = Lanes;
  for (int i = 0; i < T; ++i) {
    for (int p = 0; p < P; ++p) acc[i][p] = L::set(0.0f);
  }
  if constexpr (format == Format::Q8_0) {
    for (int64_t b = 0; b < cols / kBlock; ++b) {
      for (int p = 0; p < P; ++p) stored_block<T>(panels[p], b, x, t, acc, p);
    }
  } else {
    constexpr Format kLaid = laid_out(format);
    constexpr int kStep = kColumns<kLaid>;
    constexpr int64_t kTile = format == Format::BF16 ? 32 : 16;
    constexpr size_t kBytes = kStep * kPanel * layout(kLaid).bytes, kTileBytes = kPanel * 64;
    alignas(64) uint8_t laid[P][kTileBytes];
    for (int64_t from = 0; from < cols; from += kTile) {
      const int64_t to = from + kTile < cols ? from + kTile : cols;
      for (int p = 0; p < P; ++p) lay_out<format>(panels[p], cols, from, to, laid[p]);
      const uint8_t* begin = laid[0] - from / kStep * kBytes;
      for (int64_t c = from; c < to; c += kStep) {
        float_step<kLaid, T, P>(begin, kTileBytes, x, t, c, acc);
      }
    }
  }
}

template <Format format>
void product_few_stored(int64_t cols, const uint8_t* data, int64_t rows, const Inputs& x,
                        int64_t tokens, const Outputs& out) {
  // BF16 without instructions of its own waits for its own sums: two panels' go side by side.
  constexpr int P = format == Format::BF16 && !Lanes::kPairsBf16 ? 2 : 1;
  const size_t stride = cols / layout(format).unit * layout(format).bytes;
  const int64_t turns = (rows + P * kPanel - 1) / (P * kPanel);
  for (int64_t turn = 0; turn < turns; ++turn) {
    const auto panel = [&](int p) {
      return StoredRows(data, stride, turn + p * kPanel * turns, turns, rows);
    };
    const auto run = [&]<int... p>(std::integer_sequence<int, p...>) {
      const StoredRows panels[P] = {panel(p)...};
      for_tokens<kFewStored>(0, tokens, [&]<int T>(int64_t t) {
        Lanes::F acc[T][P];
        stored_few<format, T, P>(cols, panels, x, t, acc);
        for (int i = 0; i < T; ++i) {
          for (int q = 0; q < P; ++q) {
            float lanes[kPanel];
            Lanes::store(lanes, acc[i][q]);
            for (int r = 0; r < kPanel; ++r) {
              const int64_t row = turn + (q * kPanel + r) * turns;
              if (row < rows) out.out[(t + i) * out.stride + row] = lanes[r];
            }
          }
        }
      });
    };
    run(std::make_integer_sequence<int, P>());
  }
}

template <Format format>
void product_of_stored(int64_t cols, const uint8_t* data, int64_t rows, const Inputs& x,
                       int64_t tokens, const Outputs& out) {
  if (tokens <= kFewStored) {
    return product_few_stored<format>(cols, data, rows, x, tokens, out);
  }
  if constexpr (format == Format::Q8_0) {
    const StoredPanels panels{cols, data, rows};
#ifdef FLYWEIGHT_AMX
    if (tokens >= kFewestTiled) return product_tiles<format>(cols, panels, rows, x, tokens, out);
#endif
    product_unpacked<format>(cols, panels, rows, x, tokens, out);
  } else {
    for_panels<Lanes::kFloatPanels>(0, rows, [&]<int P>(int64_t row) {
      stored_panels<format, P>(cols, data, row, x, tokens, out);
    });
  }
}

}  // namespace
}  // namespace flyweight
