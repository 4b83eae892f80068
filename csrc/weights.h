// The weights as the kernels want them: matrices in packed panels, vectors as float32, tables as
// they lie in their file.
#pragma once

#include <span>
#include <vector>

#include "memory.h"
#include "program.h"
#include "threads.h"

namespace flyweight {

struct Matrix {
  Format format;
  int64_t rows, cols;
  const std::byte* panels = nullptr;
  size_t panel_bytes = 0;
  bool stored = false;  // the panels are the rows as they lie in their file

  int64_t panel_count() const { return (rows + kPanel - 1) / kPanel; }
  const std::byte* panel(int64_t i) const { return panels + static_cast<size_t>(i) * panel_bytes; }
};

class Weights {
 public:
  // Packs the matrices, on all threads; pages of mapped sources are given back as they are done
  // with, so that the two copies of a model are never in memory at once. Where much lies in a mapped
  // file that can be multiplied as it is, its packing is left for later: the first token need not
  // wait for it.
  Weights(const Program&, const Kernels&, Pool&);

  const Matrix& matrix(int32_t i) const { return matrices_[static_cast<size_t>(i)]; }
  // null for -1
  const float* vector(int32_t i) const {
    return i < 0 ? nullptr : vectors_[static_cast<size_t>(i)].data();
  }
  // Row r of a matrix or a table as float32.
  void row(int32_t i, int64_t r, float* out) const;
  // Of the matrices and vectors, and of the tables where they lie.
  size_t bytes() const { return bytes_; }
  // Whether weight i is read from its data after the constructor.
  bool stays(size_t i) const {
    return program_.weights[i].kind == WeightKind::Table || matrices_[i].stored;
  }

  // Packing what was left, a sixteenth of it at a time: begin_turn says whether something is left;
  // then, after a barrier, every thread calls pack_turn; when all have returned, end_turn.
  bool begin_turn();
  void pack_turn();
  void end_turn();

 private:
  std::vector<bool> left_for_later() const;
  void pack(std::span<const size_t> matrices, uint8_t* gathered);
  void pack_panels(size_t i, Pool::Range, uint8_t* gathered);

  const Program& program_;
  const Kernels& kernels_;
  Pool& pool_;
  Region panels_;
  // As they are now, and as they are once they are packed.
  std::vector<Matrix> matrices_, packed_;
  std::vector<std::vector<float>> vectors_;
  size_t bytes_ = 0;
  // What is left, in the order of its packing, and the part of it that this turn packs.
  std::vector<size_t> left_;
  size_t first_ = 0, last_ = 0, bytes_of_turn_ = 0;
};

}  // namespace flyweight
