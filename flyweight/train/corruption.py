"""Rows changed for an objective: spans taken out to be filled in, prefixes to be read at once.

What happens to a row is a function of the seed, of the running number of its batch's first window
and of its place, so that a resumed or replayed run changes it the same way. No row changes its
length.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from flyweight.data.batches import Batch
from flyweight.data.order import keys, permute
from flyweight.spec.errors import ConfigurationError
from flyweight.spec.run import Objective, RunSpec, Spans
from flyweight.text.infill import with_sentinels
from flyweight.text.tokenizer import Tokenizer

Tokens = npt.NDArray[np.int64]
# A document shorter than this, in tokens, is left as it is.
_SHORTEST = 8


@dataclass(frozen=True)
class Sentinels:
    """The ids of ``masks``, <sep> and <eom>, and of the <eot> that stands before <sep>."""

    masks: tuple[int, ...]
    sep: int
    eom: int
    eot: int

    @classmethod
    def of(cls, tokenizer: Tokenizer, vocab_size: int, most: int) -> Sentinels:
        """The tokenizer's own (CodeGen2's has them), else the last ids of the vocabulary."""
        eot = tokenizer.eot_id
        assert eot is not None, "a dataset's tokenizer has one"
        own = [tokenizer.encode(name, specials=True) for name in ("<mask_1>", "<sep>", "<eom>")]
        if all(len(ids) == 1 for ids in own):
            named = (tokenizer.encode(f"<mask_{n + 1}>", specials=True) for n in range(most))
            known = tuple(ids[0] for ids in named if len(ids) == 1)
            return cls(known, own[1][0], own[2][0], eot)
        if vocab_size < tokenizer.vocab_size + most + 2:
            raise ConfigurationError(
                f"train.objective.spans needs {most + 2} ids behind the tokenizer's"
                f" {tokenizer.vocab_size}, but model.vocab_size = {vocab_size}; leave"
                " model.vocab_size out, or set spans.most lower"
            )
        masks = tuple(vocab_size - n - 1 for n in range(most))
        return cls(masks, vocab_size - most - 1, vocab_size - most - 2, eot)


def words_of(spec: RunSpec, tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer of a run's model: the dataset's, and what its objective adds."""
    spans = spec.train.objective.spans
    if spans is None or spec.model.vocab_size != tokenizer.vocab_size + spans.most + 2:
        return tokenizer
    return with_sentinels(tokenizer, spans.most)


def changed(
    batch: Batch, objective: Objective, sentinels: Sentinels | None, seed: int, first: int
) -> Batch:
    """The batch as ``objective`` wants it; ``first`` is the running number of its first window."""
    if sentinels is not None and objective.spans is not None:
        stream_BT = np.concatenate((batch.tokens_BT, batch.targets_BT[:, -1:]), axis=1)
        documents_BT = batch.documents_BT.copy()
        for row, stream_T in enumerate(stream_BT):
            drawn = _corrupted(stream_T, objective.spans, sentinels, seed, _number(first, row))
            if drawn is not None:
                stream_BT[row], documents_BT[row] = drawn[0], drawn[1][:-1]
        tokens_BT, targets_BT = stream_BT[:, :-1].copy(), stream_BT[:, 1:].copy()
        batch = Batch(tokens_BT, targets_BT, documents_BT)
    if objective.prefix:
        rows, length = batch.tokens_BT.shape
        draws = np.array([_draws(seed, _number(first, row), "prefix", 2) for row in range(rows)])
        lengths = 1 + (draws[:, 1] * (length - 1)).astype(np.int64)
        prefix_B = np.where(draws[:, 0] < objective.prefix, lengths, 0)
        # What all of a prefix sees cannot be predicted within it.
        inside_BT = np.arange(length) < prefix_B[:, None] - 1
        targets_BT = np.where(inside_BT, -1, batch.targets_BT)
        batch = replace(batch, targets_BT=targets_BT, prefix_B=prefix_B)
    return batch


def _number(first: int, row: int) -> int:
    return (first << 20) + row


def _draws(seed: int, number: int, purpose: str, count: int) -> list[float]:
    return [int(key) / 2**64 for key in keys(seed, number, purpose, count)]


def _corrupted(
    stream_T: Tokens, spans: Spans, sentinels: Sentinels, seed: int, number: int
) -> tuple[Tokens, npt.NDArray[np.int32]] | None:
    """One row with spans of its longest document taken out, and the documents' numbers; None:
    the row stays causal.

    before, the document with masks, <eot> <sep> <mask_1> span <eom> ..., after: cut to length.
    """
    if _draws(seed, number, "corrupt", 1)[0] >= spans.share:
        return None
    eots = np.flatnonzero(stream_T == sentinels.eot)
    # A document is what stands between two <eot>; the first may have begun before the row.
    borders = np.concatenate(([-1], eots, [len(stream_T)]))
    longest = int(np.diff(borders).argmax())
    start, stop = int(borders[longest]) + 1, int(borders[longest + 1])
    size = stop - start
    count = round(size * spans.density / spans.length)
    count = max(1, min(count, len(sentinels.masks)))
    # <eot> <sep>, and for each span its mask twice and its <eom>; the text gives way.
    size = min(size, len(stream_T) - start - 2 - 3 * count)
    hidden = max(count, round(size * spans.density))
    if size < _SHORTEST or hidden + count > size:
        return None
    # Lengths of the spans, and of the text around them: at least one token between two spans.
    taken = _composition(hidden, count, seed, number, "spans")
    around = _composition(size - hidden + 2, count + 1, seed, number, "around")
    around[0] -= 1
    around[-1] -= 1
    text, answers, at = [], [], start
    for i, length in enumerate(taken):
        mask = [sentinels.masks[i]]
        text += [stream_T[at : at + around[i]], mask]
        at += around[i]
        answers += [mask, stream_T[at : at + length], [sentinels.eom]]
        at += length
    text.append(stream_T[at : start + size])
    middle = np.concatenate([*text, [sentinels.eot, sentinels.sep], *answers])
    row = np.concatenate((stream_T[:start], middle, stream_T[stop:]))[: len(stream_T)]
    before = np.cumsum(stream_T == sentinels.eot)
    own = before[start - 1] if start else 0
    documents = np.concatenate((before[:start], np.full(len(middle), own), before[stop:]))
    documents = documents[: len(stream_T)] - documents[0]
    return row.astype(np.int64), documents.astype(np.int32)


def _composition(total: int, parts: int, seed: int, number: int, purpose: str) -> list[int]:
    """``total`` as a sum of ``parts`` positive whole numbers, each such sum equally likely."""
    own = int(keys(seed, number, purpose, 1)[0])
    cuts = permute(np.arange(parts - 1), max(1, total - 1), own) + 1
    lengths: list[int] = np.diff(np.concatenate(([0], np.sort(cuts), [total]))).tolist()
    return lengths
