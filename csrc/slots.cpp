// The operations of byte slots: a token is spelled in symbols, its rows read each other, and the
// next token's probability is its spelling's.
#include <algorithm>
#include <limits>

#include "executor.h"
#include "sample.h"

namespace flyweight {
namespace {

constexpr int64_t kMostSlots = 64;  // validate.cpp's

}  // namespace

int32_t Executor::symbol(int64_t r) const {
  const Spelling& spelling = program_.spelling;
  return spelling.of(batch_.token(r / spelling.slots))[r % spelling.slots];
}

int64_t Executor::real_slots(int32_t token) const {
  const Spelling& spelling = program_.spelling;
  const int32_t* symbols = spelling.of(token);
  const int32_t* end = std::find(symbols, symbols + spelling.slots, spelling.pad);
  return std::max<int64_t>(1, end - symbols);
}

// Sums of a head's values for all slots of a token.
size_t Executor::within_scratch() const {
  int64_t most = 0;
  for (const Op& op : program_.ops) {
    if (op.kind == Kind::Within) most = std::max(most, WithinArgs(op).head_dim);
  }
  return static_cast<size_t>(program_.spelling.slots * most) * sizeof(float);
}

// A thread has some heads of some tokens. The keys and values are read where they lie, as a cache
// in float32 whose positions are the slots.
void Executor::within(const Op& op, int thread) {
  const WithinArgs args(op);
  const int64_t slots = program_.spelling.slots, dim = args.head_dim, all = args.heads * dim;
  const auto stride = static_cast<size_t>(width(op.source())) * sizeof(float);
  const float* queries[kMostSlots];
  int64_t last_seen[kMostSlots], from[kMostSlots] = {};
  float max[kMostSlots], sum[kMostSlots];
  float* acc = floats(scratch_[static_cast<size_t>(thread)].attention);
  const auto [first, last] = pool_.share(rows(op.rows) / slots * args.heads, thread);
  for (int64_t u = first; u < last; ++u) {
    const int64_t token = u / args.heads, head = u % args.heads;
    const int64_t seen = args.masked ? real_slots(batch_.token(token)) : slots;
    for (int64_t s = 0; s < slots; ++s) {
      queries[s] = row(op.source(), token * slots + s) + head * dim;
      last_seen[s] = seen - 1;
    }
    std::fill_n(max, slots, -std::numeric_limits<float>::infinity());
    std::fill_n(sum, slots, 0.0f);
    std::fill_n(acc, slots * dim, 0.0f);
    const float* keys = queries[0] + all;
    kernels_.attend(Format::F32, dim, slots, queries, op.floats[0], nullptr, last_seen, from, keys,
                    keys + all, stride, 0, seen, max, sum, acc);
    for (int64_t s = 0; s < slots; ++s) {
      float* y = row(op.target(), token * slots + s) + head * dim;
      for (int64_t d = 0; d < dim; ++d) y[d] = acc[s * dim + d] / sum[s];
    }
  }
}

void Executor::mean(const Op& op, int thread) {
  const int64_t n = width(op.target());
  const auto [first, last] = my_rows(op, thread);
  for (int64_t r = first; r < last; ++r) {
    const int64_t count = real_slots(batch_.token(r));
    float* y = row(op.target(), r);
    std::copy_n(row(op.source(), r * program_.spelling.slots), n, y);
    for (int64_t s = 1; s < count; ++s) {
      kernels_.add(n, 1.0f, row(op.source(), r * program_.spelling.slots + s), y);
    }
    for (int64_t c = 0; c < n; ++c) y[c] /= static_cast<float>(count);
  }
}

void Executor::cut(const Op& op, int thread) {
  const int64_t n = width(op.target()), slots = program_.spelling.slots;
  const auto [first, last] = my_rows(op, thread);
  for (int64_t r = first; r < last; ++r) {
    std::copy_n(row(op.source(), r / slots) + r % slots * n, n, row(op.target(), r));
  }
}

void Executor::logs(const Op& op, int thread) {
  const int64_t n = width(op.target());
  const auto [first, last] = my_rows(op, thread);
  for (int64_t r = first; r < last; ++r) {
    const float* x = row(op.source(), r);
    const auto all = static_cast<float>(log_sum_exp(x, n));
    float* y = row(op.target(), r);
    for (int64_t c = 0; c < n; ++c) y[c] = x[c] - all;
  }
}

// A thread has some tokens of the vocabulary, of all rows: slot by slot up to the token's end, the
// first pad, which counts.
void Executor::spell(const Op& op, int thread) {
  const Spelling& spelling = program_.spelling;
  const int64_t n = width(op.source());
  const auto [first, last] = pool_.share(width(op.target()), thread);
  for (int64_t r = 0; r < rows(op.rows); ++r) {
    const float* logs = row(op.source(), r * spelling.slots);
    float* y = row(op.target(), r);
    for (int64_t token = first; token < last; ++token) {
      const int32_t* symbols = spelling.of(token);
      float total = 0;
      for (int64_t s = 0; s < spelling.slots; ++s) {
        total += logs[s * n + symbols[s]];
        if (symbols[s] == spelling.pad) break;
      }
      y[token] = total;
    }
  }
}

}  // namespace flyweight
