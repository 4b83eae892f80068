#include "sample.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>

#include "error.h"

namespace flyweight {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();
// Logits so far below the largest have less than 2^-60 of its probability: never drawn.
constexpr float kTooFar = 42.0f;

uint64_t mix(uint64_t h) {
  h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9u;
  h = (h ^ (h >> 27)) * 0x94D049BB133111EBu;
  return h ^ (h >> 31);
}

// e^x for -87 <= x <= 0 (x below counts as -87), written so that compilers vectorise it.
inline float exponential(float x) {
  x = x > -87.0f ? x : -87.0f;
  constexpr float round = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const float n = (x * 1.44269504f + round) - round;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
}

constexpr int64_t kLanes = 16;

// The largest number, -inf where there is none.
float largest_of(const float* x, int64_t n) {
  float lanes[kLanes];
  std::fill_n(lanes, kLanes, kNever);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] = x[i + l] > lanes[l] ? x[i + l] : lanes[l];
  }
  for (; i < n; ++i) lanes[0] = x[i] > lanes[0] ? x[i] : lanes[0];
  float top = kNever;
  for (float lane : lanes) top = lane > top ? lane : top;
  return top;
}

}  // namespace

double log_sum_exp(const float* x, int64_t n) {
  const float top = largest_of(x, n);
  if (std::isinf(top)) return top;
  double total = 0;
  // Sums of floats are short, those of doubles long.
  constexpr int64_t run = 64 * kLanes;
  int64_t i = 0;
  while (i + kLanes <= n) {
    float lanes[kLanes] = {};
    const int64_t end = std::min(n - kLanes, i + run - kLanes);
    for (; i <= end; i += kLanes) {
      for (int64_t l = 0; l < kLanes; ++l) lanes[l] += exponential(x[i + l] - top);
    }
    for (float lane : lanes) total += lane;
  }
  for (; i < n; ++i) total += exponential(x[i] - top);
  return top + std::log(total);
}

double draw(uint64_t seed, uint64_t n) {
  constexpr uint64_t g = 0x9E3779B97F4A7C15u;
  return static_cast<double>(mix(mix(seed + g) + (n + 1) * g) >> 11) * 0x1p-53;
}

void Sampling::check(int64_t vocab) const {
  require(std::isfinite(temperature) && temperature >= 0, "temperature = ", temperature,
          ": a number of 0 or more is wanted");
  require(top_k >= 0, "top_k = ", top_k, ": 1 or more is wanted, or 0 for all");
  require(top_p > 0 && top_p <= 1, "top_p = ", top_p, ": more than 0 and at most 1 is wanted");
  require(min_p >= 0 && min_p <= 1, "min_p = ", min_p, ": 0 to 1 is wanted");
  require(std::isfinite(repetition_penalty) && repetition_penalty > 0, "repetition_penalty = ",
          repetition_penalty, ": a number above 0 is wanted");
  require(penalty_last >= 0, "penalty_last = ", penalty_last, ": 0 or more is wanted");
  require(min_tokens >= 0, "min_tokens = ", min_tokens, ": 0 or more is wanted");
  require(vocabulary >= 0 && vocabulary <= vocab, "vocabulary = ", vocabulary,
          ": the model has ", vocab, " logits");
  require(top_logprobs >= -1 && top_logprobs <= vocab, "top_logprobs = ", top_logprobs,
          ": 0 to ", vocab, " is wanted, or -1 for no log probabilities");
  for (const auto& list : {stops, never}) {
    for (int32_t id : list) {
      require(id >= 0 && id < vocab, "token ", id, " is not within the vocabulary of ", vocab);
    }
  }
  // Masked, something must be left to choose even where nothing may stop yet.
  std::vector<int32_t> masked(never);
  masked.insert(masked.end(), stops.begin(), stops.end());
  std::sort(masked.begin(), masked.end());
  masked.erase(std::unique(masked.begin(), masked.end()), masked.end());
  const int64_t allowed = vocabulary ? vocabulary : vocab;
  const auto below = std::lower_bound(masked.begin(), masked.end(), allowed) - masked.begin();
  require(below < allowed, "no token is left that may be chosen");
}

Sampler::Sampler(Sampling settings, int64_t vocab_size)
    : settings_(std::move(settings)), vocab_(vocab_size) {
  settings_.check(vocab_size);
  if (settings_.repetition_penalty != 1.0f) seen_.resize(static_cast<size_t>(vocab_size));
}

