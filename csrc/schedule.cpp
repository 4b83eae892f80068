#include "schedule.h"

#include <algorithm>

namespace flyweight {
namespace {

// A piece of memory that an operation touches: columns of a set's rows, the prepared inputs that
// the threads share, or a slot of the cache.
struct Piece {
  int64_t space, begin, end;
  bool meets(const Piece& other) const {
    return space == other.space && begin < other.end && other.begin < end;
  }
};
constexpr int64_t kInputs = kRowSets, kSlots = kRowSets + 1;

struct Touch {
  std::vector<Piece> reads, writes;
};

bool meet(const std::vector<Piece>& a, const std::vector<Piece>& b) {
  return std::any_of(a.begin(), a.end(), [&](const Piece& x) {
    return std::any_of(b.begin(), b.end(), [&](const Piece& y) { return x.meets(y); });
  });
}

bool conflict(const Touch& a, const Touch& b) {
  return meet(a.writes, b.reads) || meet(a.reads, b.writes) || meet(a.writes, b.writes);
}

bool multiplies(const Op& op) { return op.kind == Kind::Product || op.kind == Kind::Gated; }

class Scheduler {
 public:
  Scheduler(const Program& program, const Load (&loads)[kRowSets]) : p(program), loads_(loads) {}

  std::vector<Step> steps() {
    for (size_t i = 0; i < p.ops.size(); ++i) {
      const Op& op = p.ops[i];
      if (load(op) == Load::None) continue;
      if (multiplies(op)) {
        multiply(i);
      } else if (!(op.kind == Kind::Norm && load(op) == Load::Few && only_multiplied(i))) {
        Step step{&op};
        if (op.kind == Kind::Attention) {
          step.split = Split::Items;
          step.heads = AttentionArgs(op).kv_heads;
        } else if (op.kind == Kind::Pool || op.kind == Kind::Within || op.kind == Kind::Spell) {
          step.split = Split::Columns;
        } else if (load(op) == Load::Few) {
          step.heads = heads_of(i);
          if (step.heads) step.split = Split::Heads;
        }
        push(step, touch(op));
      }
    }
    return std::move(steps_);
  }

 private:
  const Program& p;
  const Load (&loads_)[kRowSets];
  std::vector<Step> steps_;
  // What the steps since the last barrier touched.
  struct Recent {
    Step step;
    Touch touch;
  };
  std::vector<Recent> recent_;

  // Bytes go into the open patch even where no patch is complete.
  Load load(const Op& op) const {
    return loads_[static_cast<int>(op.kind == Kind::Pool ? Rows::Tokens : op.rows)];
  }

  Piece piece(int32_t buffer) const {
    const Buffer& b = p.buffer(buffer);
    return {static_cast<int64_t>(b.rows), b.offset, b.end()};
  }

  Touch touch(const Op& op) const {
    Touch t;
    for (int32_t s : op.sources) t.reads.push_back(piece(s));
    for (int32_t s : op.targets) t.writes.push_back(piece(s));
    // Targets are read as well where they are added to: counted as written, which is stricter.
    if (op.kind == Kind::Store) t.writes.push_back(slot(op.ints[0]));
    if (op.kind == Kind::Attention) t.reads.push_back(slot(op.ints[0]));
    return t;
  }
  static Piece slot(int64_t i) { return {kSlots + i, 0, 1}; }

  // Whether threads ask for parts of the step: Pool::next serves one step between two barriers.
  bool dealt(const Step& step) const {
    const bool parts = multiplies(*step.op) ? !step.prepares : step.op->kind == Kind::Attention;
    return parts && load(*step.op) == Load::Many;
  }

  void push(Step step, Touch touch) {
    for (const Recent& before : recent_) {
      if (dealt(before.step) && dealt(step)) step.before = Barrier::Always;
      if (conflict(before.touch, touch)) {
        step.before = std::max(step.before, barrier(before.step, step));
      }
    }
    if (step.before == Barrier::Always) recent_.clear();
    steps_.push_back(step);
    recent_.push_back({step, std::move(touch)});
  }

  static Barrier barrier(const Step& a, const Step& b) {
    const bool same_rows = a.op->rows == b.op->rows;
    if (same_rows && a.split == Split::Rows && b.split == Split::Rows) return Barrier::None;
    if (same_rows && a.split == Split::Heads && a.heads == b.heads) {
      if (b.split == Split::Heads) return Barrier::None;
      if (b.split == Split::Items) return Barrier::UnlessLone;
    }
    return Barrier::Always;
  }

  void multiply(size_t i) {
    const Op& op = p.ops[i];
    Step step{&op};
    step.split = Split::Columns;
    Touch t = touch(op);
    if (load(op) == Load::Few) {
      step.norm = norm_of(i);
      if (step.norm) t.reads = {piece(step.norm->source())};
      return push(step, std::move(t));
    }
    Step prepare{&op};
    prepare.prepares = true;
    push(prepare, {t.reads, {{kInputs, 0, 1}}});
    push(step, {{{kInputs, 0, 1}}, t.writes});
  }

