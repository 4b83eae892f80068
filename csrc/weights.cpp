#include "weights.h"

#include <algorithm>

namespace flyweight {
namespace {

// Source bytes that are packed before their pages are given back.
constexpr int64_t kStep = 4 << 20;

int64_t row_bytes(Format format, int64_t cols) {
  return cols / block_size(format) * block_bytes(format);
}

}  // namespace

Weights::Weights(const Program& program, const Kernels& kernels, Pool& pool)
    : program_(program), kernels_(kernels) {
  const size_t count = program.weights.size();
  matrices_.resize(count);
  vectors_.resize(count);
  size_t total = 0;
  for (size_t i = 0; i < count; ++i) {
    const Weight& w = program.weights[i];
    if (w.kind == WeightKind::Vector) {
      vectors_[i].resize(static_cast<size_t>(w.cols));
      kernels.dequantise(w.format, w.cols, w.data, vectors_[i].data());
      bytes_ += vectors_[i].size() * sizeof(float);
    } else if (w.kind == WeightKind::Matrix) {
      Matrix& m = matrices_[i];
      m = {w.format, w.rows, w.cols, nullptr, kernels.panel_bytes(w.format, w.cols)};
      total = aligned(total) + static_cast<size_t>(m.panel_count()) * m.panel_bytes;
    } else {
      bytes_ += w.bytes;
    }
  }
  release_freed();
  panels_ = Region(total, "the weights", false, true);
  bytes_ += total;
  size_t offset = 0;
  for (Matrix& m : matrices_) {
    if (m.panel_bytes == 0) continue;
    offset = aligned(offset);
    m.panels = panels_.data() + offset;
    offset += static_cast<size_t>(m.panel_count()) * m.panel_bytes;
  }
  pack(program, pool);
}

void Weights::pack(const Program& program, Pool& pool) {
  // Rows of a panel that lie apart in the data, for each thread.
  size_t most = 0;
  for (const Weight& w : program.weights) {
    if (!w.order.empty()) most = std::max(most, static_cast<size_t>(kPanel * row_bytes(w.format, w.cols)));
  }
  std::vector<std::vector<uint8_t>> gathered_by(static_cast<size_t>(pool.size()), std::vector<uint8_t>(most));
  auto work = [&](int thread) {
    std::vector<uint8_t>& gathered = gathered_by[static_cast<size_t>(thread)];
    for (size_t i = 0; i < matrices_.size(); ++i) {
      const Matrix& m = matrices_[i];
      const Weight& w = program.weights[i];
      if (!m.panels) continue;
      const int64_t bytes = row_bytes(m.format, m.cols);
      const auto [first, last] = pool.share(m.panel_count(), thread);
      const int64_t step = std::max<int64_t>(1, kStep / (bytes * kPanel));
      for (int64_t begin = first; begin < last; begin += step) {
        const int64_t end = std::min(last, begin + step);
        for (int64_t panel = begin; panel < end; ++panel) {
          const int64_t row = panel * kPanel;
          const auto rows = static_cast<int>(std::min<int64_t>(kPanel, m.rows - row));
          const uint8_t* from = w.data + row * bytes;
          for (int i = 0; i < rows && !w.order.empty(); ++i) {
            const int64_t place = w.order[static_cast<size_t>(row + i)];
            std::copy_n(w.data + place * bytes, bytes, gathered.data() + i * bytes);
            from = gathered.data();
          }
          kernels_.pack(m.format, m.cols, from, rows, const_cast<std::byte*>(m.panel(panel)));
        }
        // Rows that a later step takes out of this stretch come from the file again.
        if (w.mapped) {
          const int64_t row = begin * kPanel, after = std::min(m.rows, end * kPanel);
          release_mapped(w.data + row * bytes, static_cast<size_t>((after - row) * bytes));
        }
      }
    }
  };
  pool.run(work);
}

void Weights::row(int32_t i, int64_t r, float* out) const {
  const Weight& w = program_.weight(i);
  const Matrix& m = matrix(i);
  if (m.panels) {
    kernels_.unpack_row(m.format, m.cols, m.panel(r / kPanel), static_cast<int>(r % kPanel), out);
  } else {
    kernels_.dequantise(w.format, w.cols, w.data + r * row_bytes(w.format, w.cols), out);
  }
}

}  // namespace flyweight
