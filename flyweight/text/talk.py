"""What a model that talks does with text, whichever engine computes it.

Arguments are checked, tokens become pieces of text, stop strings are held back and cut off, a long
text is scored in windows. An engine adds two things: the next tokens, and a text's scores.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import NamedTuple

from flyweight.spec.errors import FlyweightError
from flyweight.spec.model import ModelSpec
from flyweight.text.tokenizer import StreamDecoder, Tokenizer, require_id

# Tokens scored at a time; bounds memory whatever the text's length.
SCORED_AT_ONCE = 8192
# What top_logprobs may ask for.
_MOST_TOP = 100


@dataclass(frozen=True)
class Sampling:
    """How next tokens are chosen. Temperature 0 is greedy; what is None is left out.

    Logits are penalised (``repetition_penalty``, arXiv:1909.05858: those of tokens in the sequence
    are divided by it where positive, multiplied where not), divided by the temperature, cut to the
    ``top_k`` likeliest, to the smallest set whose mass reaches ``top_p`` (arXiv:1904.09751), and
    to what has ``min_p`` of the likeliest's probability (arXiv:2407.01082).
    """

    max_tokens: int = 128
    min_tokens: int = 0
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    min_p: float | None = None
    repetition_penalty: float | None = None

    def check(self) -> None:
        """Raises FlyweightError naming the argument that makes no sense."""
        for name in ("max_tokens", "min_tokens", "top_k", "seed"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Integral):
                raise FlyweightError(f"{name} = {value!r}: a whole number is wanted")
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Real):
                raise FlyweightError(f"{name} = {value!r}: a number is wanted")
        most, least = self.max_tokens, self.min_tokens
        if most < 0 or least < 0 or least > most:
            raise FlyweightError(
                f"max_tokens = {most} and min_tokens = {least}: 0 <= min <= max is wanted"
            )
        if not self.temperature >= 0 or math.isinf(self.temperature):
            raise FlyweightError(
                f"temperature = {self.temperature}: a number of 0 or more is wanted"
            )
        if self.top_k is not None and self.top_k < 1:
            raise FlyweightError(f"top_k = {self.top_k}: 1 or more is wanted")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise FlyweightError(f"top_p = {self.top_p}: more than 0 and at most 1 is wanted")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise FlyweightError(f"min_p = {self.min_p}: 0 to 1 is wanted")
        penalty = self.repetition_penalty
        if penalty is not None and not (0 < penalty < math.inf):
            raise FlyweightError(
                f"repetition_penalty = {penalty}: more than 0 is wanted (1 changes nothing)"
            )
        if not 0 <= self.seed < 1 << 63:
            raise FlyweightError(f"seed = {self.seed}: 0 or more, and less than 2^63, is wanted")


class Step(NamedTuple):
    """A token that was chosen, and the model's own log probabilities (nats, of the plain softmax):
    the token's, and the likeliest tokens' with theirs; NaN and () where none were asked for."""

    token: int
    logprob: float = math.nan
    top: tuple[tuple[int, float], ...] = ()


class Talker:
    """The protocol that ``flyweight.load`` returns, over an engine's ``_steps`` and ``_scores``."""

    name: str
    spec: ModelSpec
    tokenizer: Tokenizer

    def _steps(self, ids: list[int], sampling: Sampling, top: int | None) -> Iterator[Step]:
        """The tokens after ``ids`` (not empty), an end of text left out. ``top``: how many of the
        likeliest tokens to tell, None for no log probabilities at all."""
        raise NotImplementedError

    def _scores(self, ids: list[int]) -> list[float]:
        """log p of ids[1:], each given those before it within its window (``windows``)."""
        raise NotImplementedError

    def generate(
        self,
        prompt: str | Sequence[int] = "",
        max_tokens: int = 128,
        min_tokens: int = 0,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop: list[str] | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
    ) -> str:
        """The continuation of ``prompt``, alone. Stop strings are left out of it.

        A prompt of ids (``text.infill``) is taken as it is.
        """
        return "".join(
            self.stream(
                prompt,
                max_tokens,
                min_tokens,
                temperature,
                top_k,
                top_p,
                seed,
                stop,
                min_p,
                repetition_penalty,
            )
        )

    def stream(
        self,
        prompt: str | Sequence[int] = "",
        max_tokens: int = 128,
        min_tokens: int = 0,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop: list[str] | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
    ) -> Iterator[str]:
        """Pieces of the continuation as they come; together they equal ``generate``'s.

        Closing the stream ends the computation.
        """
        sampling = Sampling(
            max_tokens, min_tokens, temperature, top_k, top_p, seed, min_p, repetition_penalty
        )
        return pieces(self.steps(prompt, sampling), self.tokenizer, stop)

    def generate_all(
        self,
        prompts: Sequence[str | Sequence[int]],
        sampling: Sampling | None = None,
        stop: list[str] | None = None,
    ) -> list[str]:
        """Each prompt's continuation, as ``generate`` alone gives it.

        Our engine decodes them together, each step's weights read once for all; each has a cache
        of its own, and a FlyweightError says where memory has no room for so many.
        """
        sampling = sampling or Sampling()
        sampling.check()
        _check_stop(stop)
        together = self._together([self._prompt(p) for p in prompts], sampling, stop or [])
        return ["".join(_pieces(s, StreamDecoder(self.tokenizer), stop or [])) for s in together]

    def _together(
        self, prompts: list[list[int]], sampling: Sampling, stops: Sequence[str]
    ) -> Iterator[Iterator[Step]]:
        """The tokens after each of ``prompts``, to where a stop string is complete at least."""
        return (self._steps(ids, sampling, None) for ids in prompts)

    def steps(
        self,
        prompt: str | Sequence[int] = "",
        sampling: Sampling | None = None,
        top_logprobs: int | None = None,
    ) -> Iterator[Step]:
        """The chosen tokens themselves after ``prompt``, a text or token ids.

        ``top_logprobs``: with log probabilities of each, and of so many of the likeliest in its
        place; None for none at all.
        """
        sampling = sampling or Sampling()
        sampling.check()
        if top_logprobs is not None and not 0 <= top_logprobs <= _MOST_TOP:
            raise FlyweightError(f"top_logprobs = {top_logprobs}: 0 to {_MOST_TOP} is wanted")
        return self._steps(self._prompt(prompt), sampling, top_logprobs)

    def logprobs(self, text: str, bos: bool | None = None) -> list[tuple[int, float]]:
        """(token id, log probability in nats) of each token given all before it.

        A text longer than the context is scored in windows that overlap by half. A first token
        that nothing precedes is left out.
        """
        ids = self._encode(text, bos)
        if not ids:
            return []
        return list(zip(ids[1:], self._scores(ids), strict=True))

    def _encode(self, text: str, bos: bool | None = None) -> list[int]:
        return self.tokenizer.encode(text, bos=self.tokenizer.add_bos if bos is None else bos)

    def _prompt(self, prompt: str | Sequence[int]) -> list[int]:
        if isinstance(prompt, str):
            ids = self._encode(prompt)
        else:
            try:
                if isinstance(prompt, bytes | bytearray):
                    raise TypeError
                ids = [operator.index(id) for id in prompt]
            except TypeError:
                raise FlyweightError(
                    f"prompt is {type(prompt).__name__}: a text (str) or token ids are wanted"
                ) from None
            for id in ids:
                require_id(id, self.tokenizer.vocab_size)
        if not ids:
            raise FlyweightError("the prompt is empty, and this tokenizer puts nothing before it")
        return ids


