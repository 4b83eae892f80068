#include "executor.h"

#include <algorithm>

#include "error.h"

namespace flyweight {
namespace {

// Numbers of logits that are computed at once: long prompts are scored in chunks of rows.
constexpr int64_t kMostLogits = int64_t{1} << 21;

const Kernels& kernels_of(const std::string& isa) {
  const Kernels* found = kernels(isa.c_str());
  if (found) return *found;
  std::string known;
  for (const char* const* name = instruction_sets(); *name; ++name) {
    known += (known.empty() ? "" : ", ") + std::string(*name);
  }
  throw Error(text("instruction set '", isa, "' is none that this processor can run: ", known));
}

Program checked(Program program) {
  validate(program);
  return program;
}

size_t floats_bytes(int64_t numbers) { return static_cast<size_t>(numbers) * sizeof(float); }

// Grows a region, whose content is not kept.
void at_least(Region& region, size_t bytes, bool zero = false) {
  if (region.bytes() >= bytes) return;
  region = Region();
  region = Region(bytes, "the buffers", zero);
}

}  // namespace

Executor::Executor(Program program, int threads, const std::string& isa, bool pin,
                   size_t cache_limit)
    : program_(checked(std::move(program))),
      kernels_(kernels_of(isa)),
      pool_(threads, pin),
      weights_(program_, kernels_, pool_),
      shape_(std::make_shared<SequenceShape>(program_, kernels_, pool_)),
      account_(std::make_shared<CacheAccount>()),
      batch_(*shape_),
      scratch_(static_cast<size_t>(threads)) {
  account_->limit = cache_limit;
  for (const Buffer& b : program_.buffers) {
    auto& most = arena_width_[static_cast<size_t>(b.rows)];
    most = std::max(most, b.end());
    most_width_ = std::max(most_width_, b.width);
  }
  for (const Op& op : program_.ops) {
    if (op.kind == Kind::Product || op.kind == Kind::Gated) {
      most_input_bytes_ = std::max(most_input_bytes_, input_bytes(op));
    } else if (op.kind == Kind::Rotate) {
      rotates_[static_cast<size_t>(op.rows)] = true;
    }
  }
  constexpr Load none = Load::None;
  constexpr Load loads[] = {none, Load::Few, Load::Many};
  const int64_t slots = program_.spelling.slots;
  for (int s = 0; s < (slots ? 3 : 1); ++s) {
    for (int t = 0; t < 2; ++t) {
      for (int p = 0; p < 3; ++p) {
        body_[t][p][s] = schedule(program_, {loads[t + 1], loads[p], none, loads[s], none});
      }
      tail_[t][s] = schedule(program_, {none, none, loads[t + 1], none, loads[s]});
    }
  }
  if (slots) most_tokens_ = kMostRowsAtOnce / slots;
  most_wanted_ = std::clamp<int64_t>(kMostLogits / program_.vocab_size, 1, most_tokens_);
  wanted_.reserve(static_cast<size_t>(kMostRowsAtOnce));
}

std::shared_ptr<Sequence> Executor::begin(std::vector<float> frequencies, float gain,
                                          float divisor, Format cache) const {
  return std::make_shared<Sequence>(shape_, account_, cache, std::move(frequencies), gain, divisor);
}

void Executor::check_feed(const Feed& feed) const {
  const auto alone = shape_->alone();
  check_one(feed);
}

void Executor::check_one(const Feed& feed) const {
  require(feed.sequence->shape() == shape_.get(), "a sequence of another model was given");
  const auto count = static_cast<int64_t>(feed.tokens.size());
  require(count > 0, "no tokens were given");
  require(feed.sequence->length() + count <= program_.context, feed.sequence->length(),
          " tokens and ", count, " more are longer than the model's context of ",
          program_.context);
  for (int32_t token : feed.tokens) {
    require(token >= 0 && token < program_.vocab_size, "token ", token,
            " is not within the model's vocabulary of ", program_.vocab_size);
  }
}

void Executor::check(std::span<const Feed> feeds) const {
  for (size_t i = 0; i < feeds.size(); ++i) {
    check_one(feeds[i]);
    for (size_t j = 0; j < i; ++j) {
      require(feeds[j].sequence != feeds[i].sequence, "the same sequence was given twice");
    }
  }
}

int64_t Executor::feed(std::span<const Feed> feeds, const Consumer& consume,
                       const std::function<bool()>& stop) {
  const auto alone = shape_->alone();
  check(feeds);
  int64_t rows = 0, wanted = 0, longest = 0;
  for (const Feed& feed : feeds) {
    const auto count = static_cast<int64_t>(feed.tokens.size());
    rows += count;
    wanted += feed.want == Feed::Want::All ? count : feed.want == Feed::Want::Last;
    longest = std::max(longest, feed.sequence->length() + count);
  }
  if (rows == 0) return 0;
  make_room(std::min(rows, most_tokens_), std::min(wanted, most_wanted_),
            (longest + kCacheBlock - 1) / kCacheBlock);
  for (const Feed& feed : feeds) feed.sequence->reserve(static_cast<int64_t>(feed.tokens.size()));

  size_t at = 0;
  int64_t done = 0, appended = 0;
  while (at < feeds.size()) {
    if (stop && stop()) return appended;
    batch_.clear();
    wanted_.clear();
    while (at < feeds.size() && batch_.rows(Rows::Tokens) < most_tokens_) {
      const Feed& feed = feeds[at];
      const auto all = static_cast<int64_t>(feed.tokens.size());
      const int64_t first = batch_.rows(Rows::Tokens);
      const int64_t count = std::min(all - done, most_tokens_ - first);
      batch_.add(*feed.sequence, feed.tokens.data() + done, count);
      for (int64_t i = 0; i < count; ++i) {
        const bool last = done + i + 1 == all;
        if (feed.want == Feed::Want::All || (feed.want == Feed::Want::Last && last)) {
          wanted_.push_back({first + i, at, done + i});
        }
      }
      done += count;
      if (done == all) ++at, done = 0;
    }
    run(consume);
    appended += batch_.rows(Rows::Tokens);
  }
  warm_ = true;
  return appended;
}

void Executor::make_room(int64_t tokens, int64_t wanted, int64_t blocks) {
  const int64_t slots = program_.spelling.slots;
  const int64_t rows[kRowSets] = {tokens, shape_->patch_size ? tokens : 0, wanted, slots * tokens,
                                  slots * wanted};
  const int64_t most = *std::max_element(rows, rows + kRowSets);
  for (size_t set = 0; set < kRowSets; ++set) {
    at_least(arenas_[set], floats_bytes(rows[set] * arena_width_[set]), true);
  }
  for (size_t set = 0; set < 2; ++set) {
    if (rotates_[set]) at_least(angles_[set], floats_bytes(2 * rows[set] * program_.frequencies));
  }
  if (most > kFewRows) {
    at_least(shared_inputs_, static_cast<size_t>(most) * most_input_bytes_);
  }
  for (Scratch& s : scratch_) {
    at_least(s.inputs, static_cast<size_t>(kFewRows) * most_input_bytes_);
    at_least(s.row, floats_bytes(most_width_));
    at_least(s.tile, floats_bytes(2 * kTileNumbers));
    at_least(s.attention, std::max(attention_scratch(), within_scratch()));
  }
  at_least(partials_, static_cast<size_t>(blocks) * partial_bytes());
}

size_t Executor::buffer_bytes() const {
  const auto alone = shape_->alone();
  size_t total = shared_inputs_.bytes() + partials_.bytes();
  for (const Region& r : arenas_) total += r.bytes();
  for (const Region& r : angles_) total += r.bytes();
  for (const Scratch& s : scratch_) {
    total += s.inputs.bytes() + s.row.bytes() + s.tile.bytes() + s.attention.bytes();
  }
  return total;
}

void Executor::choose_chunk(int64_t first) {
  chunk_ = first;
  const int64_t count = std::min(most_wanted_, static_cast<int64_t>(wanted_.size()) - first);
  rows_[static_cast<size_t>(Rows::Wanted)] = count;
  rows_[static_cast<size_t>(Rows::Spelled)] = program_.spelling.slots * count;
}

void Executor::run(const Consumer& consume) {
  rows_[0] = batch_.rows(Rows::Tokens);
  rows_[1] = batch_.rows(Rows::Patches);
  rows_[static_cast<size_t>(Rows::Symbols)] = program_.spelling.slots * rows_[0];
  choose_chunk(0);
  const auto load = [&](Rows set) { return static_cast<int>(load_of(rows(set))); };
  const auto& body =
      body_[rows_[0] <= kFewRows ? 0 : 1][load(Rows::Patches)][load(Rows::Symbols)];
  const auto wanted = static_cast<int64_t>(wanted_.size());
  // Angles of few rows are every thread's; of many, those of a thread's own rows.
  for (int set = 0; set < 2; ++set) {
    if (rotates_[set] && load_of(rows_[set]) == Load::Few) angles(set, {0, rows_[set]});
  }
  const bool packs = warm_ && weights_.begin_turn();
  auto work = [&](int thread) {
    for (int set = 0; set < 2; ++set) {
      if (rotates_[set] && load_of(rows_[set]) == Load::Many) {
        angles(set, pool_.share(rows_[set], thread));
      }
    }
    run_steps(body, thread);
    for (int64_t first = 0; first < wanted; first += most_wanted_) {
      pool_.barrier();
      if (first > 0) {
        if (thread == 0) choose_chunk(first);
        pool_.barrier();
      }
      const int64_t count = rows(Rows::Wanted);
      run_steps(tail_[count <= kFewRows ? 0 : 1][load(Rows::Spelled)], thread);
      pool_.barrier();
      const auto mine = pool_.share(count, thread);
      for (int64_t r = mine.first; r < mine.last; ++r) {
        const Wanted& w = wanted_[static_cast<size_t>(first + r)];
        consume(w.feed, w.token, row(program_.logits, r));
      }
    }
    if (packs) {
      pool_.barrier();
      weights_.pack_turn();
    }
  };
  pool_.run(work);
  if (packs) weights_.end_turn();
}

void Executor::run_steps(const std::vector<Step>& steps, int thread) {
  for (const Step& step : steps) {
    if (step.before == Barrier::Always ||
        (step.before == Barrier::UnlessLone && !batch_.lone(step.op->rows))) {
      pool_.barrier();
    }
    run_op(step, thread);
  }
}

void Executor::run_op(const Step& step, int thread) {
  const Op& op = *step.op;
  switch (op.kind) {
    case Kind::Embed: return embed(op, thread);
    case Kind::NGrams: return ngrams(op, thread);
    case Kind::Matches: return matches(op, thread);
    case Kind::Norm: return norm(step, thread);
    case Kind::Product: return step.prepares ? prepare(step, thread) : product(step, thread);
    case Kind::Gated: return step.prepares ? prepare(step, thread) : gated(step, thread);
    case Kind::Activate: return activate(op, thread);
    case Kind::Add: return add(op, thread);
    case Kind::Scale: return scale(op, thread);
    case Kind::Rotate: return rotate(step, thread);
    case Kind::Store: return store(step, thread);
    case Kind::Attention: return attention(step, thread);
    case Kind::Select: return select(op, thread);
    case Kind::Pool: return pool(op, thread);
    case Kind::Spread: return spread(op, thread);
    case Kind::Within: return within(op, thread);
    case Kind::Mean: return mean(op, thread);
    case Kind::Cut: return cut(op, thread);
    case Kind::Logs: return logs(op, thread);
    case Kind::Spell: return spell(op, thread);
  }
}

}  // namespace flyweight
