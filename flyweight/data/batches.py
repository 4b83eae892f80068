"""Step s of a run, as a function: which tokens it sees, in which order, from which documents."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from flyweight.data.order import keys, permute
from flyweight.data.shards import Dataset, Split
from flyweight.spec.errors import ConfigurationError, FlyweightError
from flyweight.text.tokenizer import byte_lengths

ORDER = 1


@dataclass(frozen=True, slots=True)
class Batch:
    """``tokens_BT`` and ``targets_BT`` (int64): the target is the stream's next token.

    ``documents_BT`` (int32) counts the documents within a row from 0, one more at each ``<eot>``;
    attention must not cross from one number to another. Where an objective changed the rows,
    targets may be negative (not scored), and ``prefix_B`` is how many positions at the beginning
    of a row see each other.
    """

    tokens_BT: npt.NDArray[np.int64]
    targets_BT: npt.NDArray[np.int64]
    documents_BT: npt.NDArray[np.int32]
    prefix_B: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """The part of a document that a row holds, in tokens and bytes of the document's text."""

    document: int
    name: str
    start: int
    end: int
    start_byte: int
    end_byte: int


class Batches:
    """The batches of a run over a dataset's training split. Has no state: `batch` is pure.

    The stream of N tokens is a ring, cut into N // context windows from a point that changes with
    each epoch; each epoch sees every window once, in the order of a keyed permutation. Step s
    takes windows s·B to (s + 1)·B - 1, B = batch_tokens / context, on across the epochs' borders.
    """

    def __init__(
        self, dataset: Dataset, context: int, batch_tokens: int, seed: int, split: str = "train"
    ) -> None:
        if batch_tokens % context:
            raise ConfigurationError(
                f"batch_tokens = {batch_tokens} is no multiple of context = {context}"
            )
        self.dataset = dataset
        self.stream: Split = getattr(dataset, split)
        self.context = context
        self.seed = seed
        self.rows = batch_tokens // context
        self.windows = self.stream.tokens // context
        if not self.windows:
            most = _power_below(self.stream.tokens)
            raise FlyweightError(
                f"the dataset {dataset.path} has {self.stream.tokens} tokens to train on, fewer"
                f" than context = {context}; set train.context to {most} or less"
                " (and batch_tokens to a multiple of it), or add text"
            )

    @property
    def order(self) -> dict[str, Any]:
        """What decides the order, for data.json: equal orders give equal batches."""
        return {
            "version": ORDER,
            "seed": self.seed,
            "context": self.context,
            "batch_tokens": self.rows * self.context,
        }

    def batch(self, step: int, rows: slice | None = None, context: int | None = None) -> Batch:
        """The batch of one step, or some ``rows`` of it (a worker's, or a micro-batch's).

        That of a run whose batches are all of one size: the others ask for `take`.
        """
        return self.take(step * self.rows, self.rows, rows, context)

    def take(
        self, first: int, count: int, rows: slice | None = None, context: int | None = None
    ) -> Batch:
        """The ``count`` windows from running number ``first`` on, or some ``rows`` of them.

        ``context`` cuts each row into rows of that length, a divisor of the run's: (B, T) becomes
        (B·T/context, context), the same tokens in the same order; ``rows`` then counts those.
        """
        length = context or self.context
        if self.context % length:
            raise ConfigurationError(f"context {length} does not divide {self.context}")
        ids = np.arange(count * self.context // length)[rows or slice(None)]
        window, piece = np.divmod(ids, self.context // length)
        starts = self._starts(first + window) + piece * length
        stream_BT = self.stream.gather(starts, length + 1)
        tokens_BT = np.ascontiguousarray(stream_BT[:, :-1])
        documents_BT = np.cumsum(tokens_BT == self.dataset.eot_id, axis=1, dtype=np.int32)
        documents_BT -= documents_BT[:, :1].copy()
        return Batch(tokens_BT, np.ascontiguousarray(stream_BT[:, 1:]), documents_BT)

    def _starts(self, index: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Where in the stream the windows of these running numbers begin."""
        epochs, places = np.divmod(index, self.windows)
        starts = np.empty_like(index)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            first = int(keys(self.seed, epoch, "offset", 1)[0]) % self.stream.tokens
            windows = permute(places[here], self.windows, self.seed, epoch)
            starts[here] = (first + windows * self.context) % self.stream.tokens
        return starts

    def documents_of(self, step: int, rows: slice | None = None) -> list[list[Span]]:
        """For each row of a step's batch, the parts of documents in it, in order."""
        ids = np.arange(self.rows)[rows or slice(None)]
        return [self._spans(int(start)) for start in self._starts(step * self.rows + ids)]

    def _spans(self, start: int) -> list[Span]:
        stream, spans = self.stream, []
        at, left = start, self.context
        while left:
            document = int(np.searchsorted(stream.starts, at, side="right")) - 1
            # One less for the <eot>, which is no part of the text.
            first = int(stream.starts[document]) + 1
            stop = min(at + left, int(stream.starts[document + 1]))
            begin, end = max(0, at - first), stop - first
            sizes = self._byte_lengths[stream.read(first, stop)] if stop > first else np.zeros(0)
            spans.append(
                Span(
                    document,
                    stream.entries[document].name,
                    begin,
                    end,
                    int(sizes[:begin].sum()),
                    int(sizes.sum()),
                )
            )
            left -= stop - at
            at = stop % stream.tokens
        return spans

    @cached_property
    def _byte_lengths(self) -> npt.NDArray[np.int64]:
        return byte_lengths(self.dataset.tokenizer)


def _power_below(n: int) -> int:
    """The largest power of two that is at most ``n`` (1 for 0)."""
    return 1 << max(0, n.bit_length() - 1)