class Window(NamedTuple):
    """ids[begin : begin + length] are read, ids[begin + 1 : begin + length + 1] are scored; those
    before ``new`` were scored by the window before."""

    begin: int
    length: int
    new: int


def windows(count: int, context: int) -> list[Window]:
    """How ``count`` ids are scored: every half context a window begins, until the last target is
    within one."""
    stride = max(1, context // 2)
    starts = [0, *range(stride, count - 1 - context + stride, stride)]
    lengths = (min(context, count - 1 - start) for start in starts)
    return [
        Window(start, length, 0 if start == 0 else context - stride)
        for start, length in zip(starts, lengths, strict=True)
        if length > 0
    ]


def pieces(
    steps: Iterator[Step], tokenizer: Tokenizer, stop: Sequence[str] | None = None
) -> Iterator[str]:
    """The text of ``steps`` as they come, up to where it holds one of the ``stop`` strings.

    Raises FlyweightError for stop strings that are none.
    """
    _check_stop(stop)
    return _pieces(steps, StreamDecoder(tokenizer), stop or [])


def _pieces(steps: Iterator[Step], decoder: StreamDecoder, stops: Sequence[str]) -> Iterator[str]:
    held = ""
    for step in steps:
        held += decoder.push(step.token)
        cut = _first(held, stops)
        if cut is not None:
            held = held[:cut]
            break
        # What could still become a stop string is held back.
        keep = max((_overlap(held, s) for s in stops), default=0)
        if len(held) > keep:
            yield held[: len(held) - keep]
            held = held[len(held) - keep :]
    else:
        held += decoder.flush()
        cut = _first(held, stops)
        held = held if cut is None else held[:cut]
    if held:
        yield held


def _check_stop(stop: Sequence[str] | None) -> None:
    if isinstance(stop, str) or not all(isinstance(s, str) and s for s in stop or []):
        raise FlyweightError(f"stop = {stop!r}: a list of strings that are not empty is wanted")


def _first(text: str, stops: Sequence[str]) -> int | None:
    found = [i for i in (text.find(s) for s in stops) if i >= 0]
    return min(found) if found else None


def _overlap(text: str, stop: str) -> int:
    """The longest end of ``text`` that begins ``stop``."""
    return next(
        (n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0
    )
