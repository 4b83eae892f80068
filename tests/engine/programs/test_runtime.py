"""The native model talks as the torch model does: tokens, text, scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("flyweight.engine._native", reason="the engine is not built")

from flyweight.engine import runtime  # noqa: E402
from flyweight.engine.runtime import NativeModel  # noqa: E402
from flyweight.files.weights import StoredTensor  # noqa: E402
from flyweight.model.decoder import Decoder  # noqa: E402
from flyweight.model.runtime import TorchModel  # noqa: E402
from flyweight.spec.errors import FlyweightError  # noqa: E402
from flyweight.text.bytes import ByteTokenizer  # noqa: E402
from flyweight.text.talk import Sampling  # noqa: E402

TensorsOf = Callable[[Decoder], dict[str, StoredTensor]]
PATCHES = {"input": {"kind": "patches", "width": 24, "hidden": 40, "size": 6}}
# Where generation forgets: the context is full within the test.
SHORT: dict[str, dict[str, Any]] = {
    "plain": {},
    "learned": {"position": {"kind": "learned"}},
    "patches": PATCHES,
    "slots": {
        "input": {"kind": "slots", "slots": 2, "width": 8, "hidden": 16, "heads": 2}
        | {"front_depth": 1, "decoder_depth": 1}
    },
    "matches": {"matches": {"lengths": [1, 2]}, "ngrams": {"orders": [2, 3], "rows": 64, "dim": 6}},
}
_LONG = {"kind": "longrope", "original": 16, "short": [1.0, 1.3], "long": [2.5, 7.0]}
# Where positions are read anew as the sequence grows.
GROWING: dict[str, dict[str, Any]] = {
    "longrope": {"position": {"fraction": 0.5, "scaling": _LONG}},
    "dynamic": {"position": {"scaling": {"kind": "dynamic", "factor": 4.0, "original": 16}}},
    "alibi": {"position": {"kind": "alibi", "scaling": {"kind": "linear", "original": 16}}},
}


def both(
    decoder: Decoder, tensors_of: TensorsOf, tokenizer: Any = None, **settings: Any
) -> tuple[NativeModel, TorchModel]:
    words = tokenizer or ByteTokenizer()
    tensors = tensors_of(decoder)
    if decoder.slots is not None:
        decoder.slots.spell(words)
    native = NativeModel("tiny", decoder.spec, tensors, lambda: words, **{"threads": 1, **settings})
    return native, TorchModel("tiny", decoder, words)


def greedy(most: int, **settings: Any) -> Sampling:
    return Sampling(max_tokens=most, **settings)


def test_greedy_tokens_and_their_probabilities_are_the_torch_models(
    decoder: Decoder, tensors_of: TensorsOf
) -> None:
    native, torch_model = both(decoder, tensors_of)
    sampling = greedy(24, min_tokens=24)
    mine = list(native.steps("def read_", sampling, 3))
    theirs = list(torch_model.steps("def read_", sampling, 3))
    assert [s.token for s in mine] == [s.token for s in theirs]
    assert len(mine) == 24
    for own, other in zip(mine, theirs, strict=True):
        assert own.logprob == pytest.approx(other.logprob, abs=2e-4)
        assert [t for t, _ in own.top] == [t for t, _ in other.top]
        assert [p for _, p in own.top] == pytest.approx([p for _, p in other.top], abs=2e-4)


def test_scores_are_the_torch_models(
    decoder: Decoder, tensors_of: TensorsOf, source: bytes
) -> None:
    native, torch_model = both(decoder, tensors_of)
    # Longer than the context, so that windows are scored.
    text = source[:300].decode("ascii")
    mine, theirs = native.logprobs(text), torch_model.logprobs(text)
    assert [t for t, _ in mine] == [t for t, _ in theirs]
    assert [p for _, p in mine] == pytest.approx([p for _, p in theirs], abs=1e-3)
    assert native.logprobs("") == torch_model.logprobs("") == []
    assert len(native.logprobs("ab", bos=False)) == 1


@pytest.mark.parametrize("kind", sorted(SHORT))
def test_generation_goes_on_past_the_context(make: Any, tensors_of: TensorsOf, kind: str) -> None:
    native, torch_model = both(make({**SHORT[kind], "context": 24}), tensors_of)
    for prompt in ("a", "0123456789" * 4):
        sampling = greedy(100, min_tokens=100)
        mine = [s.token for s in native.steps(prompt, sampling)]
        assert mine == [s.token for s in torch_model.steps(prompt, sampling)]
        assert len(mine) == 100


@pytest.mark.parametrize("kind", sorted(GROWING))
def test_positions_are_read_anew_where_the_sequence_outgrows_the_first_training(
    make: Any, tensors_of: TensorsOf, kind: str
) -> None:
    native, torch_model = both(make(GROWING[kind]), tensors_of)
    for prompt, most in (("a", 60), ("a prompt that is longer", 30), ("0123456789abcd", 3)):
        sampling = greedy(most, min_tokens=most)
        mine = [s.token for s in native.steps(prompt, sampling)]
        assert mine == [s.token for s in torch_model.steps(prompt, sampling)], prompt


def test_the_end_of_text_ends_it_and_min_tokens_keep_it_away(
    make: Any, tensors_of: TensorsOf
) -> None:
    decoder = make({})
    with torch.no_grad():
        decoder.embedding.weight.fill_(0.1)  # the same distribution everywhere
        decoder.head.weight[257] = 0.0
    hidden = decoder.hidden(torch.tensor([[257]]))[0, -1].detach()
    with torch.no_grad():
        decoder.head.weight[257] = 9 * hidden
    native, _ = both(decoder, tensors_of)
    assert native.generate("a", 8) == ""
    for least in (1, 5, 8):
        tokens = [s.token for s in native.steps("a", greedy(8, min_tokens=least))]
        assert len(tokens) == least and 257 not in tokens
    assert native.generate("a", 0) == ""


def test_ids_that_stand_for_nothing_are_never_chosen(make: Any, tensors_of: TensorsOf) -> None:
    decoder = make({"vocab_size": 320})
    with torch.no_grad():
        decoder.head.weight[256:] *= 50
    native, _ = both(decoder, tensors_of)
    tokens = [s.token for s in native.steps("a", Sampling(60, 60, temperature=1.0))]
    assert len(tokens) == 60 and max(tokens) < 256


@pytest.mark.parametrize("changes", [{}, PATCHES], ids=["tokens", "patches"])
def test_the_same_seed_says_the_same_whatever_the_threads(
    make: Any, tensors_of: TensorsOf, changes: dict[str, Any]
) -> None:
    decoder = make(changes)
    one, _ = both(decoder, tensors_of)
    two, _ = both(decoder, tensors_of, threads=2)
    said = [
        model.generate("a", 40, 40, temperature=1.0, top_k=40, top_p=0.9, seed=seed)
        for model, seed in ((one, 1), (one, 1), (two, 1), (one, 2))
    ]
    assert said[0] == said[1] == said[2] != said[3]
    assert one.threads == 1 and two.threads == 2


@pytest.mark.parametrize("changes", [{}, PATCHES], ids=["tokens", "patches"])
def test_what_the_last_call_left_helps_and_changes_nothing(
    make: Any, tensors_of: TensorsOf, changes: dict[str, Any]
) -> None:
    decoder = make(changes)
    native, _ = both(decoder, tensors_of)
    prompts = ["def read_lines", "def read_", "def read_lines(path):", "x", "def", "def"]
    for prompt in prompts:
        fresh, _ = both(decoder, tensors_of)
        expected = fresh.generate(prompt, 20, 20, temperature=1.0, seed=3)
        assert native.generate(prompt, 20, 20, temperature=1.0, seed=3) == expected, prompt


@pytest.mark.parametrize("kind", [*sorted(SHORT), *sorted(GROWING)])
def test_prompts_decoded_together_are_as_alone(make: Any, tensors_of: TensorsOf, kind: str) -> None:
    changes = {**(SHORT | GROWING)[kind], "context": 64}
    native, _ = both(make(changes), tensors_of, threads=2)
    # One is longer than the context, one comes to it, one is read with other frequencies.
    prompts = ["a", "def read_(x):", "x" * 100, "y = " * 14, "a"]
    alone = [native.generate(p, 12, 8, 1.0, seed=5) for p in prompts]
    assert native.generate_all(prompts, Sampling(12, 8, temperature=1.0, seed=5)) == alone
    stops = [alone[1][3:5]]
    cut = native.generate_all(prompts, Sampling(12, 8, temperature=1.0, seed=5), stops)
    assert cut == [native.generate(p, 12, 8, 1.0, seed=5, stop=stops) for p in prompts]
    assert cut[1] == alone[1][: alone[1].index(stops[0])]
    assert native.generate_all([]) == [] and native.generate_all(["a"], greedy(0)) == [""]


def test_more_sequences_than_memory_has_room_for_is_one_clear_error(
    make: Any, tensors_of: TensorsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "_room", lambda weights: 1 << 20)
    native, _ = both(make({}), tensors_of)
    with pytest.raises(FlyweightError, match=r"no room for .* in the caches: .*1 MiB are allowed"):
        native.generate_all(["def read_"] * 100, greedy(4))
    assert (
        native.generate_all(["def read_"] * 2, greedy(4, min_tokens=4))
        == [native.generate("def read_", 4, 4)] * 2
    )


def test_a_prompt_that_goes_on_is_not_read_twice(make: Any, tensors_of: TensorsOf) -> None:
    native, _ = both(make({}), tensors_of)
    ids = list(b"def read_lines(path): return")
    begun: list[int] = []
    begin = native._begin
    native._begin = lambda read: begun.append(1) or begin(read)  # type: ignore[method-assign]
    chosen = [s.token for s in native.steps(ids, greedy(5, min_tokens=5))]
    list(native.steps([*ids, *chosen, 65], greedy(5)))
    assert len(begun) == 1
    sequence = native._kept[0]  # type: ignore[index]
    assert sequence.length >= len(ids) + 6


def test_a_closed_stream_stops_computing(make: Any, tensors_of: TensorsOf) -> None:
    native, _ = both(make({"context": 4096}), tensors_of)
    stream = native.stream("a", 4000, 4000, temperature=1.0)
    assert next(stream)
    stream.close()  # type: ignore[attr-defined]
    sequence = native._kept[0]  # type: ignore[index]
    assert sequence.length < 50
    # The model talks on, in another stream beside an open one too.
    first = native.stream("b", 20, 20, temperature=1.0, seed=1)
    begun = next(first)
    between = native.generate("c", 10, 10, temperature=1.0, seed=2)
    rest = begun + "".join(first)
    other, _ = both(make({"context": 4096}), tensors_of)
    assert other.generate("b", 20, 20, temperature=1.0, seed=1) == rest
    assert other.generate("c", 10, 10, temperature=1.0, seed=2) == between


def test_penalties_and_cuts_are_the_torch_models(make: Any, tensors_of: TensorsOf) -> None:
    decoder = make({"scale": {"logits": 3.0}})
    native, torch_model = both(decoder, tensors_of)
    sampling = Sampling(40, 40, repetition_penalty=1.7)
    mine = [s.token for s in native.steps("abcabc", sampling)]
    assert mine == [s.token for s in torch_model.steps("abcabc", sampling)]
    assert mine != [s.token for s in native.steps("abcabc", greedy(40, min_tokens=40))]
    # What is kept: every token chosen is among those that the torch model's rule keeps.
    for cut in ({"min_p": 0.3}, {"top_k": 3}, {"top_p": 0.2}):
        sampling = Sampling(30, 30, temperature=1.0, seed=5, **cut)  # type: ignore[arg-type]
        for step in native.steps("de", sampling, 100):
            probs = [np.exp(p) for t, p in step.top if t not in (256, 257)]
            chosen = np.exp(step.logprob)
            if "min_p" in cut:
                assert chosen >= 0.299 * probs[0]
            elif "top_k" in cut:
                assert chosen >= probs[2] * 0.999
            else:
                assert chosen >= probs[next(i for i in range(99) if sum(probs[: i + 1]) >= 0.21)]


def test_settings_that_make_no_sense_are_refused(
    make: Any, tensors_of: TensorsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = make({})
    native, torch_model = both(decoder, tensors_of)
    for model in (native, torch_model):
        for settings, said in (
            ({"min_p": 1.5}, "min_p = 1.5"),
            ({"repetition_penalty": 0.0}, "repetition_penalty = 0.0"),
            ({"top_k": 0}, "top_k = 0"),
            ({"prompt": "\ud800"}, "lone surrogate"),
        ):
            with pytest.raises(FlyweightError, match=said):
                model.generate(**{"prompt": "a", **settings})  # type: ignore[arg-type]
        with pytest.raises(FlyweightError, match="token id 258 is outside"):
            model.steps([1, 258])
        with pytest.raises(FlyweightError, match="top_logprobs = 101"):
            model.steps("a", None, 101)
    with pytest.raises(FlyweightError, match="cache = q4_0.*known: auto, f32|cache = q4_0; did"):
        both(decoder, tensors_of, cache="q4_0")
    monkeypatch.setenv("FLYWEIGHT_ISA", "sse2")
    with pytest.raises(FlyweightError, match="FLYWEIGHT_ISA = sse2.*portable"):
        both(decoder, tensors_of)
    monkeypatch.setenv("FLYWEIGHT_ISA", "portable")
    assert both(decoder, tensors_of)[0].isa == "portable"


def test_memory_is_told(make: Any, tensors_of: TensorsOf) -> None:
    decoder = make({})
    native, _ = both(decoder, tensors_of)
    stored = sum(t.data.size for t in tensors_of(decoder).values())
    native.generate("some text", 4)
    memory = native.memory()
    assert memory.weights >= stored
    assert memory.cache > 0 and memory.buffers > 0
    assert native.read_bytes(100) > native.read_bytes(10) > 0  # type: ignore[operator]
