// What decoding one sequence remembers: its tokens, keys and values, and the patches' state.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "memory.h"
#include "ngrams.h"
#include "program.h"
#include "threads.h"

namespace flyweight {

// Positions of a block of the cache, and of one call to the attention kernel: a row's result is
// folded over whole blocks from the first on, however the work is split.
constexpr int64_t kCacheBlock = 256;

// How a program's sequences are laid out; one for all of them.
struct SequenceShape {
  const Program* program;
  const Kernels* kernels;
  // The pool's patches; size 0 where the program has none.
  bool words = false;
  int64_t patch_size = 0, pooled_width = 0, spread_width = 0;
  // All lengths that matches are looked for, once each.
  std::vector<int64_t> match_lengths;

  SequenceShape(const Program&, const Kernels&, const Pool&);

  // Held while the executor runs, and by who reads or changes a sequence from outside. Throws Error
  // where it would never come: in a fork, whose threads are not there to let go, and in a signal
  // handler that interrupted a run.
  class Alone {
   public:
    explicit Alone(const SequenceShape&);
    ~Alone();
    Alone(const Alone&) = delete;

   private:
    const SequenceShape& shape_;
  };
  Alone alone() const { return Alone(*this); }

 private:
  const Pool& pool_;
  mutable std::mutex busy_;
  mutable std::atomic<std::thread::id> holder_{};
};

// Bytes of all caches of an executor, against its limit.
struct CacheAccount {
  size_t limit = 0;  // 0: none
  std::atomic<size_t> used{0};
};

class Sequence {
 public:
  // See set_positions. Throws Error where the format or the number of frequencies does not fit.
  Sequence(std::shared_ptr<const SequenceShape>, std::shared_ptr<CacheAccount>, Format cache,
           std::vector<float> frequencies, float gain, float divisor);
  ~Sequence();
  Sequence(const Sequence&) = delete;
  Sequence& operator=(const Sequence&) = delete;

  // --- Tokens
  const std::vector<int32_t>& tokens() const { return tokens_; }
  int64_t length() const { return static_cast<int64_t>(tokens_.size()); }
  // Forgets all but the first `length` tokens, or, where patches are pooled, but those of the
  // complete patches among them. Returns how many are left.
  int64_t truncate(int64_t length);
  std::shared_ptr<Sequence> copy() const;
  size_t bytes() const { return charged_; }

  // --- Growing, for the batch that is being made. reserve may throw, and then changed nothing
  // that counts; the others do not.
  void reserve(int64_t new_tokens);
  // Appends a token. followers: what followed each of the shape's match lengths, -1 for none.
  void append(int32_t token, int32_t* followers);
  struct Cut {
    int32_t offset;     // the byte's place in its patch
    bool begins, ends;  // whether a patch begins or ends with it
  };
  // How the next token falls into patches; to be called before it is appended.
  Cut cut(int32_t token);
  int64_t patches() const { return static_cast<int64_t>(patch_ends_.size()); }

  // --- The cache. Keys of a head lie one after another within a block.
  int64_t remembered(Rows rows) const { return rows == Rows::Patches ? patches() : length(); }
  std::byte* keys(int64_t slot, int64_t block, int64_t head) const {
    return part(slot, block, 2 * head);
  }
  std::byte* values(int64_t slot, int64_t block, int64_t head) const {
    return part(slot, block, 2 * head + 1);
  }
  size_t stride(int64_t slot) const { return places_[static_cast<size_t>(slot)].stride; }
  int64_t block_positions() const { return block_; }

  // --- The open patch: the sum of its bytes' rows, and how many they are.
  float* open_sum() { return open_sum_.data(); }
  int64_t open_count() const { return fill_; }
  // What the core gave for patch p, to be added to the bytes after it.
  float* spread(int64_t p) { return spread_.data() + p * shape_->spread_width; }

  // --- How positions are read from here on: rotation's frequencies, what rotated numbers are
  // multiplied by, the divisor of ALiBi's slopes. Keys that are stored stay as they are.
  void set_positions(std::vector<float> frequencies, float gain, float divisor);
  const std::vector<float>& frequencies() const { return frequencies_; }
  float gain() const { return gain_; }
  float divisor() const { return divisor_; }

  const Format format;
  // The shape that it was made for: a sequence serves one executor.
  const SequenceShape* shape() const { return shape_.get(); }

 private:
  struct Place {
    size_t offset, stride;
  };
  std::byte* part(int64_t slot, int64_t block, int64_t which) const {
    const Place& place = places_[static_cast<size_t>(slot)];
    const auto& blocks = blocks_[static_cast<int>(shape_->program->slot(slot).rows)];
    return blocks[static_cast<size_t>(block)].data() + place.offset +
           static_cast<size_t>(which * block_) * place.stride;
  }
  void grow(int set, int64_t positions);

  std::shared_ptr<const SequenceShape> shape_;
  std::shared_ptr<CacheAccount> account_;
  size_t charged_ = 0;
  int64_t block_;
  std::vector<Place> places_;
  size_t block_bytes_[2] = {0, 0};
  // By set of rows: tokens, patches.
  std::vector<Region> blocks_[2];
  std::vector<int32_t> tokens_, patch_ends_;
  std::vector<MatchIndex> matches_;
  std::vector<float> open_sum_, spread_;
  int64_t fill_ = 0;
  std::vector<float> frequencies_;
  float gain_ = 1, divisor_ = 1;
};

}  // namespace flyweight
