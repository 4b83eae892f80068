"""What a model costs to run: time to the first token, tokens a second, and the memory's share.

The model is known by its protocol alone. Figures are medians over rounds, each with a prompt that
was not there before, so that nothing remembered helps.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from flyweight.spec.errors import FlyweightError
from flyweight.spec.model import ModelSpec
from flyweight.text.talk import Sampling, Step
from flyweight.text.tokenizer import Tokenizer


class Timed(Protocol):
    @property
    def spec(self) -> ModelSpec: ...
    @property
    def tokenizer(self) -> Tokenizer: ...

    def steps(
        self,
        prompt: str | Sequence[int],
        sampling: Sampling | None = None,
        top_logprobs: int | None = None,
    ) -> Iterator[Step]: ...


@dataclass(frozen=True)
class Speed:
    """At ``prompt`` tokens: seconds to the first token, prompt tokens a second on the way there,
    and tokens a second after it."""

    prompt: int
    first_token_seconds: float
    prefill_per_second: float
    decode_per_second: float

    def values(self) -> dict[str, Any]:
        return asdict(self)


def speeds(
    model: Timed,
    prompts: Sequence[int],
    tokens: int,
    rounds: int,
    progress: Callable[[str], None] | None = None,
) -> list[Speed]:
    """For each length of ``prompts``, ``tokens`` generated. Lengths take turns in each round."""
    if tokens < 2:
        raise FlyweightError(f"tokens = {tokens}: 2 or more are wanted, the first and those after")
    longest = max(prompts) + tokens - 1
    if longest > model.spec.context:
        raise FlyweightError(
            f"a prompt of {max(prompts)} and {tokens} more are longer than the context of"
            f" {model.spec.context}"
        )
    found: dict[int, list[tuple[float, float]]] = {length: [] for length in prompts}
    _once(model, min(prompts), 2, 0)  # what happens once is not timed
    for round in range(rounds):
        for at, length in enumerate(prompts):
            if progress is not None:
                progress(f"round {round + 1} of {rounds}, {length} tokens")
            found[length].append(_once(model, length, tokens, 1 + round * len(prompts) + at))
    return [
        Speed(
            length,
            first := statistics.median(each for each, _ in times),
            length / first,
            (tokens - 1) / statistics.median(each for _, each in times),
        )
        for length, times in found.items()
    ]


def _once(model: Timed, length: int, tokens: int, seed: int) -> tuple[float, float]:
    """Seconds to the first token, and from it to the last."""
    prompt = fresh_prompt(model.tokenizer, length, seed)
    begin = time.perf_counter()
    steps = model.steps(prompt, Sampling(tokens, tokens))
    next(steps)
    first = time.perf_counter()
    count = 1 + sum(1 for _ in steps)
    end = time.perf_counter()
    assert count == tokens, (count, tokens)
    return first - begin, end - first


def fresh_prompt(tokenizer: Tokenizer, length: int, seed: int) -> list[int]:
    """Token ids drawn from ``seed``: random words for bytes, random ordinary tokens otherwise."""
    generator = np.random.default_rng(seed)
    if tokenizer.kind == "bytes":
        text = bytearray()
        while len(text) < length:
            word = generator.integers(97, 123, generator.integers(1, 10))
            text += word.astype(np.uint8).tobytes() + b" "
        return list(text[:length])
    ids: list[int] = []
    while len(ids) < length:
        id = int(generator.integers(tokenizer.vocab_size))
        if tokenizer.token_bytes(id):
            ids.append(id)
    return ids
