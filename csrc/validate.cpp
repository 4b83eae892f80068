// A program comes from a file that anyone may have written: nothing of it is believed.
#include <algorithm>
#include <cmath>

#include "error.h"
#include "program.h"

namespace flyweight {
namespace {

// Bounds that no real model comes near and whose products fit 64 bits.
constexpr int64_t kMostNumbers = int64_t{1} << 22;   // of a row
constexpr int64_t kMostRows = int64_t{1} << 31;      // of a matrix, and tokens
constexpr int64_t kMostContext = int64_t{1} << 24;
constexpr int64_t kMostSlots = 64;

class Checker {
 public:
  explicit Checker(const Program& program) : p(program) {}

  void all() {
    within("vocab_size", p.vocab_size, 1, kMostNumbers);
    within("context", p.context, 1, kMostContext);
    within("frequencies", p.frequencies, 0, kMostNumbers);
    for (const auto& b : p.buffers) {
      at = "buffer " + b.name;
      within("rows", static_cast<int64_t>(b.rows), 0, kRowSets - 1);
      within("width", b.width, 1, kMostNumbers);
      within("offset", b.offset, 0, kMostNumbers);
      within("offset + width", b.end(), 1, kMostNumbers);
    }
    for (const auto& w : p.weights) weight(w);
    for (size_t i = 0; i < p.slots.size(); ++i) {
      at = text("slot ", i);
      const Slot& s = p.slots[i];
      check(s.rows == Rows::Tokens || s.rows == Rows::Patches, "its rows are tokens or patches");
      within("kv_heads", s.kv_heads, 1, kMostNumbers);
      within("head_dim", s.head_dim, 1, kMostNumbers);
      within("kv_heads * head_dim", s.kv_heads * s.head_dim, 1, kMostNumbers);
    }
    spelling();
    find_pool();
    stored.assign(p.slots.size(), 0);
    bool tail = false;
    for (size_t i = 0; i < p.ops.size(); ++i) {
      const Op& op = p.ops[i];
      within("kind", static_cast<int64_t>(op.kind), 0, kKinds - 1);
      at = text("operation ", i, " (", name_of(op.kind), ")");
      within("rows", static_cast<int64_t>(op.rows), 0, kRowSets - 1);
      check(after_wanted(op.rows) || !tail, "operations on wanted rows come last");
      tail = tail || after_wanted(op.rows);
      for (float f : op.floats) check(std::isfinite(f), "its numbers are finite");
      operation(op);
    }
    at = "the program";
    within("logits", p.logits, 0, static_cast<int64_t>(p.buffers.size()) - 1);
    const Buffer& logits = p.buffer(p.logits);
    check(logits.rows == Rows::Wanted, "its logits belong to the wanted rows");
    check(logits.width == p.vocab_size, "its logits are as wide as the vocabulary");
    check(!p.ops.empty() && p.ops.back().targets == std::vector<int32_t>{p.logits},
          "its last operation writes the logits");
  }

 private:
  const Program& p;
  std::string at = "the program";
  std::vector<char> stored;
  const Op* pool = nullptr;
  // One more than the largest symbol of the spelling.
  int64_t symbols_ = 0;

