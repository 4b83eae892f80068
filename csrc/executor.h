// Runs a program on the new tokens of some sequences.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "batch.h"
#include "schedule.h"
#include "sequence.h"
#include "threads.h"
#include "weights.h"

namespace flyweight {

// Numbers of a product's results that a thread works on between two passes over its weights.
constexpr int64_t kTileNumbers = int64_t{1} << 16;

class Executor {
 public:
  // isa: a name of instruction_sets(), or "" for the best. cache_limit: bytes of all sequences'
  // caches, 0 for no limit. Validates the program; its weights' data must live until packed, those
  // of which weight_stays says so as long as the executor. Throws Error.
  Executor(Program program, int threads, const std::string& isa, bool pin, size_t cache_limit);

  // A new, empty sequence; see Sequence.
  std::shared_ptr<Sequence> begin(std::vector<float> frequencies, float gain, float divisor,
                                  Format cache) const;

  // New tokens of one sequence, and those of them whose logits are asked for.
  struct Feed {
    Sequence* sequence;
    std::span<const int32_t> tokens;
    enum class Want { None, Last, All } want;
  };
  // What is done with the logits of a wanted row, on one of the pool's threads: which of the
  // feeds, which of its tokens, the logits, vocab_size of them, which it may overwrite.
  using Consumer = std::function<void(size_t feed, int64_t token, float* logits)>;

  // Appends the tokens to their sequences, all or, where it throws (an Error that says what does
  // not fit, before the first row is computed), none of them. `stop` is asked between runs of
  // kMostRowsAtOnce rows; where it says true the tokens that are left are not appended. Returns how
  // many were, in the order of the feeds.
  int64_t feed(std::span<const Feed>, const Consumer&, const std::function<bool()>& stop = {});

  // Throws Error where a feed does not fit. Waits for a run at hand.
  void check_feed(const Feed&) const;

  const Program& program() const { return program_; }
  const char* isa() const { return kernels_.isa; }
  int threads() const { return pool_.size(); }
  // See Pool.
  void check_process() const { pool_.check_process(); }
  size_t weight_bytes() const { return weights_.bytes(); }
  // Whether weight i is read from its data for as long as there is the executor.
  bool weight_stays(size_t i) const { return weights_.stays(i); }
  // Waits for a run at hand.
  size_t buffer_bytes() const;
  size_t cache_bytes() const { return account_->used; }

 private:
  // What a thread works in.
  struct Scratch {
    Region inputs, row, tile, attention;
  };
  // Work of a row that is wanted: its row in the batch, its feed, its token there.
  struct Wanted {
    int64_t row;
    size_t feed;
    int64_t token;
  };

  void check(std::span<const Feed>) const;
  void check_one(const Feed&) const;
  // Room for a run of so many rows over caches of so many blocks.
  void make_room(int64_t tokens, int64_t wanted, int64_t blocks);
  void run(const Consumer&);
  void choose_chunk(int64_t first);
  void run_steps(const std::vector<Step>&, int thread);
  void run_op(const Step&, int thread);

