// Weights from ggml's layout into panels and back: plain code, run once per matrix.
// Formats after ggml's block definitions (ggml-common.h, ggml-quants.c of llama.cpp).
#include <bit>
#include <cstring>

#include "kernels_half.h"
#include "kernels_layout.h"

namespace flyweight {
namespace {

uint16_t read16(const uint8_t* p) {
  uint16_t v;
  std::memcpy(&v, p, 2);
  return v;
}

uint32_t read32(const uint8_t* p) {
  uint32_t v;
  std::memcpy(&v, p, 4);
  return v;
}

void write32(uint8_t* p, uint32_t v) { std::memcpy(p, &v, 4); }

// What a row has for 32 columns: its codes (of a table: before the look-up), four in a word, and
// scales.
struct Block {
  uint32_t group[kGroups];
  uint16_t d = 0, m = 0;             // fp16, of the whole ggml block
  uint8_t scale[2] = {0, 0}, min = 0;  // K and K16 formats

  int code(int i) const { return group[i / 4] >> (8 * (i % 4)) & 255; }
};

constexpr uint32_t kEach = 0x01010101;  // the lowest bit of each code of a word

void read_nibbles(const uint8_t* q, uint32_t* group) {
  for (int g = 0; g < 4; ++g) {
    const uint32_t word = read32(q + 4 * g);
    group[g] = word & 15 * kEach;
    group[g + 4] = word >> 4 & 15 * kEach;
  }
}

void add_fifth_bits(uint32_t bits, uint32_t* group) {
  for (int g = 0; g < kGroups; ++g) {
    // Bit i to byte i: shifted by 0, 7, 14 and 21, none of which meet in the bits that are kept.
    const uint32_t four = bits >> (4 * g) & 15;
    group[g] |= (four * 0x00204081 & kEach) << 4;
  }
}

// Scale and minimum number j of 8, 6 bits each in 12 bytes (Q4_K, Q5_K).
void read_scale_min(const uint8_t* s, int j, uint8_t* scale, uint8_t* min) {
  if (j < 4) {
    *scale = s[j] & 63;
    *min = s[j + 4] & 63;
  } else {
    *scale = static_cast<uint8_t>((s[j + 4] & 15) | (s[j - 4] >> 6) << 4);
    *min = static_cast<uint8_t>((s[j + 4] >> 4) | (s[j] >> 6) << 4);
  }
}

// Columns [32 part, 32 part + 32) of a ggml block. Inlined, the format is a constant where it is
// one to the caller.
[[gnu::always_inline]] inline Block read_block(Format format, const uint8_t* p, int part) {
  Block b;
  switch (format) {
    case Format::Q4_0:
    case Format::IQ4_NL:
      b.d = read16(p);
      read_nibbles(p + 2, b.group);
      break;
    case Format::Q4_1:
      b.d = read16(p);
      b.m = read16(p + 2);
      read_nibbles(p + 4, b.group);
      break;
    case Format::Q5_0:
      b.d = read16(p);
      read_nibbles(p + 6, b.group);
      add_fifth_bits(read32(p + 2), b.group);
      break;
    case Format::Q5_1:
      b.d = read16(p);
      b.m = read16(p + 2);
      read_nibbles(p + 8, b.group);
      add_fifth_bits(read32(p + 4), b.group);
      break;
    case Format::Q8_0:
      b.d = read16(p);
      for (int g = 0; g < kGroups; ++g) b.group[g] = read32(p + 2 + 4 * g) ^ 0x80 * kEach;
      break;
    case Format::Q4_K:
    case Format::Q5_K: {
      const bool five = format == Format::Q5_K;
      const uint8_t* q = p + (five ? 48 : 16) + part / 2 * 32;
      b.d = read16(p);
      b.m = read16(p + 2);
      read_scale_min(p + 4, part, &b.scale[0], &b.min);
      for (int g = 0; g < kGroups; ++g) {
        b.group[g] = read32(q + 4 * g) >> (part % 2 * 4) & 15 * kEach;
        if (five) b.group[g] |= (read32(p + 16 + 4 * g) >> part & kEach) << 4;
      }
      break;
    }
    case Format::Q6_K: {
      const int half = part / 4, quarter = part % 4;
      const uint8_t* low = p + 64 * half + 32 * (quarter % 2);
      const uint8_t* high = p + 128 + 32 * half;
      b.d = read16(p + 208);
      std::memcpy(b.scale, p + 192 + 2 * part, 2);
      for (int g = 0; g < kGroups; ++g) {
        b.group[g] = read32(low + 4 * g) >> (quarter / 2 * 4) & 15 * kEach;
        b.group[g] |= (read32(high + 4 * g) >> (2 * quarter) & 3 * kEach) << 4;
      }
      break;
    }
    default: std::memset(b.group, 0, sizeof b.group);
  }
  return b;
}

// Columns [32 block, 32 block + 32) of a row of a panel.
Block read_panel(const Layout& l, int64_t cols, const uint8_t* panel, int64_t block, int row) {
  Block b;
  const uint8_t* codes = panel + block * l.code_bytes();
  const uint8_t* at = codes + 4 * row;
  for (int g = 0; g < kGroups; ++g) {
    if (l.bits == 8) {
      b.group[g] = read32(at + 64 * g);
      continue;
    }
    b.group[g] = read32(at + 64 * (g % 4)) >> (g / 4 * 4) & 15 * kEach;
    if (l.bits == 5) b.group[g] |= (read32(at + 256) >> g & kEach) << 4;
    if (l.bits == 6) {
      b.group[g] |= (read32(at + 256 + 64 * (g / 4)) >> (g % 4 * 2) & 3 * kEach) << 4;
    }
  }
  const int part = static_cast<int>(block % (l.unit / kBlock));
  const uint8_t* record = panel + records_at(l, cols) + block / (l.unit / kBlock) * l.record;
  b.d = read16(record + 2 * row);
  if (l.has_min()) b.m = read16(record + 32 + 2 * row);
  if (l.scales == Scales::K) {
    b.scale[0] = record[64 + 16 * part + row];
    b.min = record[192 + 16 * part + row];
  }
  if (l.scales == Scales::K16) {
    b.scale[0] = record[32 + 32 * part + row];
    b.scale[1] = record[48 + 32 * part + row];
  }
  return b;
}

// The numbers that a block stands for, rounded where ggml rounds.
void block_values(const Layout& l, const Block& b, float* out) {
  float scale[2] = {half_to_float(b.d), 0}, min = 0;
  if (l.has_min()) min = half_to_float(b.m);
  if (l.scales == Scales::K) {
    scale[0] *= b.scale[0];
    min = -(min * b.min);
  }
  if (l.scales == Scales::K16) {
    scale[1] = scale[0] * static_cast<int8_t>(b.scale[1]);
    scale[0] *= static_cast<int8_t>(b.scale[0]);
  }
  for (int i = 0; i < kBlock; ++i) {
    const int code = l.table ? kNonLinear[b.code(i)] : b.code(i);
    const float product = static_cast<float>(code - l.zero) * scale[l.parts() == 2 ? i / 16 : 0];
    out[i] = l.has_min() ? product + min : product;
  }
}

[[gnu::always_inline]] inline void write_codes(const Layout& l, const Block* rows,
                                               uint8_t* codes) {
  for (int r = 0; r < kPanel; ++r) {
    const uint32_t* group = rows[r].group;
    uint8_t* at = codes + 4 * r;
    if (l.bits == 8) {
      for (int g = 0; g < kGroups; ++g) write32(at + 64 * g, group[g]);
      continue;
    }
    for (int g = 0; g < 4; ++g) {
      write32(at + 64 * g, (group[g] & 15 * kEach) | (group[g + 4] & 15 * kEach) << 4);
    }
    uint32_t high[2] = {0, 0};
    for (int g = 0; g < kGroups; ++g) {
      if (l.bits == 5) high[0] |= (group[g] >> 4 & kEach) << g;
      if (l.bits == 6) high[g / 4] |= (group[g] >> 4 & 3 * kEach) << (2 * (g % 4));
    }
    for (int h = 0; h < l.bits - 4; ++h) write32(at + 256 + 64 * h, high[h]);
  }
}

[[gnu::always_inline]] inline void write_scales(const Layout& l, const Block* rows, int part,
                                                uint8_t* record) {
  for (int r = 0; r < kPanel; ++r) {
    const Block& b = rows[r];
    std::memcpy(record + 2 * r, &b.d, 2);
    if (l.has_min()) std::memcpy(record + 32 + 2 * r, &b.m, 2);
    if (l.scales == Scales::K) {
      record[64 + 16 * part + r] = b.scale[0];
      record[192 + 16 * part + r] = b.min;
    }
    if (l.scales == Scales::K16) {
      record[32 + 32 * part + r] = b.scale[0];
      record[48 + 32 * part + r] = b.scale[1];
    }
  }
}

// Where the number (column, row) of a panel of F32, F16 or BF16 is, counted in numbers.
int64_t float_at(Format format, int64_t column, int row) {
  if (format == Format::BF16) return column / 2 * (2 * kPanel) + 2 * row + column % 2;
  return column * kPanel + row;
}

float read_float(Format format, const uint8_t* p, int64_t i) {
  if (format == Format::F32) return std::bit_cast<float>(read32(p + 4 * i));
  const uint16_t v = read16(p + 2 * i);
  return format == Format::F16 ? half_to_float(v) : bf16_to_float(v);
}

// Column by column, the rows that fill the panel up being 0.
template <class Number>
void pack_columns(int64_t cols, const uint8_t* source, size_t row_bytes, int rows, uint8_t* to) {
  for (int64_t c = 0; c < cols; ++c, to += kPanel * sizeof(Number)) {
    Number column[kPanel] = {};
    for (int r = 0; r < rows; ++r) {
      std::memcpy(&column[r], source + r * row_bytes + c * sizeof(Number), sizeof(Number));
    }
    std::memcpy(to, column, sizeof column);
  }
}

void pack_floats(Format format, int64_t cols, const uint8_t* source, int rows, uint8_t* panel) {
  const size_t n = static_cast<size_t>(cols);
  if (format == Format::F32) return pack_columns<uint32_t>(cols, source, 4 * n, rows, panel);
  if (format == Format::F16) {
    pack_columns<uint16_t>(cols, source, 2 * n, rows, panel);
  } else {
    // A pair of columns is a word; a column that is left over has a 0 beside it.
    pack_columns<uint32_t>(cols / 2, source, 2 * n, rows, panel);
    uint8_t* last = panel + n / 2 * (4 * kPanel);
    if (n % 2) {
      std::memset(last, 0, 4 * kPanel);
      for (int r = 0; r < rows; ++r) std::memcpy(last + 4 * r, source + (r + 1) * 2 * n - 2, 2);
    }
  }
}

}  // namespace

int64_t block_size(Format format) {
  const Layout l = layout(format);
  return l.bytes ? l.unit : 0;
}

int64_t block_bytes(Format format) { return layout(format).bytes; }

size_t panel_bytes(Format format, int64_t cols) {
  const Layout l = layout(format);
  const size_t n = static_cast<size_t>(cols);
  if (format == Format::BF16) return round_up(n, 2) * kPanel * 2;
  if (!l.bits) return round_up(n * kPanel * l.bytes, 64);
  return round_up(records_at(l, cols) + n / l.unit * l.record, 64);
}

template <Format format>
void pack_blocks(int64_t cols, const uint8_t* from, int rows, uint8_t* to) {
  constexpr Layout l = layout(format);
  constexpr int kParts = l.unit / kBlock;
  const int64_t blocks = cols / kBlock;
  const size_t row_bytes = static_cast<size_t>(cols / l.unit) * l.bytes;
  // Rows that fill the panel up: scale 0.
  Block block[kPanel];
  for (Block& b : block) std::memset(b.group, 0, sizeof b.group);
  uint8_t* records = to + records_at(l, cols);
  // Sixteen rows at a time are more than the processor foresees: what a matrix has next, the rows
  // of the panel after this one, is fetched meanwhile.
  const uint8_t* next = from + rows * row_bytes;
  for (int64_t i = 0; i < blocks; ++i) {
    const int part = static_cast<int>(i % kParts);
    const uint8_t* at = from + i / kParts * l.bytes;
    const uint8_t* until = next + kPanel * l.bytes / kParts;
    for (; next < until; next += 64) __builtin_prefetch(next);
    for (int r = 0; r < rows; ++r) block[r] = read_block(format, at + r * row_bytes, part);
    write_codes(l, block, to + i * l.code_bytes());
    write_scales(l, block, part, records + i / kParts * l.record);
  }
  uint8_t* end = records + cols / l.unit * l.record;
  std::memset(end, 0, static_cast<size_t>(to + panel_bytes(format, cols) - end));
}

void pack(Format format, int64_t cols, const void* source, int rows, void* panel) {
  const auto* from = static_cast<const uint8_t*>(source);
  auto* to = static_cast<uint8_t*>(panel);
  switch (format) {
    case Format::F32:
    case Format::F16:
    case Format::BF16: return pack_floats(format, cols, from, rows, to);
    case Format::Q4_0: return pack_blocks<Format::Q4_0>(cols, from, rows, to);
    case Format::Q4_1: return pack_blocks<Format::Q4_1>(cols, from, rows, to);
    case Format::Q5_0: return pack_blocks<Format::Q5_0>(cols, from, rows, to);
    case Format::Q5_1: return pack_blocks<Format::Q5_1>(cols, from, rows, to);
    case Format::Q8_0: return pack_blocks<Format::Q8_0>(cols, from, rows, to);
    case Format::Q4_K: return pack_blocks<Format::Q4_K>(cols, from, rows, to);
    case Format::Q5_K: return pack_blocks<Format::Q5_K>(cols, from, rows, to);
    case Format::Q6_K: return pack_blocks<Format::Q6_K>(cols, from, rows, to);
    case Format::IQ4_NL: return pack_blocks<Format::IQ4_NL>(cols, from, rows, to);
  }
}

void unpack_row(Format format, int64_t cols, const void* panel, int row, float* out) {
  const Layout l = layout(format);
  const auto* from = static_cast<const uint8_t*>(panel);
  if (!l.bits) {
    for (int64_t c = 0; c < cols; ++c) out[c] = read_float(format, from, float_at(format, c, row));
    return;
  }
  for (int64_t i = 0; i < cols / kBlock; ++i) {
    block_values(l, read_panel(l, cols, from, i, row), out + i * kBlock);
  }
}

void dequantise(Format format, int64_t cols, const void* row, float* out) {
  const Layout l = layout(format);
  const auto* from = static_cast<const uint8_t*>(row);
  if (!l.bits) {
    for (int64_t c = 0; c < cols; ++c) out[c] = read_float(format, from, c);
    return;
  }
  const int parts = l.unit / kBlock;
  for (int64_t i = 0; i < cols / kBlock; ++i) {
    const uint8_t* block = from + i / parts * l.bytes;
    block_values(l, read_block(format, block, static_cast<int>(i % parts)), out + i * kBlock);
  }
}

}  // namespace flyweight