  template <class... Parts>
  void check(bool holds, const Parts&... rule) const {
    if (!holds) throw Error(text("not a valid program: ", at, ": ", rule...));
  }
  void within(const char* what, int64_t value, int64_t low, int64_t high) const {
    check(value >= low && value <= high, what, " = ", value, " is not within ", low, " to ", high);
  }
  void counts(const Op& op, size_t sources, size_t targets, size_t weights, size_t ints,
              size_t floats) const {
    check(op.sources.size() == sources, "takes ", sources, " sources, not ", op.sources.size());
    check(op.targets.size() == targets, "takes ", targets, " targets, not ", op.targets.size());
    check(op.weights.size() == weights, "takes ", weights, " weights, not ", op.weights.size());
    check(op.ints.size() == ints, "takes ", ints, " integers, not ", op.ints.size());
    check(op.floats.size() == floats, "takes ", floats, " numbers, not ", op.floats.size());
  }
  const Buffer& buffer(int32_t i, Rows rows) const {
    within("a buffer", i, 0, static_cast<int64_t>(p.buffers.size()) - 1);
    const Buffer& b = p.buffer(i);
    check(b.rows == rows, "buffer ", b.name, " belongs to another set of rows");
    return b;
  }
  const Buffer& source(const Op& op) const { return buffer(op.source(), op.rows); }
  const Buffer& target(const Op& op) const { return buffer(op.target(), op.rows); }
  void apart(const Buffer& a, const Buffer& b) const {
    check(a.rows != b.rows || a.end() <= b.offset || b.end() <= a.offset, "buffers ", a.name,
          " and ", b.name, " share memory");
  }
  // Each number of a target depends on the same number of the source alone.
  void apart_or_same(const Buffer& a, const Buffer& b) const {
    if (&a != &b) apart(a, b);
  }
  const Weight& weight(int32_t i, WeightKind kind) const {
    within("a weight", i, 0, static_cast<int64_t>(p.weights.size()) - 1);
    const Weight& w = p.weight(i);
    check(w.kind == kind, "weight ", w.name, " is of another kind");
    return w;
  }
  void vector(int32_t i, int64_t numbers) const {
    if (i == -1) return;
    const Weight& w = weight(i, WeightKind::Vector);
    check(w.cols == numbers, "vector ", w.name, " has ", w.cols, " numbers, not ", numbers);
  }
  // A matrix or a table of at least `rows` rows.
  void looked_up(int32_t i, int64_t rows, int64_t cols) const {
    within("a weight", i, 0, static_cast<int64_t>(p.weights.size()) - 1);
    const Weight& w = p.weight(i);
    check(w.kind != WeightKind::Vector, "weight ", w.name, " is a vector");
    check(w.rows >= rows && w.cols == cols, "table ", w.name, " is (", w.rows, ", ", w.cols,
          "), at least ", rows, " rows of ", cols, " are needed");
  }
  const Slot& slot(int64_t i, const Op& op, int64_t kv_heads, int64_t head_dim) const {
    within("slot", i, 0, static_cast<int64_t>(p.slots.size()) - 1);
    const Slot& s = p.slot(i);
    check(s.rows == op.rows, "its slot belongs to another set of rows");
    check(s.kv_heads == kv_heads && s.head_dim == head_dim, "its slot has other heads");
    return s;
  }
  void columns(const Buffer& b, int64_t first, int64_t count, int64_t each) const {
    within("a column", first, 0, b.width);
    within("a number of heads or groups", count, 1, kMostNumbers);
    within("a width of heads or groups", each, 1, kMostNumbers);
    check(first + count * each <= b.width, "columns ", first, " to ", first + count * each,
          " lie outside buffer ", b.name);
  }

  void weight(const Weight& w) {
    at = "weight " + w.name;
    const int64_t block = block_size(w.format);
    check(block > 0, "its type, ", static_cast<uint32_t>(w.format), ", is not known");
    within("rows", w.rows, 1, w.kind == WeightKind::Vector ? 1 : kMostRows);
    within("cols", w.cols, 1, kMostNumbers);
    check(w.cols % block == 0, "rows of ", w.cols, " numbers are no whole blocks of ", block);
    const auto expected = static_cast<uint64_t>(w.rows) *
                          static_cast<uint64_t>(w.cols / block * block_bytes(w.format));
    check(w.bytes == expected, "it has ", w.bytes, " bytes, and (", w.rows, ", ", w.cols,
          ") of its type are ", expected);
    if (w.order.empty()) return;
    check(w.kind == WeightKind::Matrix, "a matrix alone may have its rows in another order");
    check(w.order.size() == static_cast<size_t>(w.rows), "it has ", w.rows, " rows in an order of ",
          w.order.size());
    for (int64_t row : w.order) within("a row's place", row, 0, w.rows - 1);
  }

