#include "batch.h"

namespace flyweight {

Batch::Batch(const SequenceShape& shape)
    : lengths_(shape.match_lengths.size()), patches_(shape.patch_size > 0) {
  constexpr auto most = static_cast<size_t>(kMostRowsAtOnce);
  segments_.reserve(most);
  for (int set = 0; set < 2; ++set) {
    position_of_[set].reserve(most);
    segment_of_[set].reserve(most);
  }
  token_.reserve(most);
  patch_.reserve(most);
  cut_.reserve(most);
  followers_.reserve(most * lengths_);
}

void Batch::clear() {
  segments_.clear();
  for (int set = 0; set < 2; ++set) {
    position_of_[set].clear();
    segment_of_[set].clear();
    lone_[set] = true;
  }
  token_.clear();
  patch_.clear();
  cut_.clear();
  followers_.clear();
}

void Batch::add(Sequence& sequence, const int32_t* tokens, int64_t count) {
  const auto index = static_cast<int32_t>(segments_.size());
  Segment segment{&sequence,
                  {rows(Rows::Tokens), rows(Rows::Patches)},
                  {count, 0},
                  {sequence.length(), sequence.patches()},
                  sequence.open_count()};
  for (int64_t i = 0; i < count; ++i) {
    const auto row = token_.size();
    token_.push_back(tokens[i]);
    position_of_[0].push_back(sequence.length());
    segment_of_[0].push_back(index);
    if (patches_) {
      cut_.push_back(sequence.cut(tokens[i]));
      if (cut_.back().ends) {
        position_of_[1].push_back(sequence.patches() - 1);
        segment_of_[1].push_back(index);
        ++segment.count[1];
      }
      patch_.push_back(static_cast<int32_t>(sequence.patches()) - 1);
    }
    followers_.resize((row + 1) * lengths_);
    sequence.append(tokens[i], followers_.data() + row * lengths_);
  }
  for (int set = 0; set < 2; ++set) {
    const int64_t seen = segment.position[set] + segment.count[set];
    lone_[set] = lone_[set] && segment.count[set] <= 1 && seen <= sequence.block_positions();
  }
  segments_.push_back(segment);
}

}  // namespace flyweight
