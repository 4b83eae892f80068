// Attention over the sequences' caches. A query row's result is a fold, from the oldest on, of
// what each block of the cache gives by itself: the same numbers however rows, heads and blocks
// are dealt out to threads.
#include <algorithm>
#include <cmath>
#include <limits>

#include "executor.h"

namespace flyweight {
namespace {

// Query rows of one key-value head that go through a block of the cache together.
constexpr int64_t kQueries = 32;
constexpr float kNothing = -std::numeric_limits<float>::infinity();

// The running softmax of n query rows: maxima, sums, and accumulated values (n, head_dim).
struct State {
  float *max, *sum, *acc;
  int64_t n, head_dim;
  State(float* at, int64_t n, int64_t head_dim)
      : max(at), sum(at + n), acc(at + 2 * n), n(n), head_dim(head_dim) {}
  static int64_t numbers(int64_t n, int64_t head_dim) { return n * (head_dim + 2); }

  void clear() {
    std::fill_n(max, n, kNothing);
    std::fill_n(sum, n, 0.0f);
    std::fill_n(acc, n * head_dim, 0.0f);
  }
  void fold(const State& next) {
    for (int64_t i = 0; i < n; ++i) {
      if (next.max[i] == kNothing) continue;
      const float top = std::max(max[i], next.max[i]);
      const float old = max[i] == kNothing ? 0.0f : std::exp(max[i] - top);
      const float add = std::exp(next.max[i] - top);
      float* a = acc + i * head_dim;
      const float* b = next.acc + i * head_dim;
      for (int64_t d = 0; d < head_dim; ++d) a[d] = a[d] * old + b[d] * add;
      sum[i] = sum[i] * old + next.sum[i] * add;
      max[i] = top;
    }
  }
};

}  // namespace

struct Executor::Heads {
  const Op& op;
  AttentionArgs args;
  int64_t group;        // query heads of a key-value head
  int64_t rows_at_once;  // rows whose queries go together
  const float* slopes;
  explicit Heads(const Op& op, const Weights& weights)
      : op(op), args(op), group(args.heads / args.kv_heads),
        rows_at_once(std::max<int64_t>(1, kQueries / group)), slopes(weights.vector(op.weights[0])) {}
  int64_t queries() const { return rows_at_once * group; }
};

size_t Executor::attention_scratch() const {
  size_t most = 0;
  for (const Op& op : program_.ops) {
    if (op.kind != Kind::Attention) continue;
    const Heads heads(op, weights_);
    const int64_t n = heads.queries();
    const auto states = 2 * static_cast<size_t>(State::numbers(n, heads.args.head_dim));
    const auto per_query = sizeof(float*) + 2 * sizeof(int64_t) + sizeof(float);
    most = std::max(most, aligned(states * sizeof(float)) + static_cast<size_t>(n) * per_query);
  }
  return most;
}

size_t Executor::partial_bytes() const {
  int64_t most = 0;
  for (const Op& op : program_.ops) {
    if (op.kind != Kind::Attention) continue;
    const AttentionArgs args(op);
    most = std::max(most, kFewRows * State::numbers(args.heads, args.head_dim));
  }
  return static_cast<size_t>(most) * sizeof(float);
}

void Executor::store(const Step& step, int thread) {
  const Op& op = *step.op;
  const StoreArgs args(op);
  // Where rows are split, the units are the same pairs, all heads of a row together.
  const bool by_heads = step.split == Split::Heads;
  const int64_t count = rows(op.rows) * (by_heads ? args.kv_heads : 1);
  auto [first, last] = pool_.share(count, thread);
  if (!by_heads) first *= args.kv_heads, last *= args.kv_heads;
  for (int64_t u = first; u < last; ++u) {
    const int64_t r = u / args.kv_heads, head = u % args.kv_heads;
    const Sequence& sequence = *batch_.segment(op.rows, r).sequence;
    const int64_t position = batch_.position(op.rows, r), block = position / kCacheBlock;
    const size_t offset = sequence.stride(args.slot) * static_cast<size_t>(position % kCacheBlock);
    const float* x = row(op.source(), r) + head * args.head_dim;
    kernels_.store(sequence.format, args.head_dim, x + args.keys,
                   sequence.keys(args.slot, block, head) + offset);
    kernels_.store(sequence.format, args.head_dim, x + args.values,
                   sequence.values(args.slot, block, head) + offset);
  }
}

// The state of rows [first, first + rows), of one segment, over blocks of the cache, for the query
// heads of one key-value head. `out` holds State::numbers(rows * group, head_dim).
void Executor::attend(const Heads& heads, int64_t head, int64_t first, int64_t rows,
                      Pool::Range blocks, float* out, int thread) const {
  const AttentionArgs& args = heads.args;
  const Segment& segment = batch_.segment(heads.op.rows, first);
  const Sequence& sequence = *segment.sequence;
  const int64_t n = rows * heads.group, most = heads.queries();
  std::byte* scratch = scratch_[static_cast<size_t>(thread)].attention.data();
  State state(out, n, args.head_dim);
  State block_state(reinterpret_cast<float*>(scratch) + State::numbers(most, args.head_dim), n,
                    args.head_dim);
  std::byte* rest = scratch + aligned(2 * sizeof(float) * static_cast<size_t>(State::numbers(
                                                              most, args.head_dim)));
  auto* queries = reinterpret_cast<const float**>(rest);
  auto* positions = reinterpret_cast<int64_t*>(queries + most);
  int64_t* from = positions + most;
  auto* slopes = reinterpret_cast<float*>(from + most);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t r = first + i / heads.group, h = head * heads.group + i % heads.group;
    queries[i] = row(heads.op.source(), r) + args.column + h * args.head_dim;
    positions[i] = batch_.position(heads.op.rows, r);
    from[i] = args.window ? std::max<int64_t>(0, positions[i] - args.window + 1) : 0;
    if (heads.slopes) slopes[i] = heads.slopes[h] / sequence.divisor();
  }
  const int64_t seen = positions[n - 1] + 1;
  state.clear();
  for (int64_t block = blocks.first; block < blocks.last; ++block) {
    const int64_t begin = block * kCacheBlock, count = std::min(kCacheBlock, seen - begin);
    State& into = block == blocks.first ? state : block_state;
    if (block != blocks.first) into.clear();
    kernels_.attend(sequence.format, args.head_dim, n, queries, heads.op.floats[0],
                    heads.slopes ? slopes : nullptr, positions, from,
                    sequence.keys(args.slot, block, head), sequence.values(args.slot, block, head),
                    sequence.stride(args.slot), begin, count, into.max, into.sum, into.acc);
    if (block != blocks.first) state.fold(block_state);
  }
}

