// Inputs of products: float32 as they are, bf16 pairs, or blocks of 8 bits.
//
// Quantised formats take, for each block of 32 numbers, d = largest / 127 and q = round(x / d), so
// |x - d q| <= d / 2 (one 254th of the block's largest; numbers below 2^-118 count as 0).
// In memory: q of all columns; d of all blocks (float32); then per block what the format needs:
//   no minimum   -zero * (sum of q), int32, from which the sum of products starts (K16: for
//                each half); 0 where the dot product is signed
//   minimum      d * (sum of q), float32
// A number that is not finite makes its block's d NaN, and with it all results.
// Include after a kernels_lanes_*.h.
#pragma once

#include <bit>
#include <cstring>

namespace flyweight {
namespace {

struct Inputs {
  const uint8_t* data;  // of the first row
  size_t stride;        // bytes from row to row
  int64_t cols;

  const uint8_t* row(int64_t t) const { return data + t * stride; }
  const int8_t* codes(int64_t t) const { return reinterpret_cast<const int8_t*>(row(t)); }
  const float* scales(int64_t t) const { return reinterpret_cast<const float*>(row(t) + cols); }
  const int32_t* starts(int64_t t) const {
    return reinterpret_cast<const int32_t*>(scales(t) + cols / kBlock);
  }
  const float* sums(int64_t t) const { return scales(t) + cols / kBlock; }
};

size_t input_bytes(Format format, int64_t cols) {
  const Layout l = layout(format);
  const size_t n = static_cast<size_t>(cols);
  if (l.bits) return round_up(n + n / kBlock * 4 * (1 + l.parts()), 64);
  // A line more: rows a multiple of 4 KiB apart would share the same few places in the cache.
  const size_t pair = Lanes::kPairsBf16 ? 4 : 8;
  if (format == Format::BF16) return round_up((n + 1) / 2 * pair, 64) + 64;
  return round_up(n * 4, 64) + 64;
}

void prepare_blocks(const Layout& l, int64_t cols, const float* x, uint8_t* out) {
  using L = Lanes;
  const int64_t blocks = cols / kBlock;
  float* scales = reinterpret_cast<float*>(out + cols);
  uint8_t* extra = out + cols + 4 * blocks;
  const auto write = [](uint8_t* to, auto v) { std::memcpy(to, &v, 4); };
  const int32_t zero = l.wide && L::kSignedWide ? 0 : l.zero;
  for (int64_t b = 0; b < blocks; ++b, x += kBlock, out += kBlock) {
    const L::F low = L::load(x), high = L::load(x + 16);
    // The larger of two magnitudes is the larger as whole numbers, and NaN the largest of all.
    const L::I magnitude = L::iset(0x7fffffff);
    const int32_t largest = L::ilargest(
        L::imax(L::iand(L::bits(low), magnitude), L::iand(L::bits(high), magnitude)));
    const float limit = std::bit_cast<float>(largest);
    const bool finite = largest < 0x7f800000;
    const float inverse = finite && limit > 0x1p-118f ? 127.0f / limit : 0.0f;
    const float scale = !finite ? std::bit_cast<float>(0x7fc00000) : inverse ? limit / 127.0f : 0;
    L::I q_low = L::iset(0), q_high = q_low;
    if (inverse) {
      const L::F magic = L::set(12582912.0f), factor = L::set(inverse);
      q_low = L::isub(L::bits(L::fma(low, factor, magic)), L::bits(magic));
      q_high = L::isub(L::bits(L::fma(high, factor, magic)), L::bits(magic));
    }
    L::store_bytes(out, q_low);
    L::store_bytes(out + 16, q_high);
    scales[b] = scale;
    if (l.parts() == 2) {
      write(extra + 8 * b, -zero * L::isum(q_low));
      write(extra + 8 * b + 4, -zero * L::isum(q_high));
      continue;
    }
    const int32_t sum = L::isum(L::iadd(q_low, q_high));
    if (l.has_min()) write(extra + 4 * b, scale * static_cast<float>(sum));
    else write(extra + 4 * b, -zero * sum);
  }
}

void prepare(Format format, int64_t cols, const float* x, void* input) {
  const Layout l = layout(format);
  auto* out = static_cast<uint8_t*>(input);
  if (l.bits) return prepare_blocks(l, cols, x, out);
  const size_t n = static_cast<size_t>(cols);
  if (format == Format::BF16 && Lanes::kPairsBf16) {
    for (size_t i = 0; i < n; ++i) {
      const uint16_t v = float_to_bf16(x[i]);
      std::memcpy(out + 2 * i, &v, 2);
    }
    if (n % 2) std::memset(out + 2 * n, 0, 2);
    return;
  }
  std::memcpy(out, x, 4 * n);
  if (format == Format::BF16 && n % 2) std::memset(out + 4 * n, 0, 4);
}

}  // namespace
}  // namespace flyweight