  void spelling() {
    const Spelling& s = p.spelling;
    if (s.slots == 0 && s.symbols.empty()) return;
    at = "the spelling";
    within("slots", s.slots, 1, kMostSlots);
    within("the pad", s.pad, 0, kMostNumbers);
    const auto rows = static_cast<int64_t>(s.symbols.size()) / s.slots;
    check(rows == p.vocab_size, "it spells ", rows, " tokens, not ", p.vocab_size);
    for (int32_t symbol : s.symbols) {
      within("a symbol", symbol, 0, kMostNumbers);
      symbols_ = std::max<int64_t>(symbols_, symbol + 1);
    }
  }
  int64_t slots() const {
    check(p.spelling.slots > 0, "nothing is spelled in this program");
    return p.spelling.slots;
  }

  void find_pool() {
    int pools = 0, spreads = 0;
    for (const auto& op : p.ops) {
      if (op.kind == Kind::Pool) pool = &op, ++pools;
      if (op.kind == Kind::Spread) ++spreads;
    }
    check(pools <= 1 && spreads <= 1, "a program pools and spreads once at most");
  }
  int64_t patch_size() const {
    check(pool && pool->ints.size() == 2, "there are no patches without a POOL");
    within("the patches' size", pool->ints[1], 1, kMostContext);
    return pool->ints[1];
  }

  void operation(const Op& op) {
    if (op.rows == Rows::Patches) patch_size();
    if (op.rows == Rows::Symbols || op.rows == Rows::Spelled) slots();
    switch (op.kind) {
      case Kind::Embed: return embed(op);
      case Kind::NGrams: return ngrams(op);
      case Kind::Matches: return matches(op);
      case Kind::Norm: return norm(op);
      case Kind::Product: return product(op);
      case Kind::Gated: return gated(op);
      case Kind::Activate: return activate(op);
      case Kind::Add:
      case Kind::Scale:
        counts(op, 1, 1, 0, 0, 1);
        return elementwise(op);
      case Kind::Rotate: return rotate(op);
      case Kind::Store: return store(op);
      case Kind::Attention: return attention(op);
      case Kind::Select: return select(op);
      case Kind::Pool: return pooled(op);
      case Kind::Spread: return spread(op);
      case Kind::Within: return within_token(op);
      case Kind::Mean: return mean(op);
      case Kind::Cut: return cut(op);
      case Kind::Logs:
        counts(op, 1, 1, 0, 0, 0);
        return elementwise(op);
      case Kind::Spell: return spell(op);
    }
  }

