#include "weights.h"

#include <algorithm>

namespace flyweight {
namespace {

// Source bytes that are packed before their pages are given back.
constexpr int64_t kStep = 4 << 20;
// Bytes that could be left for later, below which packing is soon done.
constexpr size_t kFewestLeft = size_t{64} << 20;
constexpr size_t kTurns = 16;
// Panels that a thread packs at a time at last.
constexpr int64_t kFewestPanels = 16;

int64_t row_bytes(Format format, int64_t cols) {
  return cols / block_size(format) * block_bytes(format);
}

}  // namespace

Weights::Weights(const Program& program, const Kernels& kernels, Pool& pool)
    : program_(program), kernels_(kernels), pool_(pool) {
  const size_t count = program.weights.size();
  packed_.resize(count);
  vectors_.resize(count);
  size_t total = 0;
  for (size_t i = 0; i < count; ++i) {
    const Weight& w = program.weights[i];
    if (w.kind == WeightKind::Vector) {
      vectors_[i].resize(static_cast<size_t>(w.cols));
      kernels.dequantise(w.format, w.cols, w.data, vectors_[i].data());
      bytes_ += vectors_[i].size() * sizeof(float);
    } else if (w.kind == WeightKind::Matrix) {
      Matrix& m = packed_[i];
      m = {w.format, w.rows, w.cols, nullptr, kernels.panel_bytes(w.format, w.cols)};
      total += aligned(static_cast<size_t>(m.panel_count()) * m.panel_bytes);
    } else {
      bytes_ += w.bytes;
    }
  }
  bytes_ += total;
  release_freed();
  panels_ = Region(total, "the weights", false, true);
  // What is packed now lies together, so that no page is begun before its time.
  const std::vector<bool> later = left_for_later();
  size_t offset = 0;
  for (const bool left : {false, true}) {
    for (size_t i = 0; i < count; ++i) {
      Matrix& m = packed_[i];
      if (m.panel_bytes == 0 || later[i] != left) continue;
      m.panels = panels_.data() + offset;
      offset += aligned(static_cast<size_t>(m.panel_count()) * m.panel_bytes);
    }
  }

  matrices_ = packed_;
  size_t bytes_left = 0;
  for (size_t i = 0; i < count; ++i) {
    const Weight& w = program.weights[i];
    if (!later[i]) continue;
    const auto bytes = static_cast<size_t>(kPanel * row_bytes(w.format, w.cols));
    const auto* data = reinterpret_cast<const std::byte*>(w.data);
    matrices_[i] = {w.format, w.rows, w.cols, data, bytes, true};
    left_.push_back(i);
    bytes_left += w.bytes;
  }
  bytes_of_turn_ = bytes_left / kTurns;
  // For rows of a panel that lie apart in the data; made here, for threads cannot say that memory is
  // short.
  size_t most = 0;
  for (const Weight& w : program.weights) {
    if (!w.order.empty()) most = std::max(most, static_cast<size_t>(kPanel * row_bytes(w.format, w.cols)));
  }
  std::vector<std::vector<uint8_t>> gathered(static_cast<size_t>(pool.size()),
                                             std::vector<uint8_t>(most));
  std::vector<size_t> now;
  for (size_t i = 0; i < count; ++i) {
    if (packed_[i].panels && !later[i]) now.push_back(i);
  }
  auto work = [&](int thread) {
    pack(now, gathered[static_cast<size_t>(thread)].data());
    pool_.barrier();
    const auto left = static_cast<int64_t>(left_.size());
    for (;;) {
      const auto [first, last] = pool_.next(left, 1);
      if (first == last) return;
      for (int64_t j = first; j < last; ++j) {
        const Weight& w = program_.weights[left_[static_cast<size_t>(j)]];
        map_ahead(w.data, w.bytes);
      }
    }
  };
  pool.run(work);
}

std::vector<bool> Weights::left_for_later() const {
  std::vector<int> uses(packed_.size());
  for (const Op& op : program_.ops) {
    if (op.kind != Kind::Product && op.kind != Kind::Gated) continue;
    for (int32_t w : op.weights) {
      if (w >= 0) ++uses[static_cast<size_t>(w)];
    }
  }
  std::vector<bool> later(packed_.size());
  size_t bytes = 0;
  for (size_t i = 0; i < packed_.size(); ++i) {
    const Weight& w = program_.weights[i];
    // What is used again within a token comes from the cache, where packed panels are faster.
    later[i] = w.kind == WeightKind::Matrix && w.mapped && w.order.empty() && uses[i] == 1 &&
               multiplied_as_stored(w.format);
    if (later[i]) bytes += w.bytes;
  }
  if (bytes < kFewestLeft) later.assign(packed_.size(), false);
  return later;
}

// What threads ask for of the panels of some matrices. gathered: room for a panel's rows, where they
// have an order.
void Weights::pack(std::span<const size_t> matrices, uint8_t* gathered) {
  int64_t all = 0;
  for (size_t i : matrices) all += packed_[i].panel_count();
  for (;;) {
    auto [from, to] = pool_.next(all, kFewestPanels);
    if (from == to) return;
    for (size_t i : matrices) {
      const int64_t panels = packed_[i].panel_count();
      if (from < panels && from < to) pack_panels(i, {from, std::min(to, panels)}, gathered);
      from = std::max<int64_t>(0, from - panels);
      to -= panels;
    }
  }
}

void Weights::pack_panels(size_t i, Pool::Range some, uint8_t* gathered) {
  const Matrix& m = packed_[i];
  const Weight& w = program_.weights[i];
  const int64_t bytes = row_bytes(m.format, m.cols);
  const int64_t step = std::max<int64_t>(1, kStep / (bytes * kPanel));
  for (int64_t begin = some.first; begin < some.last; begin += step) {
    const int64_t end = std::min(some.last, begin + step);
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t row = panel * kPanel;
      const auto rows = static_cast<int>(std::min<int64_t>(kPanel, m.rows - row));
      const uint8_t* from = w.data + row * bytes;
      for (int r = 0; r < rows && !w.order.empty(); ++r) {
        const int64_t place = w.order[static_cast<size_t>(row + r)];
        std::copy_n(w.data + place * bytes, bytes, gathered + r * bytes);
        from = gathered;
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

bool Weights::begin_turn() {
  first_ = last_;
  for (size_t bytes = 0; last_ < left_.size() && bytes < bytes_of_turn_; ++last_) {
    bytes += program_.weights[left_[last_]].bytes;
  }
  return last_ > first_;
}

void Weights::pack_turn() {
  pack(std::span(left_).subspan(first_, last_ - first_), nullptr);
}

void Weights::end_turn() {
  for (size_t i = first_; i < last_; ++i) matrices_[left_[i]] = packed_[left_[i]];
}

void Weights::row(int32_t i, int64_t r, float* out) const {
  const Weight& w = program_.weight(i);
  const Matrix& m = matrix(i);
  if (m.panels && !m.stored) {
    kernels_.unpack_row(m.format, m.cols, m.panel(r / kPanel), static_cast<int>(r % kPanel), out);
  } else {
    kernels_.dequantise(w.format, w.cols, w.data + r * row_bytes(w.format, w.cols), out);
  }
}

}  // namespace flyweight
