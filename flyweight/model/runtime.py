"""A model that talks, in PyTorch: generate, stream, log probabilities."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence

import numpy as np
import torch

from flyweight.model.cache import Cache
from flyweight.model.decoder import Decoder
from flyweight.model.sample import choose
from flyweight.spec.errors import FlyweightError
from flyweight.spec.model import ModelSpec
from flyweight.spec.position import LongRope
from flyweight.text.tokenizer import StreamDecoder, Tokenizer, require_id

# Tokens scored at a time; bounds memory whatever the text's length.
_SCORED_AT_ONCE = 8192


class TorchModel:
    """The protocol that ``flyweight.load`` returns, over a Decoder."""

    def __init__(self, name: str, decoder: Decoder, tokenizer: Tokenizer) -> None:
        self.name, self.decoder, self.tokenizer = name, decoder.eval(), tokenizer
        self.spec: ModelSpec = decoder.spec

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
    ) -> str:
        """The continuation of ``prompt``, alone. Stop strings are left out of it.

        A prompt of ids (``text.infill``) is taken as it is.
        """
        return "".join(
            self.stream(prompt, max_tokens, min_tokens, temperature, top_k, top_p, seed, stop)
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
    ) -> Iterator[str]:
        """Pieces of the continuation as they come; together they equal ``generate``'s."""
        _check_sampling(max_tokens, min_tokens, temperature, top_k, top_p, seed)
        _check_stop(stop)
        ids = self._encode(prompt) if isinstance(prompt, str) else self._checked(prompt)
        if not ids:
            raise FlyweightError("the prompt is empty, and this tokenizer puts nothing before it")
        pieces = StreamDecoder(self.tokenizer)
        held, stops = "", stop or []
        for token in self._tokens(ids, max_tokens, min_tokens, temperature, top_k, top_p, seed):
            held += pieces.push(token)
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
            held += pieces.flush()
            cut = _first(held, stops)
            held = held if cut is None else held[:cut]
        if held:
            yield held

    def logprobs(self, text: str, bos: bool | None = None) -> list[tuple[int, float]]:
        """(token id, log probability in nats) of each token given all before it.

        A text longer than the context is scored in windows that overlap by half. A first token
        that nothing precedes is left out.
        """
        ids = self._encode(text, bos)
        if not ids:
            return []
        return list(zip(ids[1:], self._scores(np.array(ids, dtype=np.int64)), strict=True))

    def _encode(self, text: str, bos: bool | None = None) -> list[int]:
        return self.tokenizer.encode(text, bos=self.tokenizer.add_bos if bos is None else bos)

    def _checked(self, ids: Sequence[int]) -> list[int]:
        for id in ids:
            require_id(id, self.tokenizer.vocab_size)
        return list(ids)

    @torch.no_grad()
    def _scores(self, ids: np.ndarray) -> list[float]:
        """log p of ids[1:], each given those before it within its window."""
        context = self.spec.context
        stride = max(1, context // 2)
        # Windows begin every half context until the last target, len(ids) - 2, is within one.
        starts = [0, *range(stride, len(ids) - 1 - context + stride, stride)]
        scores = np.zeros(max(0, len(ids) - 1))
        at_once = max(1, _SCORED_AT_ONCE // context)
        for group in range(0, len(starts), at_once):
            some = starts[group : group + at_once]
            windows = [ids[s : s + context + 1] for s in some]
            width = max(len(w) for w in windows) - 1
            if width < 1:
                continue
            tokens = np.zeros((len(some), width), dtype=np.int64)
            for row, window in zip(tokens, windows, strict=True):
                row[: len(window) - 1] = window[:-1]
            hidden_BTE = self.decoder.hidden(torch.from_numpy(tokens))
            for start, window, row_TE in zip(some, windows, hidden_BTE, strict=True):
                own = torch.from_numpy(window[1:])
                # A row at a time: all rows' logits would be gigabytes with a large vocabulary.
                log_probs = self.decoder.logits(row_TE[: len(own)]).log_softmax(dim=-1)
                picked = log_probs.gather(1, own[:, None])[:, 0].double().numpy()
                new = 0 if start == 0 else context - stride
                scores[start + new : start + len(own)] = picked[new:]
        return scores.tolist()

    def _cache(self, length: int) -> Cache:
        """An empty cache for a sequence that may come to ``length`` tokens.

        Dynamic NTK and ALiBi's interpolation read every position by the length of the whole, so
        the whole is taken to be as long as it may become. LongRoPE changes once, when the original
        context is outgrown, and its cache then computes anew what it holds.
        """
        position = self.spec.position
        grows = position.original is not None and not isinstance(position.scaling, LongRope)
        return self.decoder.new_cache(min(length, self.spec.context) if grows else 0)

    @torch.no_grad()
    def _tokens(
        self,
        ids: list[int],
        max_tokens: int,
        min_tokens: int,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        seed: int,
    ) -> Iterator[int]:
        generator = torch.Generator().manual_seed(seed)
        eot = self.tokenizer.eot_id
        after = self._logits(ids, max_tokens)
        logits = next(after)
        for made in range(max_tokens):
            # A vocabulary padded to a round size has ids that stand for nothing.
            logits[self.tokenizer.vocab_size :] = float("-inf")
            if made < min_tokens and eot is not None:
                logits[eot] = float("-inf")
            if self.tokenizer.pad_id is not None:
                logits[self.tokenizer.pad_id] = float("-inf")
            token = choose(logits, temperature, top_k, top_p, generator)
            if token == eot:
                return
            yield token
            if made + 1 == max_tokens:
                return
            logits = after.send(token)

    def _logits(self, ids: list[int], left: int) -> Generator[torch.Tensor, int, None]:
        """Logits (V,) of the token after ``ids``, and after each of the ``left`` then sent."""
        context = self.spec.context
        history = ids[-context:]
        cache = self._cache(len(history) + left)
        token = yield self.decoder(torch.tensor([history]), cache=cache)[0, -1]
        while True:
            history.append(token)
            new, left = [token], left - 1
            if len(history) > context:
                # The cache is full: go on from the newest half of what it held.
                new = history = history[-max(1, context // 2) :]
                cache = self._cache(len(history) + left)
            token = yield self.decoder(torch.tensor([new]), cache=cache)[0, -1]


def _check_sampling(
    max_tokens: int,
    min_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
) -> None:
    if max_tokens < 0 or min_tokens < 0 or min_tokens > max_tokens:
        raise FlyweightError(
            f"max_tokens = {max_tokens} and min_tokens = {min_tokens}: 0 <= min <= max is wanted"
        )
    if not temperature >= 0 or math.isinf(temperature):
        raise FlyweightError(f"temperature = {temperature}: a number of 0 or more is wanted")
    if top_k is not None and top_k < 1:
        raise FlyweightError(f"top_k = {top_k}: 1 or more is wanted")
    if top_p is not None and not 0 < top_p <= 1:
        raise FlyweightError(f"top_p = {top_p}: more than 0 and at most 1 is wanted")
    if not 0 <= seed < 1 << 63:
        raise FlyweightError(f"seed = {seed}: 0 or more, and less than 2^63, is wanted")


def _check_stop(stop: list[str] | None) -> None:
    if isinstance(stop, str) or not all(isinstance(s, str) and s for s in stop or []):
        raise FlyweightError(f"stop = {stop!r}: a list of strings that are not empty is wanted")


def _first(text: str, stops: list[str]) -> int | None:
    found = [i for i in (text.find(s) for s in stops) if i >= 0]
    return min(found) if found else None


def _overlap(text: str, stop: str) -> int:
    """The longest end of ``text`` that begins ``stop``."""
    return next(
        (n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0
    )
