// The operations that look at tokens around a row: n-grams, matches, and patches.
#include <algorithm>

#include "executor.h"

namespace flyweight {

void Executor::ngrams(const Op& op, int thread) {
  const auto orders = static_cast<int64_t>(op.ints.size()) - 1;
  const int64_t table_rows = op.ints[0], dim = width(op.target()) / orders;
  const auto [first, last] = my_rows(op, thread);
  for (int64_t r = first; r < last; ++r) {
    const Sequence& sequence = *batch_.segment(op.rows, r).sequence;
    const int64_t position = batch_.position(op.rows, r);
    float* y = row(op.target(), r);
    for (int64_t j = 0; j < orders; ++j) {
      const uint64_t hash =
          suffix_hash(sequence.tokens().data(), position, op.ints[static_cast<size_t>(j) + 1]);
      const auto found = static_cast<int64_t>(hash % static_cast<uint64_t>(table_rows));
      weights_.row(op.weights[0], j * table_rows + found, y + j * dim);
    }
  }
}

void Executor::matches(const Op& op, int thread) {
  const int64_t vocabulary = op.ints[0], n = width(op.target());
  float* looked_up = floats(scratch_[static_cast<size_t>(thread)].row);
  const auto& lengths = shape_->match_lengths;
  const auto [first, last] = my_rows(op, thread);
  for (int64_t r = first; r < last; ++r) {
    for (size_t j = 1; j < op.ints.size(); ++j) {
      const auto place = std::lower_bound(lengths.begin(), lengths.end(), op.ints[j]);
      const int32_t follower = batch_.followers(r)[place - lengths.begin()];
      const int64_t i = follower < 0 ? vocabulary : follower;
      weights_.row(op.weights[0], static_cast<int64_t>(j - 1) * (vocabulary + 1) + i, looked_up);
      kernels_.add(n, 1.0f, looked_up, row(op.target(), r));
    }
  }
}

// A thread has some columns of all patches: the sums run through the bytes in their order.
void Executor::pool(const Op& op, int thread) {
  const int64_t n = width(op.source());
  const auto [first, last] = pool_.share(n, thread);
  for (const Segment& segment : batch_.segments()) {
    float* sum = segment.sequence->open_sum();
    int64_t count = segment.open, patch = segment.first[1];
    for (int64_t r = segment.first[0]; r < segment.first[0] + segment.count[0]; ++r) {
      const float* x = row(op.source(), r);
      const Sequence::Cut& cut = batch_.cut(r);
      if (cut.begins) {
        std::copy(x + first, x + last, sum + first);
        count = 0;
      } else {
        for (int64_t c = first; c < last; ++c) sum[c] += x[c];
      }
      ++count;
      if (!cut.ends) continue;
      float* y = row(op.target(), patch++);
      for (int64_t c = first; c < last; ++c) {
        y[c] = sum[c] / static_cast<float>(count);
        y[n + c] = x[c];
      }
    }
  }
}

void Executor::spread(const Op& op, int thread) {
  const int64_t n = width(op.target());
  const auto [first, last] = my_rows(op, thread);
  for (int64_t r = first; r < last; ++r) {
    const Segment& segment = batch_.segment(op.rows, r);
    const int64_t patch = batch_.patch(r), fresh = patch - segment.position[1];
    if (patch < 0) continue;
    // Of this run's patches there are rows; of those before, what the sequence kept.
    const float* x = fresh >= 0 ? row(op.source(), segment.first[1] + fresh)
                                : segment.sequence->spread(patch);
    if (batch_.cut(r).ends) std::copy_n(x, n, segment.sequence->spread(patch));
    kernels_.add(n, 1.0f, x, row(op.target(), r));
  }
}

}  // namespace flyweight
