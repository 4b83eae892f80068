// Choosing the next token from logits.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace flyweight {

// In this order, as flyweight/model/sample.py has it: repetition penalty, what is never chosen,
// temperature, top-k, softmax, top-p, min-p.
struct Sampling {
  float temperature = 0;        // 0: the largest logit, the lowest id among equals
  int64_t top_k = 0;            // 0: all; what equals the k-th largest is kept
  double top_p = 1;             // the smallest set whose mass reaches it (arXiv:1904.09751)
  double min_p = 0;             // at least so many times the largest probability
  float repetition_penalty = 1; // divides positive logits of tokens seen, multiplies negative ones
  int64_t penalty_last = 0;     // seen among so many last tokens; 0: among all of the sequence
  uint64_t seed = 0;
  uint64_t drawn = 0;           // draws of this seed that were made before
  int64_t min_tokens = 0;       // no stop before so many tokens
  std::vector<int32_t> stops;   // tokens that end the text
  std::vector<int32_t> never;   // tokens that are never chosen
  int64_t vocabulary = 0;       // ids from here on stand for nothing; 0: all ids stand for something
  int64_t top_logprobs = -1;    // how many of the likeliest to report; -1: no log probabilities

  // Throws Error unless the settings make sense for a vocabulary of so many logits.
  void check(int64_t vocab_size) const;
};

struct Choice {
  int32_t token;
  // In nats, of the model's own distribution: before penalty, temperature and all else.
  double logprob;
  std::vector<std::pair<int32_t, double>> top;
};

// ln of the sum of e^x over n numbers, to float32's precision.
double log_sum_exp(const float* x, int64_t n);

// Number n of a seed's draws, uniform in [0, 1): the top 53 bits of mix(mix(seed + g) + (n + 1) g)
// with splitmix64's mix and g = 0x9E3779B97F4A7C15. A function of (seed, n) alone.
double draw(uint64_t seed, uint64_t n);

class Sampler {
 public:
  Sampler(Sampling, int64_t vocab_size);
  // logits: vocab_size of them, overwritten. history: the tokens so far; made: how many of them
  // this sampler chose. Throws Error where no logit is a number.
  Choice choose(float* logits, std::span<const int32_t> history, int64_t made);
  const Sampling& settings() const { return settings_; }

 private:
  void report(const float* logits, Choice&);
  void mask(float* logits, int64_t made) const;
  void penalise(float* logits, std::span<const int32_t> history);
  int32_t draw_one(float* logits, float largest, uint64_t n);

  const Sampling settings_;
  const int64_t vocab_;
  std::vector<std::pair<double, int32_t>> candidates_;
  std::vector<float> raw_, order_;
  std::vector<int32_t> ids_;
  std::vector<char> seen_;
};

}  // namespace flyweight
