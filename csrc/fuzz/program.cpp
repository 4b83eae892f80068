// libFuzzer's entry: bytes become a program, as tests/fuzz/programs.py writes one down; it is
// refused with an Error, or it runs on some tokens. Whatever else happens is a finding.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>

#include "error.h"
#include "executor.h"
#include "generate.h"
#include "team.h"

namespace flyweight {
namespace {

// What a run may take, so that a second has many of them; larger programs are only validated.
constexpr int64_t kMostWeight = 1 << 18;  // bytes
constexpr int64_t kMostWidth = 1 << 12, kMostContextRun = 1 << 10;

class Input {
 public:
  Input(const uint8_t* data, size_t size) : at_(data), end_(data + size) {}

  // Zeros where the input is over.
  template <class T>
  T take() {
    T value{};
    const auto n = std::min(sizeof(T), static_cast<size_t>(end_ - at_));
    std::memcpy(&value, at_, n);
    at_ += n;
    return value;
  }
  // 32 bits, whose extremes stand for numbers that do not fit into them.
  int64_t number() {
    const auto value = take<int32_t>();
    if (value == INT32_MAX) return int64_t{1} << 40;
    if (value == INT32_MIN) return -(int64_t{1} << 62);
    return value;
  }
  template <class T, class As>
  std::vector<T> list(As as) {
    std::vector<T> values(take<uint8_t>() % 80);
    for (T& value : values) value = static_cast<T>(as());
    return values;
  }

