// The operations that look at a row at a time.
#include <algorithm>
#include <cmath>

#include "executor.h"

namespace flyweight {

void Executor::angles(int set, Pool::Range rows) {
  const int64_t pairs = program_.frequencies;
  float* out = floats(angles_[set]);
  for (int64_t r = rows.first; r < rows.last; ++r) {
    const Sequence& sequence = *batch_.segment(static_cast<Rows>(set), r).sequence;
    const auto position = static_cast<float>(batch_.position(static_cast<Rows>(set), r));
    float* cos = out + 2 * r * pairs;
    float* sin = cos + pairs;
    for (int64_t i = 0; i < pairs; ++i) {
      const float angle = position * sequence.frequencies()[static_cast<size_t>(i)];
      cos[i] = std::cos(angle) * sequence.gain();
      sin[i] = std::sin(angle) * sequence.gain();
    }
  }
}

void Executor::embed(const Op& op, int thread) {
  const auto index = static_cast<Index>(op.ints[0]);
  const bool accumulate = op.ints[1] == 1;
  const int64_t n = width(op.target());
  const float scale = op.floats[0];
  float* scratch = floats(scratch_[static_cast<size_t>(thread)].row);
  const auto [first, last] = my_rows(op, thread);
  for (int64_t r = first; r < last; ++r) {
    const int64_t i = index == Index::Token      ? batch_.token(r)
                      : index == Index::Position ? batch_.position(op.rows, r)
                      : index == Index::Symbol   ? symbol(r)
                      : op.rows == Rows::Tokens  ? batch_.cut(r).offset
                                                 : r % program_.spelling.slots;
    float* y = row(op.target(), r);
    float* looked_up = accumulate ? scratch : y;
    weights_.row(op.weights[0], i, looked_up);
    if (accumulate) {
      kernels_.add(n, scale, looked_up, y);
    } else if (scale != 1.0f) {
      for (int64_t c = 0; c < n; ++c) y[c] *= scale;
    }
  }
}

void Executor::norm_groups(const Op& op, Pool::Range groups, const float* x, float* y) const {
  const NormArgs args(op);
  const float* gain = weights_.vector(op.weights[0]);
  const float* bias = weights_.vector(op.weights[1]);
  for (int64_t g = groups.first; g < groups.last; ++g) {
    const int64_t at = args.column + g * args.together;
    if (args.layer) {
      kernels_.layer_norm(args.together, x + at, gain, bias, op.floats[0], y + at);
    } else {
      kernels_.rms_norm(args.together, x + at, gain, op.floats[0], y + at);
      if (bias) kernels_.add(args.together, 1.0f, bias, y + at);
    }
  }
}

void Executor::norm(const Step& step, int thread) {
  const Op& op = *step.op;
  const NormArgs args(op);
  const int64_t groups = args.count / args.together;
  if (step.split == Split::Heads) {
    const int64_t each = groups / step.heads;
    const auto units = pool_.share(rows(op.rows) * step.heads, thread);
    for (int64_t u = units.first; u < units.last; ++u) {
      const int64_t r = u / step.heads, h = u % step.heads;
      norm_groups(op, {h * each, (h + 1) * each}, row(op.source(), r), row(op.target(), r));
    }
    return;
  }
  const auto [first, last] = my_rows(op, thread);
  for (int64_t r = first; r < last; ++r) {
    norm_groups(op, {0, groups}, row(op.source(), r), row(op.target(), r));
  }
}

void Executor::activate(const Op& op, int thread) {
  const auto activation = static_cast<Activation>(op.ints[0]);
  const int64_t n = width(op.target());
  const auto [first, last] = my_rows(op, thread);
  for (int64_t r = first; r < last; ++r) {
    float* y = row(op.target(), r);
    kernels_.activate(activation, n, row(op.source(), r), y);
    if (op.sources.size() == 2) kernels_.multiply(n, row(op.sources[1], r), y);
  }
}

void Executor::add(const Op& op, int thread) {
  const auto [first, last] = my_rows(op, thread);
  for (int64_t r = first; r < last; ++r) {
    kernels_.add(width(op.target()), op.floats[0], row(op.source(), r), row(op.target(), r));
  }
}

void Executor::scale(const Op& op, int thread) {
  const int64_t n = width(op.target());
  const auto [first, last] = my_rows(op, thread);
  for (int64_t r = first; r < last; ++r) {
    const float* x = row(op.source(), r);
    float* y = row(op.target(), r);
    for (int64_t c = 0; c < n; ++c) y[c] = op.floats[0] * x[c];
  }
}

void Executor::rotate(const Step& step, int thread) {
  const Op& op = *step.op;
  const RotateArgs args(op);
  const int64_t pairs = program_.frequencies;
  const float* angles = floats(angles_[static_cast<size_t>(op.rows)]);
  // A row counts as one head of all columns where rows are split.
  const int64_t units = step.split == Split::Heads ? step.heads : 1;
  const int64_t each = args.heads / units;
  const auto [first, last] = pool_.share(rows(op.rows) * units, thread);
  for (int64_t u = first; u < last; ++u) {
    const int64_t r = u / units, begin = u % units * each;
    const float* cos = angles + 2 * r * pairs;
    float* y = row(op.target(), r) + args.column;
    for (int64_t h = begin; h < begin + each; ++h) {
      kernels_.rotate(pairs, cos, cos + pairs, args.interleaved, y + h * args.head_dim);
    }
  }
}

void Executor::select(const Op& op, int thread) {
  const auto [first, last] = my_rows(op, thread);
  for (int64_t r = first; r < last; ++r) {
    const float* x = row(op.source(), wanted_[static_cast<size_t>(chunk_ + r)].row);
    std::copy_n(x, width(op.target()), row(op.target(), r));
  }
}

}  // namespace flyweight
