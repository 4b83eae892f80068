"""A model that talks: generate, stream and logprobs, on a tiny model with random weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from flyweight.model.decoder import Decoder  # noqa: E402
from flyweight.model.runtime import TorchModel  # noqa: E402
from flyweight.model.sample import choose  # noqa: E402
from flyweight.spec.errors import FlyweightError  # noqa: E402
from flyweight.text.bytes import ByteTokenizer  # noqa: E402
from flyweight.text.tokenizer import with_bos  # noqa: E402

Make = Callable[..., Decoder]
CONTEXT = 24
EOT, PAD = 257, 256


class WithoutBos(ByteTokenizer):
    """As GPT-2's: an end of text, and nothing that begins one."""

    add_bos = False
    bos_id = None

    def encode(self, text: str, bos: bool | None = None, specials: bool = False) -> list[int]:
        return with_bos(super().encode(text), self.bos_id, bos)


def talking(make: Make, tokenizer: Any = None, **changes: Any) -> TorchModel:
    return TorchModel("tiny", make(context=CONTEXT, **changes), tokenizer or ByteTokenizer())


class FewLetters(ByteTokenizer):
    """Ids 0 to 4 alone, so that a random model soon says any short string of them."""

    vocab_size = 5
    pad_id = eot_id = None

    def token_bytes(self, id: int) -> bytes:
        return b"abc \n"[id : id + 1]


@pytest.fixture(scope="session")
def chatty(decoder: Make) -> TorchModel:
    return TorchModel("chatty", decoder(context=CONTEXT), FewLetters())


def test_greedy_text_is_the_argmax_of_a_full_forward_pass(decoder: Make) -> None:
    model = talking(decoder)
    ids = [EOT, *b"def f"]
    expected: list[int] = []
    with torch.no_grad():
        for _ in range(16):
            logits = model.decoder(torch.tensor([ids]))[0, -1]
            logits[PAD] = -math.inf
            token = int(logits.argmax())
            if token == EOT:
                break
            ids.append(token)
            expected.append(token)
    text = bytes(expected).decode("utf-8", "replace")
    assert model.generate("def f", max_tokens=16) == text
    assert model.generate("def f", max_tokens=16) == text
    assert model.generate("def f", max_tokens=16, seed=5) == text, "greedy has no chance in it"


def test_a_prompt_may_be_ids(decoder: Make) -> None:
    model = talking(decoder)
    ids = model.tokenizer.encode("def f", bos=True)
    assert model.generate(ids, 12) == model.generate("def f", 12)
    assert model.generate(ids[1:], 12) != model.generate(ids, 12)
    with pytest.raises(FlyweightError, match="token id 258 is outside"):
        model.generate([EOT, 258], 12)
    with pytest.raises(FlyweightError, match="prompt is empty"):
        model.generate([], 12)


def test_the_same_seed_says_the_same_and_another_something_else(decoder: Make) -> None:
    model = talking(decoder)
    said = [model.generate("a", 20, 20, temperature=1.0, seed=seed) for seed in (1, 1, 2, 3)]
    assert said[0] == said[1]
    assert len(set(said)) == 3