 private:
  const uint8_t *at_, *end_;
};

struct Case {
  Program program;
  // Each of its own size to the byte, so that a read beyond it is seen.
  std::vector<std::unique_ptr<uint8_t[]>> data;
  int threads;
};

Weight weight(Case& made, Input& in) {
  Weight w{"w", static_cast<WeightKind>(in.take<uint8_t>() % 3),
           static_cast<Format>(in.take<uint8_t>()), in.number(), in.number(), nullptr, 0, false};
  const auto more = in.take<int8_t>(), step = in.take<int8_t>();
  const int64_t block = block_size(w.format);
  const bool fits = block > 0 && w.rows > 0 && w.cols > 0 && w.rows <= kMostWeight &&
                    w.cols <= kMostWeight && w.rows * w.cols <= kMostWeight;
  const int64_t bytes = fits ? w.rows * (w.cols / block) * block_bytes(w.format) + more : 0;
  w.bytes = static_cast<size_t>(std::max<int64_t>(0, bytes));
  made.data.emplace_back(new uint8_t[w.bytes]);
  for (size_t i = 0; i < w.bytes; ++i) made.data.back()[i] = static_cast<uint8_t>(i * 37 % 61);
  w.data = made.data.back().get();
  if (step == 0 || !fits) return w;
  // Every step-th row, sometimes one too many; after a negative step the last is any number.
  w.order.resize(static_cast<size_t>(w.rows + (step % 8 == 7)));
  for (size_t i = 0; i < w.order.size(); ++i) {
    w.order[i] = static_cast<int64_t>(i) * std::abs(step) % w.rows;
  }
  if (step < 0) w.order.back() = in.number();
  return w;
}

Case read(Input in) {
  Case made;
  Program& p = made.program;
  made.threads = 1 + in.take<uint8_t>() % 3;
  p.vocab_size = in.number();
  p.context = in.number();
  p.frequencies = in.number();
  p.logits = in.take<int8_t>();
  p.spelling.slots = in.take<int8_t>();
  p.spelling.pad = in.take<int16_t>();
  // As many as the tokens' slots, so that they may be right, and some more or fewer.
  const int64_t symbols = p.vocab_size * p.spelling.slots + in.take<int8_t>();
  if (p.vocab_size > 0 && p.vocab_size <= kMostWidth && symbols > 0) {
    p.spelling.symbols.resize(static_cast<size_t>(symbols));
    for (int32_t& symbol : p.spelling.symbols) symbol = in.take<int16_t>();
  }
  for (int n = in.take<uint8_t>() % 64; n > 0; --n) {
    p.buffers.push_back({"b", static_cast<Rows>(in.take<int8_t>()), in.number(), in.number()});
  }
  for (int n = in.take<uint8_t>() % 64; n > 0; --n) p.weights.push_back(weight(made, in));
  for (int n = in.take<uint8_t>() % 64; n > 0; --n) {
    p.slots.push_back({static_cast<Rows>(in.take<int8_t>()), in.number(), in.number()});
  }
  for (int n = in.take<uint8_t>() % 64; n > 0; --n) {
    Op op;
    op.kind = static_cast<Kind>(in.take<int8_t>());
    op.rows = static_cast<Rows>(in.take<int8_t>());
    const auto place = [&] { return in.take<int8_t>(); };
    op.sources = in.list<int32_t>(place);
    op.targets = in.list<int32_t>(place);
    op.weights = in.list<int32_t>(place);
    op.ints = in.list<int64_t>([&] { return in.number(); });
    op.floats = in.list<float>([&] { return in.take<float>(); });
    p.ops.push_back(std::move(op));
  }
  return made;
}

bool small(const Program& p) {
  bool fits = p.vocab_size <= kMostWidth && p.context <= kMostContextRun;
  for (const Buffer& b : p.buffers) fits = fits && b.end() <= kMostWidth;
  for (const Slot& s : p.slots) fits = fits && s.kv_heads * s.head_dim <= kMostWidth;
  return fits;
}

// Streams together, with every step of sampling.
void generate(Executor& executor, std::vector<std::shared_ptr<Sequence>> sequences) {
  const int64_t vocab = executor.program().vocab_size;
  Generation generation(executor);
  for (size_t i = 0; i < sequences.size(); ++i) {
    Sampling sampling;
    sampling.temperature = 0.7f * static_cast<float>(i);
    sampling.top_k = static_cast<int64_t>(i);
    sampling.top_p = 0.9;
    sampling.min_p = 0.01;
    sampling.repetition_penalty = 1.2f;
    sampling.stops = {static_cast<int32_t>(vocab - 1)};
    sampling.top_logprobs = std::min<int64_t>(2, vocab);
    try {
      generation.add(sequences[i], std::vector<int32_t>(i + 1, 0), sampling, 4);
    } catch (const Error&) {
      // It is as long as the context, or has one token, which stops.
    }
  }
  for (int64_t most : {1, 2, 9}) generation.next(most);
}

// Callers from several threads, who must wait for each other, and who cancels and looks on.
void crowd(Executor& executor, const std::vector<float>& frequencies) {
  Generation generation(executor);
  auto shared = executor.begin(frequencies, 1.0f, 1.0f, Format::F32);
  for (int i = 0; i < 3; ++i) {
    generation.add(executor.begin(frequencies, 1.0f, 1.0f, Format::F32), {0}, Sampling{}, 4);
  }
  const auto generate = [&] {
    for (int i = 0; i < 5; ++i) generation.next(1);
  };
  const auto feed = [&] {
    const int32_t token = 0;
    for (int i = 0; i < 4; ++i) {
      const Executor::Feed one{shared.get(), {&token, 1}, Executor::Feed::Want::Last};
      try {
        executor.feed({&one, 1}, [](size_t, int64_t, float*) {});
      } catch (const Error&) {
        return;  // It is as long as the context.
      }
    }
  };
  const auto look = [&] {
    for (int i = 0; i < 20; ++i) {
      generation.cancel(i % 5);
      const auto alone = shared->shape()->alone();
      const volatile int64_t length = shared->length();
      static_cast<void>(length);
    }
    std::atomic<int64_t> sum = 0;
    in_parts(3, 100, [&](int64_t first, int64_t last) { sum += last - first; });
    if (sum != 100) std::abort();
  };
  std::vector<std::thread> threads;
  threads.emplace_back(generate);
  threads.emplace_back(feed);
  threads.emplace_back(feed);
  threads.emplace_back(look);
  threads.emplace_back(look);
  for (auto& thread : threads) thread.join();
}

void run(Case made) {
  const Program& program = made.program;
  validate(program);
  if (!small(program)) return;
  const int64_t vocab = program.vocab_size, context = program.context;
  const std::vector<float> frequencies(static_cast<size_t>(program.frequencies), 0.5f);
  Executor executor(program, made.threads, "portable", false, 0);
  const auto begin = [&](Format cache) { return executor.begin(frequencies, 1.0f, 1.0f, cache); };
  auto sequence = begin(Format::F32);
  std::vector<int32_t> tokens;
  const auto consume = [&](size_t, int64_t, float* logits) {
    const volatile float first = logits[0], last = logits[vocab - 1];
    static_cast<void>(first), static_cast<void>(last);
  };
  const auto feed = [&](Sequence& into, int64_t count) {
    count = std::min(count, context - into.length());
    if (count <= 0) return;
    tokens.resize(static_cast<size_t>(count));
    for (size_t i = 0; i < tokens.size(); ++i) {
      tokens[i] = static_cast<int32_t>((static_cast<int64_t>(i) * 7 + into.length()) % vocab);
    }
    const Executor::Feed one{&into, tokens, Executor::Feed::Want::All};
    executor.feed({&one, 1}, consume);
  };
  for (int64_t count : {1, 1, 18, 10}) feed(*sequence, count);
  // Into the cache's second block, where that is cheap.
  if (program.ops.size() < 24) feed(*sequence, 250);
  for (Format cache : {Format::F16, Format::BF16, Format::Q8_0}) feed(*begin(cache), 6);
  sequence->truncate(11);
  auto copy = sequence->copy();
  feed(*copy, 3);
  generate(executor, {sequence, copy, begin(Format::F16)});
#if __has_feature(thread_sanitizer)
  crowd(executor, frequencies);
#endif
}

}  // namespace
}  // namespace flyweight

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    flyweight::run(flyweight::read({data, size}));
  } catch (const flyweight::Error&) {
    // A clear refusal.
  }
  return 0;
}