  // rows.cpp
  void angles(int set, Pool::Range rows);
  void embed(const Op&, int thread);
  void norm(const Step&, int thread);
  void norm_groups(const Op&, Pool::Range groups, const float* x, float* y) const;
  void activate(const Op&, int thread);
  void add(const Op&, int thread);
  void scale(const Op&, int thread);
  void rotate(const Step&, int thread);
  void select(const Op&, int thread);
  // products.cpp
  void prepare(const Step&, int thread);
  void product(const Step&, int thread);
  void product_panels(const Op&, size_t matrix, const std::byte* inputs, Pool::Range,
                      float* tile) const;
  void gated(const Step&, int thread);
  void gated_panels(const Op&, const std::byte* inputs, Pool::Range, float* tile) const;
  // Where a matrix's prepared inputs lie: after `before` bytes per row, `stride` bytes apart.
  struct InputPlace {
    size_t before, stride;
    bool first;  // the first matrix of its format
  };
  InputPlace input_place(const Op&, size_t matrix) const;
  size_t input_bytes(const Op&) const;
  void prepare_rows(const Step&, std::byte* out, Pool::Range rows, int thread) const;
  const std::byte* inputs_of(const Step&, int thread);
  void multiply(const Op&, size_t matrix, const std::byte* inputs, int64_t panel, int64_t count,
                float* out, int64_t stride) const;
  // attention.cpp
  void store(const Step&, int thread);
  void attention(const Step&, int thread);
  struct Heads;
  void attend(const Heads&, Pool::Range some, int64_t first, int64_t rows, Pool::Range blocks,
              float* out, int thread) const;
  Pool::Range blocks_of(const Heads&, int64_t first, int64_t rows) const;
  void give(const Heads&, Pool::Range some, int64_t first, int64_t rows, float* at) const;
  void attend_split(const Heads&, int thread);
  void attend_many(const Heads&, int thread);
  size_t attention_scratch() const;
  // Of the partial results of few rows, per block of the cache.
  size_t partial_bytes() const;
  // bytes.cpp
  void ngrams(const Op&, int thread);
  void matches(const Op&, int thread);
  void pool(const Op&, int thread);
  void spread(const Op&, int thread);
  // slots.cpp
  void within(const Op&, int thread);
  void mean(const Op&, int thread);
  void cut(const Op&, int thread);
  void logs(const Op&, int thread);
  void spell(const Op&, int thread);
  // The symbol of a row of Rows::Symbols.
  int32_t symbol(int64_t r) const;
  // How many of a token's slots count: those before its first pad, the first always.
  int64_t real_slots(int32_t token) const;
  size_t within_scratch() const;

  int64_t rows(Rows set) const { return rows_[static_cast<size_t>(set)]; }
  float* row(int32_t buffer, int64_t r) const {
    const Buffer& b = program_.buffer(buffer);
    const auto set = static_cast<size_t>(b.rows);
    return reinterpret_cast<float*>(arenas_[set].data()) + b.offset * rows_[set] + r * b.width;
  }
  int64_t width(int32_t buffer) const { return program_.buffer(buffer).width; }
  Pool::Range my_rows(const Op& op, int thread) const { return pool_.share(rows(op.rows), thread); }
  float* floats(const Region& region) const { return reinterpret_cast<float*>(region.data()); }

  const Program program_;
  const Kernels& kernels_;
  Pool pool_;
  Weights weights_;
  std::shared_ptr<SequenceShape> shape_;
  std::shared_ptr<CacheAccount> account_;

  // --- Of the run at hand
  Batch batch_;
  int64_t rows_[kRowSets] = {};
  int64_t arena_width_[kRowSets] = {};
  Region arenas_[kRowSets];
  std::vector<Scratch> scratch_;
  // Prepared inputs of many rows, for all threads.
  Region shared_inputs_;
  size_t most_input_bytes_ = 0;
  int64_t most_width_ = 0;
  // Partial results of attention over several blocks.
  Region partials_;
  bool rotates_[2] = {false, false};
  // cos and sin of each row's angles, by set.
  Region angles_[2];
  // Steps by how many rows there are: [tokens - 1][patches][symbols], and [wanted - 1][spelled].
  std::vector<Step> body_[2][3][3], tail_[2][3];
  std::vector<Wanted> wanted_;
  // The wanted rows of this run's chunk begin here.
  int64_t chunk_ = 0;
  int64_t most_wanted_ = 1;
  // Whether a call has been answered: what of the weights was left unpacked so far is packed by and
  // by.
  bool warm_ = false;
  // New tokens of a run at most: fewer where each has rows of symbols.
  int64_t most_tokens_ = kMostRowsAtOnce;
};

}  // namespace flyweight
