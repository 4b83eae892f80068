// The rows of one run of the program: which token of which sequence each is, where it stands, and
// which patches the tokens complete. Made on one thread before the run.
#pragma once

#include <vector>

#include "sequence.h"

namespace flyweight {

// New tokens of all sequences in a run at most.
constexpr int64_t kMostRowsAtOnce = 512;

// The rows of one sequence, by set: tokens, patches.
struct Segment {
  Sequence* sequence;
  int64_t first[2], count[2];
  // The position of the first row.
  int64_t position[2];
  // Bytes of the patch that was open before.
  int64_t open;
};

class Batch {
 public:
  explicit Batch(const SequenceShape&);

  void clear();
  // Appends tokens to a sequence, which has reserved room for them, and their rows to the batch.
  void add(Sequence&, const int32_t* tokens, int64_t count);

  int64_t rows(Rows set) const { return static_cast<int64_t>(position_of_[at(set)].size()); }
  const std::vector<Segment>& segments() const { return segments_; }
  const Segment& segment(Rows set, int64_t row) const {
    return segments_[static_cast<size_t>(segment_of_[at(set)][static_cast<size_t>(row)])];
  }
  int64_t position(Rows set, int64_t row) const {
    return position_of_[at(set)][static_cast<size_t>(row)];
  }
  int32_t token(int64_t row) const { return token_[static_cast<size_t>(row)]; }
  const Sequence::Cut& cut(int64_t row) const { return cut_[static_cast<size_t>(row)]; }
  // The last complete patch at or before a token's row, counted within its sequence; -1: none.
  int32_t patch(int64_t row) const { return patch_[static_cast<size_t>(row)]; }
  // What followed the shape's match lengths, one after another; -1: none.
  const int32_t* followers(int64_t row) const {
    return followers_.data() + static_cast<size_t>(row) * lengths_;
  }
  // Whether no row of the set sees another row of the batch or more than a block of the cache.
  bool lone(Rows set) const { return lone_[at(set)]; }

 private:
  static size_t at(Rows set) { return static_cast<size_t>(set); }

  size_t lengths_;
  bool patches_;
  std::vector<Segment> segments_;
  std::vector<int64_t> position_of_[2];
  std::vector<int32_t> segment_of_[2], token_, patch_, followers_;
  std::vector<Sequence::Cut> cut_;
  bool lone_[2] = {true, true};
};

}  // namespace flyweight
