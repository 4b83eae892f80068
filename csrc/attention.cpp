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
constexpr int64_t kQueries = 64;
// Positions of one head before the next one's turn.
constexpr int64_t kTurn = 64;
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
  // Numbers of a thread's states at most: of some rows of one head, or of one row of all.
  size_t numbers() const {
    const int64_t n = std::max(queries(), args.heads);
    return static_cast<size_t>(State::numbers(n, args.head_dim));
  }
};

size_t Executor::attention_scratch() const {
  size_t most = 0;
  for (const Op& op : program_.ops) {
    if (op.kind != Kind::Attention) continue;
    const Heads heads(op, weights_);
    const auto n = static_cast<size_t>(std::max(heads.queries(), heads.args.heads));
    const auto per_query = sizeof(float*) + 2 * sizeof(int64_t) + sizeof(float);
    // The states of all, and those of a block; five ends are rounded up.
    most = std::max(most, 2 * aligned(sizeof(float) * heads.numbers()) + n * per_query + 5 * 64);
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

// The states of rows [first, first + rows), of one segment, over blocks of the cache, for the query
// heads of each of the key-value heads. `out` holds State::numbers(rows * group, head_dim) for each.
// The heads take turns: memory gives more from many places at once.
void Executor::attend(const Heads& heads, Pool::Range some, int64_t first, int64_t rows,
                      Pool::Range blocks, float* out, int thread) const {
  const AttentionArgs& args = heads.args;
  const Segment& segment = batch_.segment(heads.op.rows, first);
  const Sequence& sequence = *segment.sequence;
  const int64_t n = rows * heads.group, all = (some.last - some.first) * n;
  const int64_t each = State::numbers(n, args.head_dim);
  std::byte* at = scratch_[static_cast<size_t>(thread)].attention.data();
  at += aligned(sizeof(float) * heads.numbers());  // where `out` may be
  const auto take = [&]<class T>(int64_t count, T*& to) {
    to = reinterpret_cast<T*>(at);
    at += aligned(static_cast<size_t>(count) * sizeof(T));
  };
  float *of_block, *slopes;
  const float** queries;
  int64_t *positions, *from;
  take((some.last - some.first) * each, of_block);
  take(all, queries);
  take(n, positions);
  take(n, from);
  take(all, slopes);
  for (int64_t i = 0; i < all; ++i) {
    const int64_t r = first + i % n / heads.group;
    const int64_t h = (some.first + i / n) * heads.group + i % heads.group;
    queries[i] = row(heads.op.source(), r) + args.column + h * args.head_dim;
    if (heads.slopes) slopes[i] = heads.slopes[h] / sequence.divisor();
  }
  for (int64_t i = 0; i < n; ++i) {
    positions[i] = batch_.position(heads.op.rows, first + i / heads.group);
    from[i] = args.window ? std::max<int64_t>(0, positions[i] - args.window + 1) : 0;
  }
  const int64_t seen = positions[n - 1] + 1;
  const size_t stride = sequence.stride(args.slot);
  for (int64_t block = blocks.first; block < blocks.last; ++block) {
    float* states = block == blocks.first ? out : of_block;
    const int64_t end = std::min(seen, (block + 1) * kCacheBlock);
    for (int64_t begin = block * kCacheBlock; begin < end; begin += kTurn) {
      const auto offset = stride * static_cast<size_t>(begin % kCacheBlock);
      for (int64_t head = some.first; head < some.last; ++head) {
        const int64_t i = head - some.first;
        State state(states + i * each, n, args.head_dim);
        if (begin % kCacheBlock == 0) state.clear();
        kernels_.attend(sequence.format, args.head_dim, n, queries + i * n, heads.op.floats[0],
                        heads.slopes ? slopes + i * n : nullptr, positions, from,
                        sequence.keys(args.slot, block, head) + offset,
                        sequence.values(args.slot, block, head) + offset, stride, begin,
                        std::min(kTurn, end - begin), state.max, state.sum, state.acc);
      }
    }
    for (int64_t i = 0; i < some.last - some.first && block != blocks.first; ++i) {
      State(out + i * each, n, args.head_dim).fold(State(of_block + i * each, n, args.head_dim));
    }
  }
}

// Blocks that some row of [first, first + rows) of a segment sees.
Pool::Range Executor::blocks_of(const Heads& heads, int64_t first, int64_t rows) const {
  const int64_t begin = batch_.position(heads.op.rows, first);
  const int64_t end = batch_.position(heads.op.rows, first + rows - 1);
  const int64_t from = heads.args.window ? std::max<int64_t>(0, begin - heads.args.window + 1) : 0;
  return {from / kCacheBlock, end / kCacheBlock + 1};
}

// y of rows [first, first + rows) from the states of some heads.
void Executor::give(const Heads& heads, Pool::Range some, int64_t first, int64_t rows,
                    float* at) const {
  const int64_t dim = heads.args.head_dim, n = rows * heads.group;
  for (int64_t head = some.first; head < some.last; ++head, at += State::numbers(n, dim)) {
    const State state(at, n, dim);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t h = head * heads.group + i % heads.group;
      float* y = row(heads.op.target(), first + i / heads.group) + h * dim;
      const float scale = 1.0f / state.sum[i];
      for (int64_t d = 0; d < dim; ++d) y[d] = state.acc[i * dim + d] * scale;
    }
  }
}

void Executor::attention(const Step& step, int thread) {
  const Op& op = *step.op;
  const Heads heads(op, weights_);
  const int64_t all = rows(op.rows), kv_heads = heads.args.kv_heads;
  if (all > kFewRows) return attend_many(heads, thread);
  if (batch_.lone(op.rows) || all * kv_heads % pool_.size() == 0) {
    // Whole units, dealt out as STORE's are.
    const auto [first, last] = pool_.share(all * kv_heads, thread);
    for (int64_t u = first, next; u < last; u = next) {
      const int64_t r = u / kv_heads, head = u % kv_heads;
      next = std::min(last, (r + 1) * kv_heads);
      const Pool::Range some{head, head + next - u};
      float* states = floats(scratch_[static_cast<size_t>(thread)].attention);
      attend(heads, some, r, 1, blocks_of(heads, r, 1), states, thread);
      give(heads, some, r, 1, states);
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
    const int64_t block = blocks.first + i % most, head = u % kv_heads;
    if (block >= blocks.last) continue;
    attend(heads, {head, head + 1}, r, 1, {block, block + 1}, partials + i * numbers, thread);
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
    give(heads, {u % kv_heads, u % kv_heads + 1}, r, 1, at);
  }
}

// Many rows: pieces of a segment's rows, by head, to whoever asks. The first rows see least, and many
// of them are given at once.
void Executor::attend_many(const Heads& heads, int thread) {
  float* state = floats(scratch_[static_cast<size_t>(thread)].attention);
  const auto set = static_cast<size_t>(heads.op.rows);
  const int64_t each = heads.rows_at_once, kv_heads = heads.args.kv_heads;
  const auto& segments = batch_.segments();
  const auto pieces = [&](const Segment& segment) { return (segment.count[set] + each - 1) / each; };
  int64_t all = 0;
  for (const Segment& segment : segments) all += pieces(segment) * kv_heads;
  for (;;) {
    const auto [first, last] = pool_.next(all, 1);
    if (first == last) return;
    int64_t before = 0;
    for (const Segment& segment : segments) {
      const int64_t here = pieces(segment) * kv_heads;
      for (int64_t i = std::max(first, before); i < std::min(last, before + here); ++i) {
        const int64_t r = segment.first[set] + (i - before) / kv_heads * each;
        const int64_t head = (i - before) % kv_heads;
        const int64_t count = std::min(each, segment.first[set] + segment.count[set] - r);
        const Pool::Range one{head, head + 1};
        attend(heads, one, r, count, blocks_of(heads, r, count), state, thread);
        give(heads, one, r, count, state);
      }
      before += here;
    }
  }
}

}  // namespace flyweight
