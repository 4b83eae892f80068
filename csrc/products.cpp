// The operations that read matrices: every thread multiplies its panels by all rows.
#include <algorithm>

#include "executor.h"

namespace flyweight {
namespace {

size_t matrices_of(const Op& op) {
  return op.kind == Kind::Gated ? 2 : static_cast<size_t>(op.ints[2]);
}

// What a thread takes of a product of many rows at last: kernels take two or three panels at a time.
constexpr int64_t kFewestPanels = 3;

// Panels whose outputs, for all rows, a thread's tile holds: in sixes, where there are so
// many.
int64_t panels_at_once(int64_t rows) {
  const int64_t most = kTileNumbers / (kPanel * rows);
  return most < 6 ? std::max<int64_t>(1, most) : most / 6 * 6;
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

// Panels [first, last) of a matrix of a PRODUCT, into the target.
void Executor::product_panels(const Op& op, size_t matrix, const std::byte* inputs,
                              Pool::Range some, float* tile) const {
  const ProductArgs args(op);
  const Matrix& m = weights_.matrix(op.weights[matrix]);
  const int64_t all = rows(op.rows), target_width = width(op.target());
  float* y = row(op.target(), 0) + args.columns[matrix];
  const float* bias = weights_.vector(op.weights[static_cast<size_t>(args.matrices) + matrix]);
  const float factor = op.floats[0];
  if (!args.accumulate && !bias && args.activation == Activation::None && factor == 1.0f) {
    const int64_t count = std::min(m.rows, some.last * kPanel) - some.first * kPanel;
    multiply(op, matrix, inputs, some.first, count, y + some.first * kPanel, target_width);
    return;
  }
  const int64_t step_panels = panels_at_once(all);
  for (int64_t panel = some.first; panel < some.last; panel += step_panels) {
    const int64_t r = panel * kPanel;
    const int64_t count = std::min(m.rows, std::min(some.last, panel + step_panels) * kPanel) - r;
    multiply(op, matrix, inputs, panel, count, tile, count);
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

void Executor::product(const Step& step, int thread) {
  const Op& op = *step.op;
  const std::byte* inputs = inputs_of(step, thread);
  const size_t n = matrices_of(op);
  float* tile = floats(scratch_[static_cast<size_t>(thread)].tile);
  if (rows(op.rows) > kFewRows) {
    int64_t all = 0;
    for (size_t j = 0; j < n; ++j) all += weights_.matrix(op.weights[j]).panel_count();
    for (;;) {
      auto [from, to] = pool_.next(all, kFewestPanels);
      if (from == to) return;
      for (size_t j = 0; j < n && from < to; ++j) {
        const int64_t panels = weights_.matrix(op.weights[j]).panel_count();
        if (from < panels) product_panels(op, j, inputs, {from, std::min(to, panels)}, tile);
        from = std::max<int64_t>(0, from - panels);
        to -= panels;
      }
    }
  }
  size_t bytes = 0;
  for (size_t j = 0; j < n; ++j) {
    const Matrix& m = weights_.matrix(op.weights[j]);
    bytes += static_cast<size_t>(m.panel_count()) * m.panel_bytes;
  }
  // A thread's share of the bytes, rounded to panels; matrices one after another.
  const auto [from, to] = pool_.share(static_cast<int64_t>(bytes), thread);
  int64_t begin = 0;
  for (size_t j = 0; j < n; ++j) {
    const Matrix& m = weights_.matrix(op.weights[j]);
    const auto each = static_cast<int64_t>(m.panel_bytes);
    const int64_t panels = m.panel_count();
    const auto panel_at = [&](int64_t byte) {
      return std::clamp<int64_t>((byte - begin + each - 1) / each, 0, panels);
    };
    const Pool::Range mine{panel_at(std::max(from, begin)), panel_at(std::max(to, begin))};
    begin += panels * each;
    if (mine.first < mine.last) product_panels(op, j, inputs, mine, tile);
  }
}

void Executor::gated_panels(const Op& op, const std::byte* inputs, Pool::Range some,
                            float* tile) const {
  const auto activation = static_cast<Activation>(op.ints[0]);
  const int64_t all = rows(op.rows), target_width = width(op.target());
  const Matrix& m = weights_.matrix(op.weights[0]);
  const float* gate_bias = weights_.vector(op.weights[2]);
  const float* up_bias = weights_.vector(op.weights[3]);
  float* gate = tile;
  float* up = tile + kTileNumbers;
  const int64_t step_panels = panels_at_once(all);
  for (int64_t panel = some.first; panel < some.last; panel += step_panels) {
    const int64_t r = panel * kPanel;
    const int64_t count = std::min(m.rows, std::min(some.last, panel + step_panels) * kPanel) - r;
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

void Executor::gated(const Step& step, int thread) {
  const Op& op = *step.op;
  const std::byte* inputs = inputs_of(step, thread);
  const int64_t panels = weights_.matrix(op.weights[0]).panel_count();
  float* tile = floats(scratch_[static_cast<size_t>(thread)].tile);
  if (rows(op.rows) <= kFewRows) {
    return gated_panels(op, inputs, pool_.share(panels, thread), tile);
  }
  for (;;) {
    const Pool::Range some = pool_.next(panels, kFewestPanels);
    if (some.first == some.last) return;
    gated_panels(op, inputs, some, tile);
  }
}

}  // namespace flyweight
