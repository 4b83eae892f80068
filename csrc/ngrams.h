// Looked-up context features of tokens, by the definitions of flyweight/text/ngrams.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace flyweight {

// mix(n + sum over k < n of (x[i - k] + 1) M^(k + 1)) modulo 2^64, for the token at `position`;
// what lies before the sequence counts as 0.
uint64_t suffix_hash(const int32_t* tokens, int64_t position, int64_t n);

// Finds the most recent earlier place where the last m tokens stood: positions are chained by
// their hash's bucket, as in deflate, and the tokens compared, so that dropping the newest
// positions is walking the chains back.
class MatchIndex {
 public:
  explicit MatchIndex(int64_t length) : length_(length) {}
  // Makes room for `positions`; the only call that allocates.
  void reserve(const std::vector<int32_t>& tokens, size_t positions);
  // The last earlier position with the same m tokens up to it as the next position, or -1; the
  // next position, tokens[added], becomes findable.
  int64_t find_and_add(const int32_t* tokens);
  void truncate(const int32_t* tokens, size_t positions);
  size_t bytes() const { return (heads_.capacity() + links_.capacity()) * sizeof(int32_t); }

 private:
  size_t bucket(const int32_t* tokens, int64_t position) const {
    return suffix_hash(tokens, position, length_) & (heads_.size() - 1);
  }
  int64_t length_;
  // The newest position of a bucket, and of each position the one before it in its bucket; -1: none.
  std::vector<int32_t> heads_, links_;
};

}  // namespace flyweight
