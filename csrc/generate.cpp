#include "generate.h"

#include <algorithm>

#include "error.h"

namespace flyweight {

int64_t Generation::add(std::shared_ptr<Sequence> sequence, std::vector<int32_t> tokens,
                        Sampling settings, int64_t max_tokens) {
  executor_.check_process();
  const std::lock_guard<std::mutex> turn(turn_);
  const Program& p = executor_.program();
  executor_.check_feed({sequence.get(), tokens, Executor::Feed::Want::Last});
  require(max_tokens >= 0 && settings.min_tokens <= max_tokens, "max_tokens = ", max_tokens,
          " and min_tokens = ", settings.min_tokens, ": 0 <= min <= max is wanted");
  for (const auto& stream : streams_) {
    require(stream->sequence != sequence, "the sequence is in another stream already");
  }
  auto stream = std::make_unique<Stream>(numbered_, std::move(sequence), std::move(tokens),
                                         std::move(settings), p.vocab_size, max_tokens);
  const std::lock_guard<std::mutex> list(list_);
  streams_.push_back(std::move(stream));
  return numbered_++;
}

void Generation::cancel(int64_t number) {
  const std::lock_guard<std::mutex> list(list_);
  for (const auto& stream : streams_) {
    if (stream->number == number) stream->cancelled = true;
  }
}

std::vector<Generation::Piece> Generation::next(int64_t most, const std::function<bool()>& stop) {
  require(most >= 1, "at most ", most, " tokens were asked for; 1 or more is wanted");
  executor_.check_process();
  const std::lock_guard<std::mutex> turn(turn_);
  std::vector<Stream*> active;
  for (const auto& stream : streams_) {
    stream->piece = {stream->number, {}, Finish::Not};
    active.push_back(stream.get());
  }
  const auto goes_on = [&](Stream* stream) {
    if (stream->piece.finish == Finish::Not && stream->cancelled) {
      stream->piece.finish = Finish::Cancelled;
    } else if (stream->piece.finish == Finish::Not && stream->made == stream->max_tokens) {
      stream->piece.finish = Finish::Length;
    }
    return stream->piece.finish == Finish::Not &&
           static_cast<int64_t>(stream->piece.choices.size()) < most;
  };
  for (;;) {
    std::erase_if(active, [&](Stream* stream) { return !goes_on(stream); });
    if (active.empty()) break;
    try {
      if (step(active, stop)) break;
    } catch (const Error&) {
      // What was made before is given first; the next call comes to the error again.
      const auto made = [](const auto& stream) { return !stream->piece.choices.empty(); };
      if (std::none_of(streams_.begin(), streams_.end(), made)) throw;
      break;
    }
  }
  std::vector<Piece> pieces;
  const std::lock_guard<std::mutex> list(list_);
  for (const auto& stream : streams_) {
    if (stream->piece.finish != Finish::Not || !stream->piece.choices.empty()) {
      pieces.push_back(std::move(stream->piece));
    }
  }
  std::erase_if(streams_, [&](const auto& stream) {
    return std::any_of(pieces.begin(), pieces.end(), [&](const Piece& piece) {
      return piece.stream == stream->number && piece.finish != Finish::Not;
    });
  });
  return pieces;
}

bool Generation::step(std::vector<Stream*>& active, const std::function<bool()>& stop) {
  std::vector<Executor::Feed> feeds;
  for (Stream* stream : active) {
    stream->sampled = false;
    feeds.push_back({stream->sequence.get(), stream->pending, Executor::Feed::Want::Last});
  }
  // On the pool's threads: what goes wrong is kept for the caller.
  const auto sample = [&](size_t i, int64_t, float* logits) {
    Stream& stream = *active[i];
    try {
      stream.choice = stream.sampler.choose(logits, stream.sequence->tokens(), stream.made);
      stream.sampled = true;
      stream.full = stream.sequence->length() == executor_.program().context;
    } catch (const std::exception& error) {
      stream.failure = error.what();
    }
  };
  bool stopped = false;
  const auto ends = [&] {
    stopped = stop && stop();
    return stopped || std::any_of(active.begin(), active.end(),
                                  [](Stream* s) { return s->cancelled.load(); });
  };
  int64_t appended = executor_.feed(feeds, sample, ends);
  for (const Stream* stream : active) {
    if (stream->failure.empty()) continue;
    const std::string failure = stream->failure;
    const std::lock_guard<std::mutex> list(list_);
    streams_.clear();
    throw Error(failure);
  }
  for (Stream* stream : active) {
    auto& pending = stream->pending;
    const auto fed = std::min(appended, static_cast<int64_t>(pending.size()));
    appended -= fed;
    pending.erase(pending.begin(), pending.begin() + fed);
    if (stream->sampled) finish_step(*stream);
  }
  return stopped;
}

void Generation::finish_step(Stream& stream) {
  const auto& stops = stream.sampler.settings().stops;
  const int32_t token = stream.choice.token;
  if (std::find(stops.begin(), stops.end(), token) != stops.end()) {
    stream.piece.finish = Finish::Stop;
    return;
  }
  stream.piece.choices.push_back(std::move(stream.choice));
  stream.pending.assign(1, token);
  ++stream.made;
  if (stream.made == stream.max_tokens) {
    stream.piece.finish = Finish::Length;
  } else if (stream.full) {
    stream.piece.finish = Finish::Context;
  }
}

}  // namespace flyweight
