// The operations that read matrices: every thread multiplies its panels by all rows.
#include <algorithm>

#include "executor.h"

namespace flyweight {
namespace {

size_t matrices_of(const Op& op) {
  return op.kind == Kind::Gated ? 2 : static_cast<size_t>(op.ints[2]);
}

}  // namespace

// Matrices of one format share their prepared inputs; a format's rows lie together.
Executor::InputPlace Executor::input_place(const Op& op, size_t matrix) const {
  size_t before = 0;
  const Format format = program_.weight(op.weights[matrix]).format;
  for (size_t j = 0;; ++j) {
    const Weight& w = program_.weight(op.weights[j]);
    const size_t stride = aligned(kernels_.input_bytes(w.format, w.cols));
    if (w.format == format) return {before, stride, j == matrix};
    bool seen = false;
    for (size_t k = 0; k < j; ++k) seen |= program_.weight(op.weights[k]).format == w.format;
    if (!seen) before += stride;
  }
}

size_t Executor::input_bytes(const Op& op) const {
  size_t total = 0;
  for (size_t j = 0; j < matrices_of(op); ++j) {
    const InputPlace place = input_place(op, j);
    if (place.first) total += place.stride;
  }
  return total;
}

void Executor::prepare_rows(const Step& step, std::byte* out, Pool::Range mine, int thread) const {
  const Op& op = *step.op;
  const int64_t all = rows(op.rows), cols = width(op.source());
  float* normed = floats(scratch_[static_cast<size_t>(thread)].row);
  for (int64_t r = mine.first; r < mine.last; ++r) {
    const float* x = row(op.source(), r);
    if (step.norm) {
      const NormArgs args(*step.norm);
      norm_groups(*step.norm, {0, args.count / args.together}, row(step.norm->source(), r), normed);
      x = normed;
    }
    for (size_t j = 0; j < matrices_of(op); ++j) {
      const InputPlace place = input_place(op, j);
      if (!place.first) continue;
      std::byte* to = out + place.before * static_cast<size_t>(all) +
                      place.stride * static_cast<size_t>(r);
      kernels_.prepare(program_.weight(op.weights[j]).format, cols, x, to);
    }
  }
}

void Executor::prepare(const Step& step, int thread) {
  prepare_rows(step, shared_inputs_.data(), my_rows(*step.op, thread), thread);
}

const std::byte* Executor::inputs_of(const Step& step, int thread) {
  const int64_t all = rows(step.op->rows);
  if (all > kFewRows) return shared_inputs_.data();
  std::byte* own = scratch_[static_cast<size_t>(thread)].inputs.data();
  prepare_rows(step, own, {0, all}, thread);
  return own;
}

void Executor::multiply(const Op& op, size_t matrix, const std::byte* inputs, int64_t panel,
                        int64_t count, float* out, int64_t stride) const {
  const Matrix& m = weights_.matrix(op.weights[matrix]);
  const InputPlace place = input_place(op, matrix);
  const int64_t all = rows(op.rows);
  const auto run = m.stored ? kernels_.product_stored : kernels_.product;
  run(m.format, m.cols, m.panel(panel), count, inputs + place.before * static_cast<size_t>(all),
      place.stride, all, out, stride);
}

void Executor::product(const Step& step, int thread) {
  const Op& op = *step.op;
  const ProductArgs args(op);
  const std::byte* inputs = inputs_of(step, thread);
  const int64_t all = rows(op.rows), target_width = width(op.target());
  const auto n = static_cast<size_t>(args.matrices);
  size_t bytes = 0;
  for (size_t j = 0; j < n; ++j) {
    const Matrix& m = weights_.matrix(op.weights[j]);
    bytes += static_cast<size_t>(m.panel_count()) * m.panel_bytes;
  }
  // A thread's share of the bytes, rounded to panels; matrices one after another.
  const auto [from, to] = pool_.share(static_cast<int64_t>(bytes), thread);
  int64_t begin = 0;
  float* tile = floats(scratch_[static_cast<size_t>(thread)].tile);
  for (size_t j = 0; j < n; ++j) {
    const Matrix& m = weights_.matrix(op.weights[j]);
    const auto each = static_cast<int64_t>(m.panel_bytes);
    const int64_t panels = m.panel_count();
    const auto panel_at = [&](int64_t byte) {
      return std::clamp<int64_t>((byte - begin + each - 1) / each, 0, panels);
    };
    const int64_t first = panel_at(std::max(from, begin)), last = panel_at(std::max(to, begin));
    begin += panels * each;
    if (first >= last) continue;
    float* y = row(op.target(), 0) + args.columns[j];
    const float* bias = weights_.vector(op.weights[n + j]);
    const float factor = op.floats[0];
    if (!args.accumulate && !bias && args.activation == Activation::None && factor == 1.0f) {
      const int64_t count = std::min(m.rows, last * kPanel) - first * kPanel;
      multiply(op, j, inputs, first, count, y + first * kPanel, target_width);
      continue;
    }
    const int64_t step_panels = std::max<int64_t>(1, kTileNumbers / (kPanel * all));
    for (int64_t panel = first; panel < last; panel += step_panels) {
      const int64_t r = panel * kPanel;
      const int64_t count = std::min(m.rows, std::min(last, panel + step_panels) * kPanel) - r;
      multiply(op, j, inputs, panel, count, tile, count);
      for (int64_t t = 0; t < all; ++t) {
        float* x = tile + t * count;
        float* out = y + t * target_width + r;
        if (bias) kernels_.add(count, 1.0f, bias + r, x);
        if (args.activation != Activation::None) kernels_.activate(args.activation, count, x, x);
        if (args.accumulate) {
          kernels_.add(count, factor, x, out);
        } else {
          for (int64_t c = 0; c < count; ++c) out[c] = factor * x[c];
        }
      }
    }
  }
}

void Executor::gated(const Step& step, int thread) {
  const Op& op = *step.op;
  const auto activation = static_cast<Activation>(op.ints[0]);
  const std::byte* inputs = inputs_of(step, thread);
  const int64_t all = rows(op.rows), target_width = width(op.target());
  const Matrix& m = weights_.matrix(op.weights[0]);
  const float* gate_bias = weights_.vector(op.weights[2]);
  const float* up_bias = weights_.vector(op.weights[3]);
  float* gate = floats(scratch_[static_cast<size_t>(thread)].tile);
  float* up = gate + kTileNumbers;
  const auto [first, last] = pool_.share(m.panel_count(), thread);
  const int64_t step_panels = std::max<int64_t>(1, kTileNumbers / (kPanel * all));
  for (int64_t panel = first; panel < last; panel += step_panels) {
    const int64_t r = panel * kPanel;
    const int64_t count = std::min(m.rows, std::min(last, panel + step_panels) * kPanel) - r;
    multiply(op, 0, inputs, panel, count, gate, count);
    multiply(op, 1, inputs, panel, count, up, count);
    for (int64_t t = 0; t < all; ++t) {
      float* g = gate + t * count;
      float* u = up + t * count;
      if (gate_bias) kernels_.add(count, 1.0f, gate_bias + r, g);
      if (up_bias) kernels_.add(count, 1.0f, up_bias + r, u);
      float* y = row(op.target(), 0) + t * target_width + r;
      kernels_.activate(activation, count, g, y);
      kernels_.multiply(count, u, y);
    }
  }
}

}  // namespace flyweight