  void embed(const Op& op) {
    counts(op, 0, 1, 1, 2, 1);
    within("the index", op.ints[0], 0, 3);
    within("accumulate", op.ints[1], 0, 1);
    const auto index = static_cast<Index>(op.ints[0]);
    const bool spelled = op.rows == Rows::Symbols || op.rows == Rows::Spelled;
    check((op.rows == Rows::Tokens && index != Index::Symbol) ||
              (op.rows == Rows::Patches && index == Index::Position) ||
              (op.rows == Rows::Symbols && index == Index::Symbol) ||
              (spelled && index == Index::Offset),
          "its rows have no such index");
    const int64_t rows = index == Index::Token      ? p.vocab_size
                         : index == Index::Position ? p.context
                         : index == Index::Symbol   ? symbols_
                         : spelled                  ? slots()
                                                    : patch_size();
    looked_up(op.weights[0], rows, target(op).width);
  }
  void ngrams(const Op& op) {
    check(op.ints.size() >= 2 && op.ints.size() <= 65, "names 1 to 64 orders");
    const auto orders = static_cast<int64_t>(op.ints.size()) - 1;
    counts(op, 0, 1, 1, op.ints.size(), 0);
    check(op.rows == Rows::Tokens, "looks tokens up");
    within("rows an order", op.ints[0], 1, kMostRows);
    for (int64_t j = 1; j <= orders; ++j) within("an order", op.ints[j], 1, 1024);
    const int64_t width = target(op).width;
    check(width % orders == 0, "its orders lie side by side in ", width, " columns");
    looked_up(op.weights[0], op.ints[0] * orders, width / orders);
  }
  void matches(const Op& op) {
    check(op.ints.size() >= 2 && op.ints.size() <= 65, "names 1 to 64 lengths");
    const auto lengths = static_cast<int64_t>(op.ints.size()) - 1;
    counts(op, 0, 1, 1, op.ints.size(), 0);
    check(op.rows == Rows::Tokens, "looks tokens up");
    within("the vocabulary", op.ints[0], p.vocab_size, kMostNumbers);
    for (int64_t j = 1; j <= lengths; ++j) within("a length", op.ints[j], 1, 1024);
    looked_up(op.weights[0], lengths * (op.ints[0] + 1), target(op).width);
  }
  void norm(const Op& op) {
    counts(op, 1, 1, 2, 4, 1);
    within("its kind", op.ints[0], 0, 1);
    const NormArgs args(op);
    check(op.floats[0] >= 0, "eps is not negative");
    within("columns", args.count, 1, kMostNumbers);
    within("numbers together", args.together, 1, args.count);
    check(args.count % args.together == 0, "its columns are no whole groups");
    columns(source(op), args.column, args.count / args.together, args.together);
    columns(target(op), args.column, args.count / args.together, args.together);
    vector(op.weights[0], args.together);
    vector(op.weights[1], args.together);
    apart_or_same(source(op), target(op));
  }
  void product(const Op& op) {
    check(op.ints.size() >= 4 && op.ints[2] >= 1 && op.ints[2] <= 64, "names 1 to 64 matrices");
    const auto n = static_cast<size_t>(op.ints[2]);
    counts(op, 1, 1, 2 * n, 3 + n, 1);
    within("accumulate", op.ints[0], 0, 1);
    within("activation", op.ints[1], 0, 5);
    std::vector<std::pair<int64_t, int64_t>> taken;
    for (size_t j = 0; j < n; ++j) {
      const Weight& w = weight(op.weights[j], WeightKind::Matrix);
      check(w.cols == source(op).width, "matrix ", w.name, " has ", w.cols, " columns, its source ",
            source(op).width);
      columns(target(op), op.ints[3 + j], 1, w.rows);
      vector(op.weights[n + j], w.rows);
      taken.emplace_back(op.ints[3 + j], op.ints[3 + j] + w.rows);
    }
    // Threads write them at the same time.
    std::sort(taken.begin(), taken.end());
    for (size_t j = 1; j < n; ++j) {
      check(taken[j - 1].second <= taken[j].first, "its matrices write the same columns");
    }
    apart(source(op), target(op));
  }
  void gated(const Op& op) {
    counts(op, 1, 1, 4, 1, 0);
    within("activation", op.ints[0], 0, 5);
    for (size_t j = 0; j < 2; ++j) {
      const Weight& w = weight(op.weights[j], WeightKind::Matrix);
      check(w.cols == source(op).width && w.rows == target(op).width, "matrix ", w.name, " is (",
            w.rows, ", ", w.cols, "), not (", target(op).width, ", ", source(op).width, ")");
      vector(op.weights[2 + j], w.rows);
    }
    apart(source(op), target(op));
  }
  void activate(const Op& op) {
    check(op.sources.size() == 1 || op.sources.size() == 2, "takes one source or two");
    counts(op, op.sources.size(), 1, 0, 1, 0);
    within("activation", op.ints[0], 0, 5);
    elementwise(op);
    if (op.sources.size() == 1) return;
    const Buffer& other = buffer(op.sources[1], op.rows);
    check(other.width == target(op).width, "its buffers differ in width");
    apart(other, target(op));
  }
  void elementwise(const Op& op) {
    check(source(op).width == target(op).width, "its buffers differ in width");
    apart_or_same(source(op), target(op));
  }
  void rotate(const Op& op) {
    // Its source, where it names one, is its target.
    counts(op, op.sources.empty() ? 0 : 1, 1, 0, 5, 0);
    check(op.sources.empty() || op.sources == op.targets, "its source is not its target");
    check(op.rows == Rows::Tokens || op.rows == Rows::Patches, "tokens and patches alone rotate");
    const RotateArgs args(op);
    columns(target(op), args.column, args.heads, args.head_dim);
    within("rotating dimensions", args.dims, 2, args.head_dim);
    check(args.dims == 2 * p.frequencies, args.dims, " dimensions rotate with ", p.frequencies,
          " frequencies");
    within("its layout", op.ints[4], 0, 1);
  }
  void store(const Op& op) {
    counts(op, 1, 0, 0, 5, 0);
    const StoreArgs args(op);
    slot(args.slot, op, args.kv_heads, args.head_dim);
    columns(source(op), args.keys, args.kv_heads, args.head_dim);
    columns(source(op), args.values, args.kv_heads, args.head_dim);
    check(!stored[static_cast<size_t>(args.slot)], "its slot is stored to once already");
    stored[static_cast<size_t>(args.slot)] = 1;
  }
  void attention(const Op& op) {
    counts(op, 1, 1, 1, 6, 1);
    const AttentionArgs args(op);
    slot(args.slot, op, args.kv_heads, args.head_dim);
    check(stored[static_cast<size_t>(args.slot)], "nothing is stored to its slot before");
    columns(source(op), args.column, args.heads, args.head_dim);
    check(args.heads % args.kv_heads == 0, args.heads, " heads are no multiple of ", args.kv_heads);
    check(target(op).width == args.heads * args.head_dim, "its target has ", target(op).width,
          " columns, not ", args.heads * args.head_dim);
    within("the window", args.window, 0, kMostContext);
    vector(op.weights[0], args.heads);
    apart(source(op), target(op));
  }
  void select(const Op& op) {
    counts(op, 1, 1, 0, 0, 0);
    check(op.rows == Rows::Wanted, "its rows are the wanted ones");
    check(buffer(op.source(), Rows::Tokens).width == target(op).width,
          "its buffers differ in width");
  }
  void pooled(const Op& op) {
    counts(op, 1, 1, 0, 2, 0);
    check(op.rows == Rows::Patches, "its rows are the patches");
    within("its kind", op.ints[0], 0, 1);
    check(2 * buffer(op.source(), Rows::Tokens).width == target(op).width,
          "its target is twice as wide as its source");
  }
  void spread(const Op& op) {
    counts(op, 1, 1, 0, 0, 0);
    check(op.rows == Rows::Tokens, "its rows are the tokens");
    patch_size();
    check(buffer(op.source(), Rows::Patches).width == target(op).width,
          "its buffers differ in width");
  }
  void within_token(const Op& op) {
    counts(op, 1, 1, 0, 3, 1);
    slots();
    const WithinArgs args(op);
    within("masked", op.ints[2], 0, 1);
    check(op.rows == Rows::Symbols || (op.rows == Rows::Spelled && !args.masked),
          "its rows are symbols, or spelled ones of which none is masked");
    within("heads", args.heads, 1, kMostNumbers);
    columns(source(op), 0, 3 * args.heads, args.head_dim);
    check(target(op).width == args.heads * args.head_dim, "its target has ", target(op).width,
          " columns, not ", args.heads * args.head_dim);
    apart(source(op), target(op));
  }
  void mean(const Op& op) {
    counts(op, 1, 1, 0, 0, 0);
    slots();
    check(op.rows == Rows::Tokens, "its rows are the tokens");
    check(buffer(op.source(), Rows::Symbols).width == target(op).width,
          "its buffers differ in width");
  }
  void cut(const Op& op) {
    counts(op, 1, 1, 0, 0, 0);
    check(op.rows == Rows::Spelled, "its rows are the spelled ones");
    check(buffer(op.source(), Rows::Wanted).width == slots() * target(op).width,
          "its source is not as wide as its slots together");
  }
  void spell(const Op& op) {
    counts(op, 1, 1, 0, 0, 0);
    slots();
    check(op.rows == Rows::Wanted, "its rows are the wanted ones");
    const int64_t width = buffer(op.source(), Rows::Spelled).width;
    check(width >= symbols_, "its source has ", width, " columns for ", symbols_, " symbols");
    check(target(op).width == p.vocab_size, "its target is not as wide as the vocabulary");
  }
};

}  // namespace

void validate(const Program& program) { Checker(program).all(); }

const char* name_of(Kind kind) {
  static const char* const names[kKinds] = {
      "EMBED", "NGRAMS", "MATCHES", "NORM",   "PRODUCT", "GATED", "ACTIVATE", "ADD",
      "SCALE", "ROTATE", "STORE",   "ATTENTION", "SELECT", "POOL",  "SPREAD",   "WITHIN",
      "MEAN",  "CUT",    "LOGS",    "SPELL"};
  return names[static_cast<int>(kind)];
}

}  // namespace flyweight
