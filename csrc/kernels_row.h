// A row of float32 or bf16 numbers, computed with in float32. Include after kernels_elementwise.h.
#pragma once

#include <cstring>

namespace flyweight {
namespace {

// 16 numbers at a time; a tail's empty lanes read as `fill`.
template <Format format>
struct NumberRow {
  uint8_t* data;
  static constexpr int64_t kSize = format == Format::BF16 ? 2 : 4;

  F load(int n, int64_t i, float fill = 0.0f) const {
    const uint8_t* p = data + kSize * i;
    if (n == 16) return widen(p);
    uint8_t tail[16 * kSize];
    for (int k = 0; k < 16; ++k) write(tail + kSize * k, fill);
    std::memcpy(tail, p, kSize * n);
    return widen(tail);
  }
  void store(int n, int64_t i, F v) const {
    uint8_t* p = data + kSize * i;
    if (n == 16) return narrow(p, v);
    uint8_t tail[16 * kSize];
    narrow(tail, v);
    std::memcpy(p, tail, kSize * n);
  }
  float at(int64_t i) const {
    if constexpr (format == Format::BF16) {
      uint16_t v;
      std::memcpy(&v, data + 2 * i, 2);
      return bf16_to_float(v);
    } else {
      float v;
      std::memcpy(&v, data + 4 * i, 4);
      return v;
    }
  }
  void put(int64_t i, float v) const { write(data + kSize * i, v); }

 private:
  static void write(uint8_t* p, float v) {
    if constexpr (format == Format::BF16) {
      const uint16_t half = float_to_bf16(v);
      std::memcpy(p, &half, 2);
    } else {
      std::memcpy(p, &v, 4);
    }
  }
  static F widen(const uint8_t* p) {
    if constexpr (format == Format::BF16) return Lanes::bf16(p);
    return Lanes::load(reinterpret_cast<const float*>(p));
  }
  static void narrow(uint8_t* p, F v) {
    if constexpr (format == Format::BF16) {
      Lanes::store_bf16(p, v);
    } else {
      Lanes::store(reinterpret_cast<float*>(p), v);
    }
  }
};

template <Format format>
inline NumberRow<format> row_of(const void* p) {
  return {static_cast<uint8_t*>(const_cast<void*>(p))};
}

// body(a row maker) for the format: F32 or BF16.
template <class Body>
inline void with_rows(Format format, Body body) {
  if (format == Format::BF16) body([](const void* p) { return row_of<Format::BF16>(p); });
  else body([](const void* p) { return row_of<Format::F32>(p); });
}

}  // namespace
}  // namespace flyweight
