// The flat program: flyweight/engine/program.py in C++, the same operations in the same order.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels.h"

namespace flyweight {

enum class Rows : int32_t { Tokens = 0, Patches = 1, Wanted = 2, Symbols = 3, Spelled = 4 };
constexpr int kRowSets = 5;
// Rows that exist for the wanted tokens alone.
inline bool after_wanted(Rows rows) { return rows == Rows::Wanted || rows == Rows::Spelled; }

enum class Index : int32_t { Token = 0, Position = 1, Offset = 2, Symbol = 3 };

enum class Kind : int32_t {
  Embed, NGrams, Matches, Norm, Product, Gated, Activate, Add, Scale, Rotate, Store, Attention,
  Select, Pool, Spread, Within, Mean, Cut, Logs, Spell,
};
constexpr int kKinds = 20;

enum class WeightKind { Matrix, Table, Vector };

struct Buffer {
  std::string name;
  Rows rows;
  int64_t width, offset;
  int64_t end() const { return offset + width; }
};

struct Weight {
  std::string name;
  WeightKind kind;
  Format format;
  int64_t rows, cols;
  const uint8_t* data;
  size_t bytes;
  // The data is a read-only mapping of a file, whose pages may be given back.
  bool mapped;
  // Of a matrix: row r is row order[r] of the data. Empty: row r.
  std::vector<int64_t> order;
};

struct Op {
  Kind kind;
  Rows rows;
  std::vector<int32_t> sources, targets, weights;
  std::vector<int64_t> ints;
  std::vector<float> floats;

  int32_t source() const { return sources[0]; }
  int32_t target() const { return targets[0]; }
};

struct Slot {
  Rows rows;
  int64_t kv_heads, head_dim;
};

// Each token's symbols, `slots` of them: its own, then `pad` to the end. slots 0: nothing is spelled.
struct Spelling {
  int64_t slots = 0;
  int32_t pad = 0;
  std::vector<int32_t> symbols;

  const int32_t* of(int64_t token) const { return symbols.data() + token * slots; }
};

struct Program {
  int64_t vocab_size = 0, context = 0, frequencies = 0;
  int32_t logits = -1;
  std::vector<Buffer> buffers;
  std::vector<Weight> weights;
  std::vector<Op> ops;
  std::vector<Slot> slots;
  Spelling spelling;

  const Buffer& buffer(int32_t i) const { return buffers[static_cast<size_t>(i)]; }
  const Weight& weight(int32_t i) const { return weights[static_cast<size_t>(i)]; }
  const Slot& slot(int64_t i) const { return slots[static_cast<size_t>(i)]; }
};

// What the integers of an operation mean, where there are many.
struct NormArgs {
  bool layer;
  int64_t together, column, count;
  explicit NormArgs(const Op& op)
      : layer(op.ints[0] == 1), together(op.ints[1]), column(op.ints[2]), count(op.ints[3]) {}
};

struct ProductArgs {
  bool accumulate;
  Activation activation;
  int64_t matrices;
  const int64_t* columns;
  explicit ProductArgs(const Op& op)
      : accumulate(op.ints[0] != 0), activation(static_cast<Activation>(op.ints[1])),
        matrices(op.ints[2]), columns(op.ints.data() + 3) {}
};

struct RotateArgs {
  int64_t column, heads, head_dim, dims;
  bool interleaved;
  explicit RotateArgs(const Op& op)
      : column(op.ints[0]), heads(op.ints[1]), head_dim(op.ints[2]), dims(op.ints[3]),
        interleaved(op.ints[4] == 1) {}
};

struct StoreArgs {
  int64_t slot, keys, values, kv_heads, head_dim;
  explicit StoreArgs(const Op& op)
      : slot(op.ints[0]), keys(op.ints[1]), values(op.ints[2]), kv_heads(op.ints[3]),
        head_dim(op.ints[4]) {}
};

struct AttentionArgs {
  int64_t slot, column, heads, kv_heads, head_dim, window;
  explicit AttentionArgs(const Op& op)
      : slot(op.ints[0]), column(op.ints[1]), heads(op.ints[2]), kv_heads(op.ints[3]),
        head_dim(op.ints[4]), window(op.ints[5]) {}
};

struct WithinArgs {
  int64_t heads, head_dim;
  bool masked;
  explicit WithinArgs(const Op& op)
      : heads(op.ints[0]), head_dim(op.ints[1]), masked(op.ints[2] != 0) {}
};

// Throws Error unless every index, width, shape and length fits: what passes can be run on any
// tokens below vocab_size without reading or writing anything that is not the program's.
void validate(const Program&);

const char* name_of(Kind);

}  // namespace flyweight
