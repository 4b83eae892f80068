// Products with F32, F16 and BF16 weights: one float32 chain per output, column by column.
// Include after a kernels_lanes_*.h and kernels_product.h.
#pragma once

namespace flyweight {
namespace {

// Columns that are taken at once: BF16 lies in pairs.
template <Format format>
constexpr int kColumns = format == Format::BF16 ? 2 : 1;

// acc += W x over one step of columns of P panels (`bytes` apart) and T tokens.
template <Format format, int T, int P>
inline void float_step(const uint8_t* w, size_t bytes, const Inputs& x, int64_t t, int64_t c,
                       Lanes::F (&acc)[T][P]) {
  using L = Lanes;
  const auto number = [&](int i, int64_t column) {
    float v;
    std::memcpy(&v, x.row(t + i) + 4 * column, 4);
    return v;
  };
  if constexpr (format == Format::BF16 && L::kPairsBf16) {
    L::B weights[P];
    for (int p = 0; p < P; ++p) weights[p] = L::bload(w + p * bytes + 32 * c);
    for (int i = 0; i < T; ++i) {
      int32_t pair;
      std::memcpy(&pair, x.row(t + i) + 2 * c, 4);
      for (int p = 0; p < P; ++p) acc[i][p] = L::pair_dot(acc[i][p], weights[p], pair);
    }
  } else if constexpr (format == Format::BF16) {
    L::F even[P], odd[P];
    for (int p = 0; p < P; ++p) {
      const L::I both = L::bits(L::load(reinterpret_cast<const float*>(w + p * bytes + 32 * c)));
      even[p] = L::floats(L::template ishl<16>(both));
      odd[p] = L::floats(L::iand(both, L::iset(static_cast<int32_t>(0xffff0000))));
    }
    for (int i = 0; i < T; ++i) {
      const L::F first = L::set(number(i, c)), second = L::set(number(i, c + 1));
      for (int p = 0; p < P; ++p) {
        acc[i][p] = L::fma(odd[p], second, L::fma(even[p], first, acc[i][p]));
      }
    }
  } else {
    L::F weights[P];
    for (int p = 0; p < P; ++p) {
      if constexpr (format == Format::F16) weights[p] = L::half(w + p * bytes + 32 * c);
      else weights[p] = L::load(reinterpret_cast<const float*>(w + p * bytes + 64 * c));
    }
    for (int i = 0; i < T; ++i) {
      const L::F v = L::set(number(i, c));
      for (int p = 0; p < P; ++p) acc[i][p] = L::fma(weights[p], v, acc[i][p]);
    }
  }
}

// One token, P panels from `row` on.
template <Format format, int P>
void float_row(int64_t cols, const uint8_t* panels, int64_t row, const Inputs& x,
               const Outputs& out) {
  using L = Lanes;
  constexpr int kStep = kColumns<format>, kLines = 8;
  constexpr size_t kBytes = kStep * kPanel * layout(format).bytes;  // of a step of a panel
  const size_t bytes = panel_bytes(format, cols);
  const uint8_t* first = panels + row / kPanel * bytes;
  L::F acc[P];
  for (int p = 0; p < P; ++p) acc[p] = L::set(0.0f);
  // Some lines of each panel in turn.
  constexpr int64_t kTurn = kLines * 64 / kBytes * kStep;
  for (int64_t from = 0; from < cols; from += kTurn) {
    const int64_t to = from + kTurn < cols ? from + kTurn : cols;
    const uint8_t* w = first + from / kStep * kBytes;
    for (int p = 0; p < P; ++p, w += bytes) {
      for (int line = 0; line < kLines; ++line) {
        L::prefetch(reinterpret_cast<uintptr_t>(w) + 64 * (kLines + line));
      }
      L::F one[1][1] = {{acc[p]}};
      for (int64_t c = from; c < to; c += kStep) {
        float_step<format, 1, 1>(w - from / kStep * kBytes, 0, x, 0, c, one);
      }
      acc[p] = one[0][0];
    }
  }
  for (int p = 0; p < P; ++p) out.store(0, row + p * kPanel, acc[p]);
}

// P panels from `row` on, all tokens, at most T at once.
template <Format format, int kMost, int P>
void float_panels(int64_t cols, const uint8_t* panels, int64_t row, const Inputs& x,
                  int64_t tokens, const Outputs& out) {
  using L = Lanes;
  constexpr int kStep = kColumns<format>;
  // Columns of P panels that stay in the first-level cache while all tokens meet them.
  constexpr int64_t kMany = 16384 / (P * kPanel * layout(format).bytes) / 2 * 2;
  const size_t bytes = panel_bytes(format, cols);
  const uint8_t* w = panels + row / kPanel * bytes;
  const int64_t stretch = tokens > kMost ? kMany : cols;
  for (int64_t from = 0; from < cols; from += stretch) {
    const int64_t to = from + stretch < cols ? from + stretch : cols;
    for_tokens<kMost>(0, tokens, [&]<int T>(int64_t t) {
      L::F acc[T][P];
      for (int i = 0; i < T; ++i) {
        for (int p = 0; p < P; ++p) {
          acc[i][p] = from ? out.load(t + i, row + p * kPanel) : L::set(0.0f);
        }
      }
      for (int64_t c = from; c < to; c += kStep) {
        float_step<format, T, P>(w, bytes, x, t, c, acc);
      }
      for (int i = 0; i < T; ++i) {
        for (int p = 0; p < P; ++p) out.store(t + i, row + p * kPanel, acc[i][p]);
      }
    });
  }
}

template <Format format>
void product_float(int64_t cols, const uint8_t* panels, int64_t rows, const Inputs& x,
                   int64_t tokens, const Outputs& out) {
  if (tokens == 1) {
    return for_panels<kStreams>(0, rows, [&]<int P>(int64_t row) {
      float_row<format, P>(cols, panels, row, x, out);
    });
  }
  for_panels<Lanes::kFloatPanels>(0, rows, [&]<int P>(int64_t row) {
    float_panels<format, Lanes::kFloatTokens, P>(cols, panels, row, x, tokens, out);
  });
}

}  // namespace
}  // namespace flyweight