// Blocks that some row of [first, first + rows) of a segment sees.
Pool::Range Executor::blocks_of(const Heads& heads, int64_t first, int64_t rows) const {
  const int64_t begin = batch_.position(heads.op.rows, first);
  const int64_t end = batch_.position(heads.op.rows, first + rows - 1);
  const int64_t from = heads.args.window ? std::max<int64_t>(0, begin - heads.args.window + 1) : 0;
  return {from / kCacheBlock, end / kCacheBlock + 1};
}

// y of rows [first, first + rows) from their state.
void Executor::give(const Heads& heads, int64_t head, int64_t first, int64_t rows, float* at) const {
  const int64_t dim = heads.args.head_dim;
  const State state(at, rows * heads.group, dim);
  for (int64_t i = 0; i < state.n; ++i) {
    const int64_t h = head * heads.group + i % heads.group;
    float* y = row(heads.op.target(), first + i / heads.group) + h * dim;
    const float scale = 1.0f / state.sum[i];
    for (int64_t d = 0; d < dim; ++d) y[d] = state.acc[i * dim + d] * scale;
  }
}

void Executor::attention(const Step& step, int thread) {
  const Op& op = *step.op;
  const Heads heads(op, weights_);
  const int64_t all = rows(op.rows), kv_heads = heads.args.kv_heads;
  if (all > kFewRows) return attend_many(heads, thread);
  if (batch_.lone(op.rows) || all * kv_heads % pool_.size() == 0) {
    // Whole units, dealt out as STORE's are.
    float* state = floats(scratch_[static_cast<size_t>(thread)].attention);
    const auto [first, last] = pool_.share(all * kv_heads, thread);
    for (int64_t u = first; u < last; ++u) {
      const int64_t r = u / kv_heads, head = u % kv_heads;
      attend(heads, head, r, 1, blocks_of(heads, r, 1), state, thread);
      give(heads, head, r, 1, state);
    }
    return;
  }
  attend_split(heads, thread);
}

// Few rows whose heads do not come out even: blocks are dealt out as well.
void Executor::attend_split(const Heads& heads, int thread) {
  const int64_t kv_heads = heads.args.kv_heads;
  const int64_t units = rows(heads.op.rows) * kv_heads;
  const int64_t numbers = State::numbers(heads.group, heads.args.head_dim);
  int64_t most = 1;
  for (int64_t r = 0; r < rows(heads.op.rows); ++r) {
    const auto blocks = blocks_of(heads, r, 1);
    most = std::max(most, blocks.last - blocks.first);
  }
  float* partials = floats(partials_);
  const auto [first, last] = pool_.share(units * most, thread);
  for (int64_t i = first; i < last; ++i) {
    const int64_t u = i / most, r = u / kv_heads;
    const auto blocks = blocks_of(heads, r, 1);
    const int64_t block = blocks.first + i % most;
    if (block >= blocks.last) continue;
    attend(heads, u % kv_heads, r, 1, {block, block + 1}, partials + i * numbers, thread);
  }
  pool_.barrier();
  const auto mine = pool_.share(units, thread);
  for (int64_t u = mine.first; u < mine.last; ++u) {
    const int64_t r = u / kv_heads;
    const auto blocks = blocks_of(heads, r, 1);
    float* at = partials + u * most * numbers;
    State state(at, heads.group, heads.args.head_dim);
    for (int64_t b = 1; b < blocks.last - blocks.first; ++b) {
      state.fold(State(at + b * numbers, heads.group, heads.args.head_dim));
    }
    give(heads, u % kv_heads, r, 1, at);
  }
}

// Many rows: pieces of a segment's rows, by head, every thread taking each threads-th of them.
void Executor::attend_many(const Heads& heads, int thread) {
  float* state = floats(scratch_[static_cast<size_t>(thread)].attention);
  const auto set = static_cast<size_t>(heads.op.rows);
  int64_t piece = 0;
  for (const Segment& segment : batch_.segments()) {
    const int64_t end = segment.first[set] + segment.count[set];
    for (int64_t r = segment.first[set]; r < end; r += heads.rows_at_once) {
      const int64_t count = std::min(heads.rows_at_once, end - r);
      for (int64_t head = 0; head < heads.args.kv_heads; ++head) {
        if (piece++ % pool_.size() != thread) continue;
        attend(heads, head, r, count, blocks_of(heads, r, count), state, thread);
        give(heads, head, r, count, state);
      }
    }
  }
}

}  // namespace flyweight
