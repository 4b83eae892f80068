// The loop of generation: step, sample, stop; several sequences together.
#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "executor.h"
#include "sample.h"

namespace flyweight {

enum class Finish {
  Not,
  Stop,       // a stop token was chosen; it is not among the choices
  Length,     // max_tokens were made
  Context,    // the sequence is as long as the model's context
  Cancelled,
};

class Generation {
 public:
  explicit Generation(Executor& executor) : executor_(executor) {}

  // A stream that goes on from a sequence and `tokens`, not fed yet, one at least. Returns its
  // number. Throws Error where the tokens, the settings or the length do not fit.
  int64_t add(std::shared_ptr<Sequence>, std::vector<int32_t> tokens, Sampling,
              int64_t max_tokens);

  struct Piece {
    int64_t stream;
    std::vector<Choice> choices;
    Finish finish;
  };
  // Up to `most` more tokens of every stream that goes on, fewer where it ends: a piece for each
  // stream that made tokens or ended. Empty when none goes on. An ended stream is forgotten; its
  // last token is not fed to its sequence. Throws Error where the caches have no room for a token
  // more (the streams stay), or where logits are no numbers (no stream goes on then). `stop` is asked
  // between runs of the program; where it says true, what was made till then is returned.
  std::vector<Piece> next(int64_t most, const std::function<bool()>& stop = {});

  // Ends a stream before its next token, from any thread. Unknown numbers are no mistake: the
  // stream may just have ended.
  void cancel(int64_t stream);

 private:
  struct Stream {
    int64_t number;
    std::shared_ptr<Sequence> sequence;
    std::vector<int32_t> pending;
    Sampler sampler;
    int64_t max_tokens, made = 0;
    std::atomic<bool> cancelled{false};
    // Of the step at hand: whether logits came, what was chosen, and whether the sequence is full.
    bool sampled = false, full = false;
    std::string failure;
    Choice choice{};
    Piece piece{};
    Stream(int64_t number, std::shared_ptr<Sequence> sequence, std::vector<int32_t> pending,
           Sampling settings, int64_t vocab, int64_t max_tokens)
        : number(number), sequence(std::move(sequence)), pending(std::move(pending)),
          sampler(std::move(settings), vocab), max_tokens(max_tokens) {}
  };

  // Whether `stop` ended it.
  bool step(std::vector<Stream*>& active, const std::function<bool()>& stop);
  static void finish_step(Stream&);

  Executor& executor_;
  // turn_: one next or add at a time. list_: the list of streams, which cancel looks into.
  std::mutex turn_, list_;
  std::deque<std::unique_ptr<Stream>> streams_;
  int64_t numbered_ = 0;
};

}  // namespace flyweight