def test_the_global_generator_is_neither_read_nor_moved(decoder: Make) -> None:
    model = talking(decoder)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = model.generate("a", 10, temperature=1.0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert model.generate("a", 10, temperature=1.0) == first


def test_min_tokens_keep_the_end_away(decoder: Make) -> None:
    model = talking(decoder)
    with torch.no_grad():
        model.decoder.embedding.weight.fill_(0.1)  # the same distribution everywhere
        model.decoder.head.weight[EOT] = 0.0
    hidden = model.decoder.hidden(torch.tensor([[EOT]]))[0, -1].detach()
    with torch.no_grad():
        model.decoder.head.weight[EOT] = 9 * hidden
    assert model.generate("a", max_tokens=8) == ""
    for least in (1, 5, 8):
        tokens = list(model._tokens([EOT], 8, least, 0.0, None, None, 0))
        assert len(tokens) == least
        assert not {EOT, PAD} & set(tokens)
    assert model.generate("a", max_tokens=0) == ""


def test_generation_goes_on_past_the_context(decoder: Make) -> None:
    for changes in ({}, {"position": {"kind": "learned"}}, {"input": {"kind": "patches"}}):
        model = talking(decoder, **changes)
        tokens = list(model._tokens([EOT, 65], 5 * CONTEXT, 5 * CONTEXT, 1.0, None, None, 0))
        assert len(tokens) == 5 * CONTEXT
        # Until the context is full nothing is forgotten: the first tokens are a long model's.
        long = decoder(**{**changes, "context": 8 * CONTEXT})
        if model.spec.position.kind != "learned":
            other = TorchModel("long", long, ByteTokenizer())
            longer = list(other._tokens([EOT, 65], 5 * CONTEXT, 5 * CONTEXT, 1.0, None, None, 0))
            assert tokens[: CONTEXT - 1] == longer[: CONTEXT - 1]
            assert tokens != longer


GROWING = {
    "dynamic NTK": {
        **{"kind": "rope", "theta": 100.0},
        "scaling": {"kind": "dynamic", "factor": 16.0, "original": 8},
    },
    "ALiBi": {"kind": "alibi", "scaling": {"kind": "linear", "original": 8}},
}


@pytest.mark.parametrize("tokens", [1, 9, 18])
@pytest.mark.parametrize("name", GROWING)
def test_greedy_beyond_the_first_training_is_the_full_pass_over_the_whole(
    decoder: Make, name: str, tokens: int
) -> None:
    """Decoding knows how long the text becomes: a pass over all of it, at once, says the same."""
    model = TorchModel("tiny", decoder(context=CONTEXT, position=GROWING[name]), FewLetters())
    ids = [0, 1, 2, 0, 1, 3]
    made = list(model._tokens(ids, tokens, tokens, 0.0, None, None, 0))
    assert len(made) == tokens
    with torch.no_grad():
        logits_TV = model.decoder(torch.tensor([[*ids, *made]]))[0, len(ids) - 1 : -1, :5]
    assert logits_TV.argmax(dim=-1).tolist() == made


def test_greedy_with_longrope_is_the_full_pass_of_each_length(decoder: Make) -> None:
    scaling = {"kind": "longrope", "original": 10, "short": [1, 1, 1, 1], "long": [1, 3, 5, 9]}
    changes = {"position": {"kind": "rope", "scaling": scaling}}
    model = TorchModel("tiny", decoder(context=CONTEXT, **changes), FewLetters())
    ids = [0, 1, 2, 0, 1, 3]
    for token in model._tokens(ids, 18, 18, 0.0, None, None, 0):
        with torch.no_grad():
            assert token == int(model.decoder(torch.tensor([ids]))[0, -1, :5].argmax())
        ids = [*ids, token]
    assert len(ids) == CONTEXT


def test_a_prompt_longer_than_the_context_is_read_from_its_end(decoder: Make) -> None:
    model = talking(decoder)
    prompt = "0123456789" * 10
    assert model.generate(prompt, 1, 1) == model.generate("# " + prompt, 1, 1)


def test_ids_that_the_tokenizer_does_not_know_are_never_chosen(decoder: Make) -> None:
    model = talking(decoder, vocab_size=320)
    with torch.no_grad():
        model.decoder.head.weight[258:] *= 50
    assert len(list(model._tokens([EOT], 30, 30, 1.0, None, None, 0))) == 30
    assert model.generate("a", 30, 30, temperature=1.0)


# Streaming and stop strings


@settings(max_examples=60)
@given(
    st.integers(0, 10**6),
    st.lists(st.text("abc \n", min_size=1, max_size=4), max_size=3),
    st.integers(0, 30),
)
def test_stop_strings_never_appear(
    chatty: TorchModel, seed: int, stops: list[str], most: int
) -> None:
    model = chatty
    free = model.generate("a", most, temperature=1.0, seed=seed)
    pieces = list(model.stream("a", most, temperature=1.0, seed=seed, stop=stops))
    text = "".join(pieces)
    assert all(pieces), "no empty pieces"
    assert text == model.generate("a", most, temperature=1.0, seed=seed, stop=stops)
    # The text as far as the first stop string to be complete, without it.
    ends = [(free.find(s) + len(s), free.find(s)) for s in stops if s in free]
    assert text == (free if not ends else free[: min(ends)[1]])
    assert not any(s in text for s in stops)


def test_what_cannot_become_a_stop_string_is_not_held_back(chatty: TorchModel) -> None:
    free = list(chatty.stream("a", 30, temperature=1.0, seed=4))
    assert free == list("".join(free)), "each byte comes as it is made"
    held = list(chatty.stream("a", 30, temperature=1.0, seed=4, stop=["zz"]))
    assert held == free


def test_pieces_are_whole_characters(decoder: Make) -> None:
    model = talking(decoder)
    for seed in range(5):
        pieces = list(model.stream("é", 40, 40, temperature=1.5, seed=seed))
        assert "".join(pieces) == model.generate("é", 40, 40, temperature=1.5, seed=seed)


# Log probabilities


def direct(model: TorchModel, ids: list[int]) -> list[float]:
    with torch.no_grad():
        scores = model.decoder(torch.tensor([ids[:-1]]))[0].double().log_softmax(dim=-1)
    return [float(scores[i, token]) for i, token in enumerate(ids[1:])]


@pytest.mark.parametrize("length", [1, 2, CONTEXT - 1, CONTEXT])
def test_a_text_within_the_context_is_scored_as_a_whole(decoder: Make, length: int) -> None:
    model = talking(decoder)
    text = "import os, sys # and more"[:length]
    ids = [EOT, *text.encode()]
    found = model.logprobs(text)
    assert [token for token, _ in found] == ids[1:]
    assert [p for _, p in found] == pytest.approx(direct(model, ids), abs=1e-5)


@pytest.mark.parametrize("changes", [{}, {"context": 1}, {"context": 2}, {"context": 7}])
@pytest.mark.parametrize("length", [1, 2, 3, 23, 25, 36, 37, 48, 49, 150])
def test_a_longer_text_is_scored_in_windows_that_overlap_by_half(
    decoder: Make, source: bytes, length: int, changes: dict[str, int]
) -> None:
    context = changes.get("context", CONTEXT)
    model = TorchModel("tiny", decoder(context=context), ByteTokenizer())
    text = source[:length].decode("ascii")
    ids = [EOT, *text.encode()]
    found = model.logprobs(text)
    assert [token for token, _ in found] == ids[1:], "every byte once, in order"
    # Window w begins at w * (context // 2) and gives its last half, the first window all.
    stride = max(1, context // 2)
    expected: list[float] = []
    start = 0
    while len(expected) < length:
        window = direct(model, ids[start : start + context + 1])
        expected += window[len(expected) - start :]
        start += stride
    assert [p for _, p in found] == pytest.approx(expected, abs=1e-5)


def test_many_windows_at_once_are_each_window_alone(decoder: Make, source: bytes) -> None:
    model = talking(decoder, input={"kind": "patches"}, matches={"lengths": [2]})
    text = source[: 900 * CONTEXT // 2].decode("ascii")
    scores = np.array([p for _, p in model.logprobs(text)])
    assert len(scores) == len(text)
    stride, ids = CONTEXT // 2, [EOT, *text.encode()]
    for start in (0, stride, 400 * stride, 700 * stride):
        window = direct(model, ids[start : start + CONTEXT + 1])
        new = CONTEXT - stride if start else 0
        there = scores[start + new : start + CONTEXT]
        assert there.tolist() == pytest.approx(window[new:], abs=1e-5)


def test_the_first_token_is_scored_only_after_something(decoder: Make) -> None:
    model = talking(decoder)
    assert [t for t, _ in model.logprobs("abc")] == list(b"abc")
    assert model.logprobs("abc", bos=True) == model.logprobs("abc")
    assert [t for t, _ in model.logprobs("abc", bos=False)] == list(b"bc")
    assert model.logprobs("") == []
    assert model.logprobs("", bos=False) == []
    bare = talking(decoder, WithoutBos())
    assert bare.logprobs("abc") == model.logprobs("abc", bos=False)
    assert bare.logprobs("a") == []
    with pytest.raises(FlyweightError, match="no beginning-of-text token"):
        bare.logprobs("abc", bos=True)
    with pytest.raises(FlyweightError, match="prompt is empty"):
        bare.generate("")
    assert len(model.generate("", 5, 5, temperature=1.0)) > 0


def test_log_probabilities_are_of_a_distribution(decoder: Make) -> None:
    model = talking(decoder)
    of_bytes = [model.logprobs("x" + chr(byte))[1][1] for byte in range(128)]
    assert 0 < sum(math.exp(p) for p in of_bytes) < 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"max_tokens": -1}, "max_tokens = -1"),
        ({"min_tokens": -1}, "min_tokens = -1"),
        ({"max_tokens": 3, "min_tokens": 4}, "min_tokens = 4"),
        ({"temperature": -0.1}, "temperature = -0.1"),
        ({"temperature": math.nan}, "temperature = nan"),
        ({"temperature": math.inf}, "temperature = inf"),
        ({"top_k": 0}, "top_k = 0"),
        ({"top_p": 0.0}, "top_p = 0.0"),
        ({"top_p": 1.5}, "top_p = 1.5"),
        ({"top_p": math.nan}, "top_p = nan"),
        ({"stop": "abc"}, "stop = 'abc'"),
        ({"stop": ["a", ""]}, "stop = "),
        ({"prompt": "\ud800"}, "lone surrogate"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    decoder: Make, arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(FlyweightError, match=said):
        talking(decoder).generate(**{"prompt": "a", **arguments})


# Choosing


@given(
    st.lists(st.integers(-80, 80).map(lambda n: n / 10), min_size=2, max_size=12, unique=True),
    st.floats(0.1, 3.0),
    st.none() | st.integers(1, 14),
    st.none() | st.floats(0.05, 1.0),
)
def test_a_choice_lies_within_top_k_and_top_p(
    logits: list[float], temperature: float, top_k: int | None, top_p: float | None
) -> None:
    tensor = torch.tensor(logits, dtype=torch.float64)
    ranked = sorted(range(len(logits)), key=lambda i: -logits[i])[: top_k or len(logits)]
    weights = np.exp((np.array(logits)[ranked] - max(logits)) / temperature)
    before = np.cumsum(weights / weights.sum()) - weights / weights.sum()
    allowed = {i for i, mass in zip(ranked, before, strict=True) if mass < (top_p or 1) + 1e-9}
    generator = torch.Generator().manual_seed(0)
    chosen = {choose(tensor, temperature, top_k, top_p, generator) for _ in range(30)}
    assert chosen <= allowed
    assert choose(tensor, 0.0, top_k, top_p, generator) == ranked[0]


def test_choices_come_as_often_as_their_probability_says() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    generator = torch.Generator().manual_seed(1)
    counts = np.bincount([choose(logits, 0.7, None, None, generator) for _ in range(4000)])
    expected = (logits / 0.7).softmax(0).numpy()
    assert counts / 4000 == pytest.approx(expected, abs=0.03)
