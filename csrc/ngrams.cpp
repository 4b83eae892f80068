#include "ngrams.h"

#include <algorithm>

namespace flyweight {

uint64_t suffix_hash(const int32_t* tokens, int64_t position, int64_t n) {
  constexpr uint64_t multiplier = 0x9E3779B97F4A7C15u;
  uint64_t h = static_cast<uint64_t>(n), power = 1;
  for (int64_t k = 0; k < n && k <= position; ++k) {
    power *= multiplier;
    h += (static_cast<uint64_t>(tokens[position - k]) + 1) * power;
  }
  h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9u;
  h = (h ^ (h >> 27)) * 0x94D049BB133111EBu;
  return h ^ (h >> 31);
}

void MatchIndex::reserve(const std::vector<int32_t>& tokens, size_t positions) {
  links_.reserve(positions);
  size_t size = 1024;
  while (size < positions) size *= 2;
  if (size <= heads_.size()) return;
  const size_t known = links_.size();
  heads_.assign(size, -1);
  links_.clear();
  while (links_.size() < known) find_and_add(tokens.data());
}

int64_t MatchIndex::find_and_add(const int32_t* tokens) {
  const auto i = static_cast<int64_t>(links_.size());
  // An m-gram lies whole within the sequence.
  if (i < length_ - 1) {
    links_.push_back(-1);
    return -1;
  }
  int32_t& head = heads_[bucket(tokens, i)];
  const int32_t* end = tokens + i + 1;
  int64_t found = head;
  while (found >= 0 && !std::equal(end - length_, end, tokens + found + 1 - length_)) {
    found = links_[static_cast<size_t>(found)];
  }
  links_.push_back(head);
  head = static_cast<int32_t>(i);
  return found;
}

void MatchIndex::truncate(const int32_t* tokens, size_t positions) {
  while (links_.size() > positions) {
    const auto i = static_cast<int64_t>(links_.size()) - 1;
    if (i >= length_ - 1) heads_[bucket(tokens, i)] = links_.back();
    links_.pop_back();
  }
}

}  // namespace flyweight
