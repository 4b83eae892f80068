// How a panel of kPanel rows lies in memory: the same for every instruction set.
//
// Rows are interleaved: what one instruction takes is a "group", 4 columns of 16 rows (64 bytes,
// row r at 4r). Quantised formats have a region of codes (per block of 32 columns, unsigned, 8
// groups) and behind it a region of records with the scales (fp16, row by row):
//   4 bits  4 vectors of 64 bytes; low halves are groups 0-3 (columns 0-15), high halves 4-7
//   5 bits  ... and one vector whose bit g is the fifth bit of group g
//   6 bits  ... and two vectors; bits 2f, 2f + 1 of vector h are bits 4, 5 of group 4h + f
//   8 bits  8 vectors, a group each
// F32 and F16 lie column by column, BF16 in pairs of columns (row r at 2r, 2r + 1).
#pragma once

#include "kernels.h"

namespace flyweight {

constexpr int kBlock = 32;  // columns that share a scale of the activations
constexpr int kGroups = kBlock / 4;

enum class Scales {
  D,    // d: fp16[16]
  DM,   // d, m: fp16[16] each; value = d code + m
  K,    // d, dmin: fp16[16] each, scale, min: u8[8][16]; value = (d scale) code - dmin min
  K16,  // d: fp16[16], scale: i8[16][16], a scale for each 16 columns
};

struct Layout {
  int bits;       // of a code; 0: not quantised
  int zero;       // the code that means 0
  bool wide;      // the numbers multiplied take more than 6 bits
  bool table;     // codes are looked up in kNonLinear
  Scales scales;
  int unit;       // columns of a record
  int record;     // bytes of a record
  int bytes;      // of a block in ggml's layout

  constexpr bool has_min() const { return scales == Scales::DM || scales == Scales::K; }
  constexpr int parts() const { return scales == Scales::K16 ? 2 : 1; }  // scales in a block
  constexpr int code_bytes() const { return bits * kBlock * kPanel / 8; }
};

constexpr Layout layout(Format format) {
  switch (format) {
    case Format::Q4_0: return {4, 8, false, false, Scales::D, 32, 32, 18};
    case Format::Q4_1: return {4, 0, false, false, Scales::DM, 32, 64, 20};
    case Format::Q5_0: return {5, 16, false, false, Scales::D, 32, 32, 22};
    case Format::Q5_1: return {5, 0, false, false, Scales::DM, 32, 64, 24};
    case Format::Q8_0: return {8, 128, true, false, Scales::D, 32, 32, 34};
    case Format::IQ4_NL: return {4, 128, true, true, Scales::D, 32, 32, 18};
    case Format::Q4_K: return {4, 0, false, false, Scales::K, 256, 320, 144};
    case Format::Q5_K: return {5, 0, false, false, Scales::K, 256, 320, 176};
    case Format::Q6_K: return {6, 32, false, false, Scales::K16, 256, 288, 210};
    case Format::F32: return {0, 0, false, false, Scales::D, 1, 0, 4};
    case Format::F16: return {0, 0, false, false, Scales::D, 1, 0, 2};
    case Format::BF16: return {0, 0, false, false, Scales::D, 1, 0, 2};
  }
  return {0, 0, false, false, Scales::D, 0, 0, 0};
}

// IQ4_NL's 16 values, plus 128.
constexpr uint8_t kNonLinear[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                    129, 141, 153, 166, 181, 197, 217, 241};

constexpr size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

// Where the records of a panel begin.
constexpr size_t records_at(const Layout& l, int64_t cols) {
  return static_cast<size_t>(cols / kBlock) * l.code_bytes();
}

// kernels_pack.cpp; the same in every table.
size_t panel_bytes(Format, int64_t cols);
void pack(Format, int64_t cols, const void* source, int rows, void* panel);
void unpack_row(Format, int64_t cols, const void* panel, int row, float* out);
void dequantise(Format, int64_t cols, const void* row, float* out);

// The tables, each in a file that is compiled for its instruction set. Null: not in this build.
const Kernels* kernels_portable();
const Kernels* kernels_avx2();
const Kernels* kernels_avx2vnni();
const Kernels* kernels_avx512vnni();
const Kernels* kernels_avx512();
const Kernels* kernels_amx();

}  // namespace flyweight
