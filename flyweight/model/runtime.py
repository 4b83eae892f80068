"""A model that talks, in PyTorch."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

import numpy as np
import torch

from flyweight.model.cache import Cache
from flyweight.model.decoder import Decoder
from flyweight.model.sample import choose, likeliest, penalise
from flyweight.spec.model import ModelSpec
from flyweight.spec.position import LongRope
from flyweight.text.talk import SCORED_AT_ONCE, Sampling, Step, Talker, windows
from flyweight.text.tokenizer import Tokenizer


class TorchModel(Talker):
    """The protocol that ``flyweight.load`` returns, over a Decoder."""

    def __init__(self, name: str, decoder: Decoder, tokenizer: Tokenizer) -> None:
        self.name, self.decoder, self.tokenizer = name, decoder.eval(), tokenizer
        self.spec: ModelSpec = decoder.spec

    @torch.no_grad()
    def _scores(self, ids: list[int]) -> list[float]:
        context = self.spec.context
        scores = np.zeros(max(0, len(ids) - 1))
        at_once = max(1, SCORED_AT_ONCE // context)
        every = windows(len(ids), context)
        for group in range(0, len(every), at_once):
            some = every[group : group + at_once]
            tokens = np.zeros((len(some), max(w.length for w in some)), dtype=np.int64)
            for row, window in zip(tokens, some, strict=True):
                row[: window.length] = ids[window.begin : window.begin + window.length]
            hidden_BTE = self.decoder.hidden(torch.from_numpy(tokens))
            for (begin, length, new), row_TE in zip(some, hidden_BTE, strict=True):
                own = torch.tensor(ids[begin + 1 : begin + length + 1])
                # A row at a time: all rows' logits would be gigabytes with a large vocabulary.
                log_probs = self.decoder.logits(row_TE[:length]).log_softmax(dim=-1)
                picked = log_probs.gather(1, own[:, None])[:, 0].double().numpy()
                scores[begin + new : begin + length] = picked[new:]
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
    def _steps(self, ids: list[int], sampling: Sampling, top: int | None) -> Iterator[Step]:
        if sampling.max_tokens == 0:
            return
        generator = torch.Generator().manual_seed(sampling.seed)
        eot = self.tokenizer.eot_id
        after = self._logits(ids, sampling.max_tokens)
        logits, said = next(after)
        for made in range(sampling.max_tokens):
            log_probs = None if top is None else logits.log_softmax(dim=-1)
            if sampling.repetition_penalty is not None:
                penalise(logits, said, sampling.repetition_penalty)
            # A vocabulary padded to a round size has ids that stand for nothing.
            logits[self.tokenizer.vocab_size :] = float("-inf")
            if made < sampling.min_tokens and eot is not None:
                logits[eot] = float("-inf")
            if self.tokenizer.pad_id is not None:
                logits[self.tokenizer.pad_id] = float("-inf")
            token = choose(
                logits,
                sampling.temperature,
                sampling.top_k,
                sampling.top_p,
                generator,
                sampling.min_p,
            )
            if token == eot:
                return
            if log_probs is None or top is None:
                yield Step(token)
            else:
                yield Step(token, float(log_probs[token]), likeliest(log_probs, top))
            if made + 1 == sampling.max_tokens:
                return
            logits, said = after.send(token)

    def _logits(
        self, ids: list[int], left: int
    ) -> Generator[tuple[torch.Tensor, Sequence[int]], int, None]:
        """Logits (V,) of the token after ``ids``, and after each of the ``left`` then sent; with
        them the tokens that the decoder remembers."""
        context = self.spec.context
        history = ids[-context:]
        cache = self._cache(len(history) + left)
        token = yield self.decoder(torch.tensor([history]), cache=cache)[0, -1], history
        while True:
            history.append(token)
            new, left = [token], left - 1
            if len(history) > context:
                # The cache is full: go on from the newest half of what it held.
                new = history = history[-max(1, context // 2) :]
                cache = self._cache(len(history) + left)
            token = yield self.decoder(torch.tensor([new]), cache=cache)[0, -1], history

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
        sampling = Sampling(max_tokens, min_tokens, temperature, top_k, top_p, seed)
        return (step.token for step in self._steps(ids, sampling, None))
