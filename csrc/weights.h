// The weights as the kernels want them: matrices in packed panels, vectors as float32, tables as
// they lie in their file.
#pragma once

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

  int64_t panel_count() const { return (rows + kPanel - 1) / kPanel; }
  const std::byte* panel(int64_t i) const { return panels + static_cast<size_t>(i) * panel_bytes; }
};

class Weights {
 public:
  // Packs the matrices, on all threads; pages of mapped sources are given back as they are done
  // with, so that the two copies of a model are never in memory at once.
  Weights(const Program&, const Kernels&, Pool&);

  const Matrix& matrix(int32_t i) const { return matrices_[static_cast<size_t>(i)]; }
  // null for -1
  const float* vector(int32_t i) const {
    return i < 0 ? nullptr : vectors_[static_cast<size_t>(i)].data();
  }
  // Row r of a matrix or a table as float32.
  void row(int32_t i, int64_t r, float* out) const;
  // Of the packed matrices and vectors, and of the tables where they lie.
  size_t bytes() const { return bytes_; }

 private:
  void pack(const Program&, Pool&);

  const Program& program_;
  const Kernels& kernels_;
  Region panels_;
  std::vector<Matrix> matrices_;
  std::vector<std::vector<float>> vectors_;
  size_t bytes_ = 0;
};

}  // namespace flyweight
