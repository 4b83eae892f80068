// The table of one instruction set from the templates. Include after a kernels_lanes_*.h, last.
#pragma once

// clang-format off: in this order
#include "kernels_elementwise.h"
#include "kernels_product.h"
#include "kernels_product_float.h"
#ifdef FLYWEIGHT_AMX
#include "kernels_tiles.h"
#endif
#include "kernels_product_stored.h"
#include "kernels_attention.h"
#include "kernels_attention_gradient.h"
#include "kernels_loss.h"
#include "kernels_training.h"

namespace flyweight {
namespace {

template <Format format>
void product_of(int64_t cols, const uint8_t* panels, int64_t rows, const Inputs& x, int64_t tokens,
                const Outputs& y) {
  if constexpr (layout(format).bits == 0) {
    product_float<format>(cols, panels, rows, x, tokens, y);
  } else {
#ifdef FLYWEIGHT_AMX
    if (tokens >= kFewestTiled) {
      return product_tiles<format>(cols, PackedPanels<format>{cols, panels}, rows, x, tokens, y);
    }
#endif
    product_quantised<format>(cols, panels, rows, x, tokens, y);
  }
}

void product(Format format, int64_t cols, const void* panels, int64_t rows, const void* inputs,
             size_t input_stride, int64_t tokens, float* out, int64_t out_stride) {
  const auto* w = static_cast<const uint8_t*>(panels);
  const Inputs x{static_cast<const uint8_t*>(inputs), input_stride, cols};
  const Outputs y{out, out_stride, rows};
  switch (format) {
    case Format::F32: return product_of<Format::F32>(cols, w, rows, x, tokens, y);
    case Format::F16: return product_of<Format::F16>(cols, w, rows, x, tokens, y);
    case Format::BF16: return product_of<Format::BF16>(cols, w, rows, x, tokens, y);
    case Format::Q4_0: return product_of<Format::Q4_0>(cols, w, rows, x, tokens, y);
    case Format::Q4_1: return product_of<Format::Q4_1>(cols, w, rows, x, tokens, y);
    case Format::Q5_0: return product_of<Format::Q5_0>(cols, w, rows, x, tokens, y);
    case Format::Q5_1: return product_of<Format::Q5_1>(cols, w, rows, x, tokens, y);
    case Format::Q8_0: return product_of<Format::Q8_0>(cols, w, rows, x, tokens, y);
    case Format::IQ4_NL: return product_of<Format::IQ4_NL>(cols, w, rows, x, tokens, y);
    case Format::Q4_K: return product_of<Format::Q4_K>(cols, w, rows, x, tokens, y);
    case Format::Q5_K: return product_of<Format::Q5_K>(cols, w, rows, x, tokens, y);
    case Format::Q6_K: return product_of<Format::Q6_K>(cols, w, rows, x, tokens, y);
  }
}

void product_stored(Format format, int64_t cols, const void* data, int64_t rows, const void* inputs,
                    size_t input_stride, int64_t tokens, float* out, int64_t out_stride) {
  const auto* w = static_cast<const uint8_t*>(data);
  const Inputs x{static_cast<const uint8_t*>(inputs), input_stride, cols};
  const Outputs y{out, out_stride, rows};
  switch (format) {
    case Format::F32: return product_of_stored<Format::F32>(cols, w, rows, x, tokens, y);
    case Format::F16: return product_of_stored<Format::F16>(cols, w, rows, x, tokens, y);
    case Format::BF16: return product_of_stored<Format::BF16>(cols, w, rows, x, tokens, y);
    case Format::Q8_0: return product_of_stored<Format::Q8_0>(cols, w, rows, x, tokens, y);
    default: return;  // not multiplied_as_stored
  }
}

constexpr Kernels make_table() {
  return {Lanes::kName, panel_bytes, pack,     unpack_row, dequantise,   input_bytes,
          prepare,      product,     product_stored,
          rms_norm,     layer_norm,  activate, multiply,
          add,          rotate,      stored_bytes, store,  attend,
          cross_entropy, attention_gradient, rms_norm_row, rms_norm_gradient, rotate_row,
          relu2_row};
}

}  // namespace
}  // namespace flyweight