Choice Sampler::choose(float* logits, std::span<const int32_t> history, int64_t made) {
  Choice choice{-1, 0.0, {}};
  double total = 0;
  const bool reports = settings_.top_logprobs >= 0;
  if (reports) {
    report(logits, choice);
    total = log_sum_exp(logits, vocab_);
    raw_.assign(logits, logits + vocab_);
  }
  if (settings_.repetition_penalty != 1.0f) penalise(logits, history);
  mask(logits, made);
  const float largest = largest_of(logits, vocab_);
  require(std::isfinite(largest), "the model's logits are not numbers; its weights are damaged");
  if (settings_.temperature == 0) {
    choice.token = static_cast<int32_t>(std::find(logits, logits + vocab_, largest) - logits);
  } else {
    choice.token = draw_one(logits, largest, settings_.drawn + static_cast<uint64_t>(made));
  }
  if (reports) choice.logprob = raw_[static_cast<size_t>(choice.token)] - total;
  return choice;
}

void Sampler::report(const float* logits, Choice& choice) {
  const auto n = static_cast<size_t>(settings_.top_logprobs);
  if (n == 0) return;
  const double total = log_sum_exp(logits, vocab_);
  ids_.resize(static_cast<size_t>(vocab_));
  for (size_t i = 0; i < ids_.size(); ++i) ids_[i] = static_cast<int32_t>(i);
  // What is no number comes last, so that the order is one.
  const auto value = [&](int32_t id) { return std::isnan(logits[id]) ? kNever : logits[id]; };
  const auto likelier = [&](int32_t a, int32_t b) {
    return value(a) != value(b) ? value(a) > value(b) : a < b;
  };
  std::partial_sort(ids_.begin(), ids_.begin() + static_cast<int64_t>(n), ids_.end(), likelier);
  for (size_t i = 0; i < n; ++i) choice.top.emplace_back(ids_[i], logits[ids_[i]] - total);
}

void Sampler::mask(float* logits, int64_t made) const {
  if (settings_.vocabulary) std::fill(logits + settings_.vocabulary, logits + vocab_, kNever);
  for (int32_t id : settings_.never) logits[id] = kNever;
  if (made < settings_.min_tokens) {
    for (int32_t id : settings_.stops) logits[id] = kNever;
  }
}

void Sampler::penalise(float* logits, std::span<const int32_t> history) {
  const auto last = static_cast<size_t>(settings_.penalty_last);
  if (last && last < history.size()) history = history.last(last);
  for (int32_t id : history) {
    char& seen = seen_[static_cast<size_t>(id)];
    if (seen) continue;
    seen = 1;
    float& x = logits[id];
    x = x > 0 ? x / settings_.repetition_penalty : x * settings_.repetition_penalty;
  }
  for (int32_t id : history) seen_[static_cast<size_t>(id)] = 0;
}

int32_t Sampler::draw_one(float* logits, float largest, uint64_t n) {
  const float temperature = settings_.temperature;
  float lowest = largest - kTooFar * temperature;
  const auto top_k = static_cast<size_t>(settings_.top_k);
  if (top_k && top_k < static_cast<size_t>(vocab_)) {
    order_.clear();
    for (int64_t i = 0; i < vocab_; ++i) {
      if (logits[i] >= lowest) order_.push_back(logits[i]);
    }
    if (top_k < order_.size()) {
      const auto kth = order_.begin() + static_cast<int64_t>(top_k) - 1;
      std::nth_element(order_.begin(), kth, order_.end(), std::greater<>());
      lowest = *kth;
    }
  }
  candidates_.clear();
  double mass = 0;
  for (int64_t i = 0; i < vocab_; ++i) {
    if (!(logits[i] >= lowest)) continue;
    const double p = std::exp((static_cast<double>(logits[i]) - largest) / temperature);
    candidates_.emplace_back(p, static_cast<int32_t>(i));
    mass += p;
  }
  size_t kept = candidates_.size();
  if (settings_.top_p < 1) {
    const auto likelier = [](const auto& a, const auto& b) {
      return a.first != b.first ? a.first > b.first : a.second < b.second;
    };
    // Mostly the first few reach the mass: sorted as far as is needed.
    double before = 0;
    size_t sorted = 0;
    for (kept = 0; kept < candidates_.size() && before < settings_.top_p * mass; ++kept) {
      if (kept == sorted) {
        const size_t next = std::min(candidates_.size(), std::max<size_t>(64, 4 * sorted));
        const auto begin = candidates_.begin();
        std::partial_sort(begin + static_cast<int64_t>(sorted), begin + static_cast<int64_t>(next),
                          candidates_.end(), likelier);
        sorted = next;
      }
      before += candidates_[kept].first;
    }
  }
  if (settings_.min_p > 0) {
    // The largest has p = 1.
    const auto end = std::remove_if(
        candidates_.begin(), candidates_.begin() + static_cast<int64_t>(kept),
        [&](const auto& c) { return c.first < settings_.min_p; });
    kept = static_cast<size_t>(end - candidates_.begin());
  }
  double left = 0;
  for (size_t i = 0; i < kept; ++i) left += candidates_[i].first;
  left *= draw(settings_.seed, n);
  for (size_t i = 0; i + 1 < kept; ++i) {
    left -= candidates_[i].first;
    if (left < 0) return candidates_[i].second;
  }
  return candidates_[kept - 1].second;
}

}  // namespace flyweight
