// The Python module flyweight.engine._native; its types are in flyweight/engine/_native.pyi.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <optional>

#include "bind_program.h"
#include "error.h"
#include "executor.h"
#include "generate.h"
#include "kernels_bind.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace flyweight {
namespace {

using Tokens = std::vector<std::vector<int32_t>>;
using Sequences = std::vector<std::shared_ptr<Sequence>>;

// Python goes on while weights are packed.
struct Unlocked {
  std::optional<nb::gil_scoped_release> released{std::in_place};

  nb::list list_once_locked() {
    released.reset();
    return nb::list();
  }
};

// The executor, and the arrays that it reads while it runs.
struct Engine : private Unlocked, Executor {
  // arrays: the weights' data, in their order.
  Engine(const nb::list& arrays, Program program, int threads, const std::string& isa, bool pin,
         size_t cache_limit)
      : Executor(std::move(program), threads, isa, pin, cache_limit),
        staying(list_once_locked()) {
    for (size_t i = 0; i < this->program().weights.size(); ++i) {
      if (weight_stays(i)) staying.append(arrays[i]);
    }
  }
  nb::list staying;
};

template <class T>
nb::ndarray<nb::numpy, T> array(std::vector<T>&& values, std::initializer_list<size_t> shape) {
  auto* owned = new std::vector<T>(std::move(values));
  nb::capsule owner(owned, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  return nb::ndarray<nb::numpy, T>(owned->data(), shape, owner);
}

std::vector<Executor::Feed> feeds_of(const Sequences& sequences, const Tokens& tokens,
                                     Executor::Feed::Want want) {
  require(sequences.size() == tokens.size(), sequences.size(), " sequences and ", tokens.size(),
          " lists of tokens do not go together");
  std::vector<Executor::Feed> feeds;
  for (size_t i = 0; i < sequences.size(); ++i) feeds.push_back({sequences[i].get(), tokens[i], want});
  return feeds;
}

// Asked between the runs of a call: whether a signal's handler raised (Ctrl-C). Not asked before the
// first, so that decoding never waits for the interpreter.
class Interrupted {
 public:
  bool operator()() {
    if (first_) return first_ = false;
    nb::gil_scoped_acquire held;
    return PyErr_CheckSignals() != 0;
  }
  // With the interpreter held, after the call.
  static void rethrow() {
    if (PyErr_Occurred()) throw nb::python_error();
  }

 private:
  bool first_ = true;
};

nb::ndarray<nb::numpy, float> feed(Engine& engine, const Sequences& sequences,
                                   const Tokens& tokens, const std::string& want) {
  using Want = Executor::Feed::Want;
  require(want == "last" || want == "all" || want == "none", "want = '", want,
          "': 'last', 'all' or 'none' is wanted");
  const Want which = want == "last" ? Want::Last : want == "all" ? Want::All : Want::None;
  const auto feeds = feeds_of(sequences, tokens, which);
  const auto vocab = static_cast<size_t>(engine.program().vocab_size);
  std::vector<size_t> begins;
  size_t rows = 0;
  for (const auto& list : tokens) {
    begins.push_back(rows);
    rows += which == Want::All ? list.size() : which == Want::Last ? 1 : 0;
  }
  std::vector<float> logits;
  {
    nb::gil_scoped_release released;
    logits.resize(rows * vocab);
    engine.feed(feeds, [&](size_t i, int64_t token, float* from) {
      const size_t row = begins[i] + (which == Want::All ? static_cast<size_t>(token) : 0);
      std::memcpy(logits.data() + row * vocab, from, vocab * sizeof(float));
    }, Interrupted());
  }
  Interrupted::rethrow();
  return array(std::move(logits), {rows, vocab});
}

nb::list score(Engine& engine, const Sequences& sequences, const Tokens& tokens,
               const Tokens& targets) {
  const auto feeds = feeds_of(sequences, tokens, Executor::Feed::Want::All);
  const int64_t vocab = engine.program().vocab_size;
  require(targets.size() == tokens.size(), tokens.size(), " lists of tokens and ", targets.size(),
          " of targets do not go together");
  std::vector<std::vector<double>> scores;
  for (size_t i = 0; i < tokens.size(); ++i) {
    require(targets[i].size() == tokens[i].size(), tokens[i].size(), " tokens and ",
            targets[i].size(), " targets do not go together");
    for (int32_t t : targets[i]) {
      require(t >= -1 && t < vocab, "target ", t, " is not within the vocabulary of ", vocab);
    }
    scores.emplace_back(tokens[i].size(), std::nan(""));
  }
  {
    nb::gil_scoped_release released;
    engine.feed(feeds, [&](size_t i, int64_t token, float* logits) {
      const auto t = static_cast<size_t>(token);
      const int32_t target = targets[i][t];
      if (target >= 0) scores[i][t] = logits[target] - log_sum_exp(logits, vocab);
    }, Interrupted());
  }
  Interrupted::rethrow();
  nb::list result;
  for (auto& values : scores) {
    const size_t n = values.size();
    result.append(array(std::move(values), {n}));
  }
  return result;
}

const char* name_of(Finish finish) {
  switch (finish) {
    case Finish::Stop: return "stop";
    case Finish::Length: return "length";
    case Finish::Context: return "context";
    case Finish::Cancelled: return "cancelled";
    case Finish::Not: break;
  }
  return nullptr;
}

nb::list next(Generation& generation, int64_t most) {
  std::vector<Generation::Piece> pieces;
  {
    nb::gil_scoped_release released;
    pieces = generation.next(most, Interrupted());
  }
  Interrupted::rethrow();
  nb::list result;
  for (const auto& piece : pieces) {
    nb::list tokens, logprobs, tops;
    for (const Choice& choice : piece.choices) {
      tokens.append(choice.token);
      logprobs.append(choice.logprob);
      tops.append(nb::cast(choice.top));
    }
    const char* finish = name_of(piece.finish);
    nb::object ended = finish ? nb::object(nb::str(finish)) : nb::none();
    result.append(nb::make_tuple(piece.stream, tokens, logprobs, tops, ended));
  }
  return result;
}

// What a sequence says of itself, while no run changes it.
template <class T>
std::decay_t<T> looked_at(const Sequence& s, T (Sequence::*what)() const) {
  nb::gil_scoped_release released;
  const auto alone = s.shape()->alone();
  return (s.*what)();
}

void bind_sequence(nb::module_& m) {
  nb::class_<Sequence>(m, "Sequence")
      .def_prop_ro("length", [](const Sequence& s) { return looked_at(s, &Sequence::length); })
      .def_prop_ro("tokens",
                   [](const Sequence& s) {
                     std::vector<int32_t> tokens = looked_at(s, &Sequence::tokens);
                     const size_t n = tokens.size();
                     return array(std::move(tokens), {n});
                   },
                   nb::rv_policy::move)
      .def_prop_ro("cache_bytes", [](const Sequence& s) { return looked_at(s, &Sequence::bytes); })
      .def(
          "set_positions",
          [](Sequence& s, std::vector<float> frequencies, float gain, float divisor) {
            nb::gil_scoped_release released;
            const auto alone = s.shape()->alone();
            s.set_positions(std::move(frequencies), gain, divisor);
          },
          "frequencies"_a, "gain"_a = 1.0f, "divisor"_a = 1.0f)
      .def(
          "truncate",
          [](Sequence& s, int64_t length) {
            nb::gil_scoped_release released;
            const auto alone = s.shape()->alone();
            return s.truncate(length);
          },
          "length"_a)
      .def(
          "copy",
          [](const Sequence& s) {
            nb::gil_scoped_release released;
            const auto alone = s.shape()->alone();
            return s.copy();
          },
          nb::keep_alive<0, 1>());
}

void bind_engine(nb::module_& m) {
  nb::class_<Engine>(m, "Executor")
      .def(
          "__init__",
          [](Engine* self, nb::object source, int threads, std::string isa, bool pin,
             size_t cache_limit) {
            const char* forced = std::getenv("FLYWEIGHT_ISA");
            if (isa.empty() && forced) isa = forced;
            nb::list arrays;
            Program program = read_program(source, arrays);
            new (self) Engine(arrays, std::move(program), threads, isa, pin, cache_limit);
          },
          "program"_a, "threads"_a = 1, "isa"_a = "", "pin"_a = false, "cache_limit"_a = 0)
      .def(
          "begin",
          [](const Engine& engine, std::vector<float> frequencies, float gain, float divisor,
             int64_t cache_format) {
            return engine.begin(std::move(frequencies), gain, divisor,
                                static_cast<Format>(cache_format));
          },
          "frequencies"_a = std::vector<float>{}, "gain"_a = 1.0f, "divisor"_a = 1.0f,
          "cache_format"_a = 0, nb::keep_alive<0, 1>())
      .def("feed", &feed, "sequences"_a, "tokens"_a, "want"_a = "last")
      .def("score", &score, "sequences"_a, "tokens"_a, "targets"_a)
      .def_prop_ro("isa", [](const Engine& e) { return std::string(e.isa()); })
      .def_prop_ro("threads", &Engine::threads)
      .def_prop_ro("weight_bytes", &Engine::weight_bytes)
      .def_prop_ro("buffer_bytes", &Engine::buffer_bytes,
                   nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro("cache_bytes", &Engine::cache_bytes);
}

void bind_generation(nb::module_& m) {
  nb::class_<Generation>(m, "Generation")
      .def(
          "__init__",
          [](Generation* self, Engine& engine) { new (self) Generation(engine); }, "executor"_a,
          nb::keep_alive<1, 2>())
      .def(
          "add",
          [](Generation& self, std::shared_ptr<Sequence> sequence, std::vector<int32_t> tokens,
             int64_t max_tokens, int64_t min_tokens, float temperature, int64_t top_k, double top_p,
             double min_p, float repetition_penalty, int64_t penalty_last, uint64_t seed,
             uint64_t drawn, std::vector<int32_t> stops, std::vector<int32_t> never,
             int64_t vocabulary, int64_t top_logprobs) {
            Sampling s{temperature, top_k, top_p, min_p, repetition_penalty, penalty_last, seed,
                       drawn, min_tokens, std::move(stops), std::move(never), vocabulary,
                       top_logprobs};
            nb::gil_scoped_release released;
            return self.add(std::move(sequence), std::move(tokens), std::move(s), max_tokens);
          },
          "sequence"_a, "tokens"_a, nb::kw_only(), "max_tokens"_a, "min_tokens"_a = 0,
          "temperature"_a = 0.0f, "top_k"_a = 0, "top_p"_a = 1.0, "min_p"_a = 0.0,
          "repetition_penalty"_a = 1.0f, "penalty_last"_a = 0, "seed"_a = 0, "drawn"_a = 0,
          "stops"_a = std::vector<int32_t>{}, "never"_a = std::vector<int32_t>{},
          "vocabulary"_a = 0, "top_logprobs"_a = -1)
      .def("next", &next, "most"_a = 1)
      // Without the interpreter: who holds the list of streams may be waiting for it.
      .def("cancel", &Generation::cancel, "stream"_a, nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace
}  // namespace flyweight

NB_MODULE(_native, m) {
  using namespace flyweight;
  nb::register_exception_translator([](const std::exception_ptr& thrown, void*) {
    try {
      std::rethrow_exception(thrown);
    } catch (const Error& error) {
      nb::object type = nb::module_::import_("flyweight.spec.errors").attr("FlyweightError");
      PyErr_SetString(type.ptr(), error.what());
    }
  });
  bind_sequence(m);
  bind_engine(m);
  bind_generation(m);
  bind_kernels(m);
  m.def("available_processors", &available_processors);
  m.def("draw", &draw, "seed"_a, "n"_a);
}
