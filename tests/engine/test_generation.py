"""Generation: sampling against numpy, the loop's ends, streams together, cancellation."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyweight.spec.errors import FlyweightError

from .tiny import Array, Tiny, frequencies, native, small_model

some = settings(max_examples=40, deadline=None)
MODEL = small_model(np.random.default_rng(0))


def constant(logits: Array, context: int = 4096) -> Any:
    """An executor whose logits are the same after every token."""
    vocab = len(logits)
    tiny = Tiny(vocab, context)
    tiny.logits(tiny.embed(np.repeat(logits[None], vocab, 0)))
    return tiny.executor()


def sample(executor: Any, count: int, **settings: Any) -> list[int]:
    generation = native.Generation(executor)
    generation.add(executor.begin(), [0], max_tokens=count, **settings)
    ((_, tokens, *_, finish),) = generation.next(count)
    assert finish == "length" and len(tokens) == count and generation.next() == []
    return list(tokens)


def distribution(
    logits: Array, temperature: float, top_k: int, top_p: float, min_p: float
) -> tuple[Array, Array]:
    """The kept ids in the order of drawing, and their probabilities, in float64."""
    x = logits.astype(np.float64) / temperature
    kept = np.arange(len(x))
    if 0 < top_k < len(x):
        kept = kept[x >= np.sort(x)[::-1][top_k - 1]]
    p = np.exp(x[kept] - x.max())
    p /= p.sum()
    if top_p < 1:
        order = np.argsort(-p, kind="stable")
        kept, p = kept[order], p[order]
        inside = np.cumsum(p) - p < top_p
        kept, p = kept[inside], p[inside]
    kept, p = kept[p >= min_p * p.max()], p[p >= min_p * p.max()]
    return kept, p / p.sum()


@some
@given(
    vocab=st.integers(1, 300), temperature=st.floats(0.1, 3), top_k=st.integers(0, 40),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 0.99, 1.0]), min_p=st.sampled_from([0.0, 0.05, 0.5]),
    spread=st.sampled_from([0.1, 1.0, 10.0]), seed=st.integers(0, 2**63 - 1),
    rng=st.integers(0, 999),
)  # fmt: skip
def test_tokens_are_those_that_numpy_draws(
    vocab: int, temperature: float, top_k: int, top_p: float, min_p: float, spread: float,
    seed: int, rng: int,
) -> None:  # fmt: skip
    logits = (spread * np.random.default_rng(rng).standard_normal(vocab)).astype(np.float32)
    temperature = float(np.float32(temperature))
    choices = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    found = sample(constant(logits), 50, seed=seed, **choices)
    kept, p = distribution(logits, **choices)
    assert set(found) <= set(kept.tolist())
    edges = np.cumsum(p)
    for n, token in enumerate(found):
        u = native.draw(seed, n)
        place = min(int(np.searchsorted(edges, u, side="right")), len(kept) - 1)
        close = np.abs(edges - u).min() < 1e-9
        assert token == kept[place] or close, (n, token, kept[place])
    assert found == sample(constant(logits), 50, seed=seed, **choices)


def test_draws_are_splitmix64_and_uniform() -> None:
    word, step = (1 << 64) - 1, 0x9E3779B97F4A7C15

    def mix(h: int) -> int:
        h = (h ^ h >> 30) * 0xBF58476D1CE4E5B9 & word
        h = (h ^ h >> 27) * 0x94D049BB133111EB & word
        return h ^ h >> 31

    for seed, n in ((0, 0), (1, 0), (7, 12), (2**64 - 1, 2**40)):
        expected = mix(mix(seed + step & word) + (n + 1) * step & word) >> 11
        assert native.draw(seed, n) == expected * 2.0**-53
    counts = np.histogram([native.draw(3, n) for n in range(20_000)], 20, (0, 1))[0]
    # 19 degrees of freedom: 43.8 in one of a thousand.
    assert ((counts - 1000) ** 2 / 1000).sum() < 43.8


def test_frequencies_of_many_draws() -> None:
    logits = np.linspace(-2, 2, 12).astype(np.float32)
    choices = {"temperature": 0.8, "top_k": 8, "top_p": 0.95, "min_p": 0.02}
    found = np.bincount(sample(constant(logits, 40_000), 30_000, seed=5, **choices), minlength=12)
    kept, p = distribution(logits, **choices)
    expected = np.zeros(12)
    expected[kept] = 30_000 * p
    assert (found[expected == 0] == 0).all()
    inside = expected > 0
    chi = ((found - expected)[inside] ** 2 / expected[inside]).sum()
    assert inside.sum() > 4 and chi < 26.1  # 8 degrees of freedom, one of a thousand


def test_greedy_takes_the_lowest_of_equals_and_what_may_be_chosen() -> None:
    logits = np.array([1, 5, 3, 5, 9, 8, 7], np.float32)
    assert sample(constant(logits), 2) == [4, 4]
    assert sample(constant(logits), 1, vocabulary=4) == [1]
    assert sample(constant(logits), 1, never=[4, 5]) == [6]
    assert sample(constant(logits), 2, stops=[4], min_tokens=2, temperature=0.0) == [5, 5]
    generation = native.Generation(executor := constant(logits))
    stream = generation.add(executor.begin(), [0], max_tokens=9, min_tokens=2, stops=[4])
    assert generation.next(9) == [(stream, [5, 5], [0.0, 0.0], [[], []], "stop")]


def test_the_repetition_penalty_counts_the_prompt_and_what_was_made() -> None:
    logits = np.array([4, 3.9, 3, -1, -1.05], np.float32)
    executor = constant(logits)
    generation = native.Generation(executor)
    generation.add(executor.begin(), [0, 0], max_tokens=3, repetition_penalty=1.2)
    # 4 / 1.2 < 3.9; then 3.9 / 1.2 < 4 / 1.2; from then on 0 stays the largest.
    assert generation.next(3)[0][1] == [1, 0, 0]
    generation.add(executor.begin(), [0, 1], max_tokens=2, repetition_penalty=1.2, penalty_last=1)
    assert generation.next(2)[0][1] == [0, 1]
    generation.add(executor.begin(), [3], max_tokens=1, repetition_penalty=2.0, never=[0, 1, 2])
    assert generation.next()[0][1] == [4]


def test_log_probabilities_are_the_models_own() -> None:
    logits = np.random.default_rng(3).standard_normal(1000).astype(np.float32) * 4
    executor = constant(logits)
    generation = native.Generation(executor)
    masked = {"never": [int(logits.argmax())], "repetition_penalty": 1.5, "vocabulary": 900}
    generation.add(
        executor.begin(), [0], max_tokens=20, temperature=2.0, top_logprobs=5, seed=1, **masked
    )
    ((_, tokens, logprobs, tops, _),) = generation.next(20)
    x = logits.astype(np.float64)
    expected = x - np.log(np.exp(x - x.max()).sum()) - x.max()
    np.testing.assert_allclose(logprobs, expected[tokens], atol=1e-6)
    best = np.argsort(-x, kind="stable")[:5]
    for top in tops:
        assert [i for i, _ in top] == best.tolist()
        np.testing.assert_allclose([p for _, p in top], expected[best], atol=1e-6)


def by_hand(prompt: list[int], count: int) -> list[int]:
    """Greedy decoding through feed, one token at a time."""
    executor = MODEL.executor()
    sequence = executor.begin(frequencies(8))
    made: list[int] = []
    fed = prompt
    for _ in range(count):
        made.append(int(executor.feed([sequence], [fed])[0].argmax()))
        fed = made[-1:]
    return made


def test_streams_decode_together_as_alone() -> None:
    executor = MODEL.executor(2)
    generation = native.Generation(executor)
    prompts = [[1], [2, 3, 4], list(range(40)) * 14]
    counts = [9, 3, 12]
    sequences = [executor.begin(frequencies(8)) for _ in prompts]
    streams = [
        generation.add(s, p, max_tokens=n)
        for s, p, n in zip(sequences, prompts, counts, strict=True)
    ]
    made: dict[int, list[int]] = {s: [] for s in streams}
    finished = {}
    while pieces := generation.next(2):
        for stream, tokens, _, _, finish in pieces:
            assert len(tokens) <= 2
            made[stream] += tokens
            if finish:
                finished[stream] = finish
    assert finished == dict.fromkeys(streams, "length")
    for stream, sequence, prompt, count in zip(streams, sequences, prompts, counts, strict=True):
        assert made[stream] == by_hand(prompt, count)
        # All but the last token are in the sequence, for the next call.
        assert sequence.tokens.tolist() == prompt + made[stream][:-1]


def test_the_context_ends_a_stream() -> None:
    executor = constant(np.arange(5, dtype=np.float32), context=6)
    generation = native.Generation(executor)
    generation.add(executor.begin(), [0, 0, 0], max_tokens=100)
    # Three of the prompt, three made and fed; a fourth needs no room.
    assert generation.next(100)[0][1::3] == ([4, 4, 4, 4], "context")
    generation.add(executor.begin(), [0], max_tokens=0)
    assert generation.next() == [(1, [], [], [], "length")]


def test_a_stream_is_cancelled_while_it_runs() -> None:
    executor = constant(np.arange(50, dtype=np.float32), context=1_000_000)
    generation = native.Generation(executor)
    stream = generation.add(executor.begin(), [0], max_tokens=900_000)
    pieces: list[Any] = []
    worker = threading.Thread(target=lambda: pieces.extend(generation.next(900_000)))
    worker.start()
    # The other thread does not hold the interpreter: this one comes to cancel.
    time.sleep(0.05)
    generation.cancel(stream)
    worker.join(timeout=60)
    assert not worker.is_alive()
    assert pieces[0][4] == "cancelled" and len(pieces[0][1]) < 900_000
    assert generation.next() == []
    generation.cancel(stream)


def test_a_cancelled_stream_leaves_the_others_whole() -> None:
    executor = MODEL.executor()
    generation = native.Generation(executor)
    stays = generation.add(executor.begin(frequencies(8)), list(range(30)), max_tokens=5)
    goes = generation.add(executor.begin(frequencies(8)), [1] * 590, max_tokens=5)
    generation.cancel(goes)
    made: dict[int, Any] = {stays: [], goes: []}
    while pieces := generation.next():
        for stream, tokens, *_, finish in pieces:
            made[stream] += [*tokens, finish] if finish else tokens
    assert made == {stays: [*by_hand(list(range(30)), 5), "length"], goes: ["cancelled"]}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -1.0}, "temperature = -1"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"top_k": -1}, "top_k = -1"),
        ({"top_p": 0.0}, "top_p = 0"),
        ({"min_p": 1.5}, "min_p = 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty = 0"),
        ({"stops": [5]}, "token 5 is not within"),
        ({"never": [0, 1, 2], "stops": [3, 4]}, "no token is left"),
        ({"vocabulary": 2, "never": [0], "stops": [1, 4]}, "no token is left"),
        ({"vocabulary": 6}, "the model has 5 logits"),
        ({"top_logprobs": 6}, "0 to 5"),
        ({"min_tokens": 4}, "max_tokens = 3 and min_tokens = 4"),
    ],
)
def test_settings_that_make_no_sense(wrong: dict[str, Any], message: str) -> None:
    executor = constant(np.arange(5, dtype=np.float32))
    generation = native.Generation(executor)
    with pytest.raises(FlyweightError, match=message):
        generation.add(executor.begin(), [0], **{"max_tokens": 3, **wrong})
    with pytest.raises(FlyweightError, match="no tokens were given"):
        generation.add(executor.begin(), [], max_tokens=3)
    sequence = executor.begin()
    generation.add(sequence, [0], max_tokens=1)
    with pytest.raises(FlyweightError, match="another stream"):
        generation.add(sequence, [0], max_tokens=1)
    with pytest.raises(FlyweightError, match="at most 0 tokens"):
        generation.next(0)


def test_logits_that_are_no_numbers_are_an_error() -> None:
    executor = constant(np.full(5, np.nan, np.float32))
    generation = native.Generation(executor)
    generation.add(executor.begin(), [0], max_tokens=1, top_logprobs=3)
    with pytest.raises(FlyweightError, match="not numbers"):
        generation.next()
    assert generation.next() == []


def test_equals_of_the_kth_largest_are_kept() -> None:
    logits = np.array([2, 1, 1, 1, 0], np.float32)
    found = sample(constant(logits), 300, temperature=1.0, top_k=2, seed=3)
    assert set(found) == {0, 1, 2, 3}


def test_a_cache_that_is_full_keeps_what_was_made() -> None:
    executor = MODEL.executor()
    first = executor.begin(frequencies(8))
    executor.feed([first], [[1]])
    executor = MODEL.executor(cache_limit=first.cache_bytes)
    generation = native.Generation(executor)
    sequence = executor.begin(frequencies(8))
    generation.add(sequence, [1, 2, 3], max_tokens=300)
    ((_, tokens, *_, finish),) = generation.next(300)
    assert tokens == by_hand([1, 2, 3], 254) and finish is None and sequence.length == 256
    with pytest.raises(FlyweightError, match="no room"):
        generation.next(300)