  bool writes(const Op& op, const Piece& where) const {
    return std::any_of(op.targets.begin(), op.targets.end(),
                       [&](int32_t t) { return piece(t).meets(where); });
  }
  bool reads(const Op& op, const Piece& where) const {
    return std::any_of(op.sources.begin(), op.sources.end(),
                       [&](int32_t s) { return piece(s).meets(where); });
  }

  // Whether the norm's target is read by products alone, and its source stays until they are done.
  bool only_multiplied(size_t i) const {
    const Op& norm = p.ops[i];
    const NormArgs args(norm);
    const Piece target = piece(norm.target()), source = piece(norm.source());
    const bool whole = args.column == 0 && args.count == p.buffer(norm.target()).width &&
                       args.count == p.buffer(norm.source()).width;
    if (!whole || target.meets(source)) return false;
    bool stays = true;
    for (size_t j = i + 1; j < p.ops.size(); ++j) {
      const Op& op = p.ops[j];
      if (reads(op, target)) {
        if (!stays || !multiplies(op) || op.source() != norm.target() || writes(op, source)) {
          return false;
        }
      }
      // Another buffer in the same memory: the target is not alive any more.
      if (writes(op, target)) return op.target() != norm.target() || overwrites(op);
      stays = stays && !writes(op, source);
    }
    return true;
  }
  // Whether an operation fills its whole target without a look at what it held.
  bool overwrites(const Op& op) const {
    const int64_t width = p.buffer(op.target()).width;
    switch (op.kind) {
      case Kind::Gated:
      case Kind::NGrams:
      case Kind::Attention:
      case Kind::Select:
      case Kind::Pool:
      case Kind::Within:
      case Kind::Mean:
      case Kind::Cut:
      case Kind::Spell:
        return true;
      case Kind::Embed:
        return op.ints[1] == 0;
      case Kind::Activate:
      case Kind::Scale:
      case Kind::Logs:
        return op.source() != op.target();
      case Kind::Norm: {
        const NormArgs args(op);
        return op.source() != op.target() && args.column == 0 && args.count == width;
      }
      case Kind::Product: {
        const ProductArgs args(op);
        int64_t filled = 0;
        for (int64_t j = 0; j < args.matrices; ++j) filled += p.weight(op.weights[j]).rows;
        return !args.accumulate && filled == width;
      }
      default:
        return false;
    }
  }

  // The norm that wrote the source of product i and is left to it; null where there is none.
  const Op* norm_of(size_t i) const {
    const Piece source = piece(p.ops[i].source());
    for (size_t j = i; j-- > 0;) {
      if (!writes(p.ops[j], source)) continue;
      const bool left = p.ops[j].kind == Kind::Norm && p.ops[j].rows == p.ops[i].rows &&
                        p.ops[j].target() == p.ops[i].source() && only_multiplied(j);
      return left ? &p.ops[j] : nullptr;
    }
    return nullptr;
  }

  // Key-value heads by which an operation on queries, keys or values may be split: it touches
  // exactly the columns that the next attention reads by heads. 0: it may not.
  int64_t heads_of(size_t i) const {
    const Op& op = p.ops[i];
    int64_t column = 0, width = 0;
    int32_t buffer = -1;
    if (op.kind == Kind::Store) return StoreArgs(op).kv_heads;
    if (op.kind == Kind::Rotate) {
      const RotateArgs args(op);
      column = args.column, width = args.heads * args.head_dim, buffer = op.target();
    } else if (op.kind == Kind::Norm && op.source() == op.target()) {
      const NormArgs args(op);
      column = args.column, width = args.count, buffer = op.target();
    } else {
      return 0;
    }
    for (size_t j = i + 1; j < p.ops.size(); ++j) {
      const Op& next = p.ops[j];
      if (next.rows != op.rows) return 0;
      if (next.kind == Kind::Store && next.source() == buffer) {
        const StoreArgs args(next);
        const int64_t all = args.kv_heads * args.head_dim;
        if (fits(op, args.head_dim) && width == all &&
            (column == args.keys || column == args.values)) {
          return args.kv_heads;
        }
      } else if (next.kind == Kind::Attention && next.source() == buffer) {
        const AttentionArgs args(next);
        const bool queries = column == args.column && width == args.heads * args.head_dim;
        return fits(op, args.head_dim) && queries ? args.kv_heads : 0;
      } else if (next.kind != Kind::Rotate && next.kind != Kind::Norm) {
        return 0;
      }
    }
    return 0;
  }
  // Whether the operation's own groups are the heads.
  static bool fits(const Op& op, int64_t head_dim) {
    return op.kind == Kind::Rotate ? RotateArgs(op).head_dim == head_dim
                                   : NormArgs(op).together == head_dim;
  }
};

}  // namespace

std::vector<Step> schedule(const Program& program, const Load (&loads)[kRowSets]) {
  return Scheduler(program, loads).steps();
}

}  // namespace flyweight
