"""Step s of a run, as a function: which tokens it sees, in which order, from which documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from flyweight.data.mix import Interleaving
from flyweight.data.order import keys
from flyweight.data.rings import Ring
from flyweight.data.shards import Dataset, Split
from flyweight.spec.errors import ConfigurationError, FlyweightError
from flyweight.text.tokenizer import byte_lengths

ORDER = 1
# Where sources are mixed.
MIXED_ORDER = 2
Places = npt.NDArray[np.int64]


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

    Step s takes windows s·B to (s + 1)·B - 1, B = batch_tokens / context. Without a ``mix`` they
    are those of one ring (rings.py), the whole stream. With one, weights by source, each source
    is a ring of its own, with epochs of its own, and they are interleaved (mix.py). ``after``:
    windows of each source that were taken before, by an earlier mix.
    """

    def __init__(
        self,
        dataset: Dataset,
        context: int,
        batch_tokens: int,
        seed: int,
        split: str = "train",
        mix: Mapping[str, float] | None = None,
        after: Sequence[int] | None = None,
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
            raise self._too_short("", self.stream.tokens)
        self._mix = mix
        self._rings, weights = [Ring(0, self.stream.tokens, context, seed)], [1.0]
        if mix is not None:
            self._rings, weights = self._sources(mix)
        self._interleaving = Interleaving(weights)
        self._after = np.array(after or [0] * len(self._rings), np.int64)

    def _sources(self, mix: Mapping[str, float]) -> tuple[list[Ring], list[float]]:
        """The ring of each source that the mix has, and its weight."""
        rings, weights, begin = [], [], 0
        for name, tokens in self.stream.sources:
            if mix[name] and tokens < self.context:
                raise self._too_short(f" in `{name}`", tokens)
            # A source's order is its own, whatever the others are.
            seed = int(keys(self.seed, 0, f"source {name}", 1)[0])
            rings.append(Ring(begin, tokens, self.context, seed))
            weights.append(mix[name])
            begin += tokens
        return rings, weights

    def _too_short(self, where: str, tokens: int) -> FlyweightError:
        return FlyweightError(
            f"the dataset {self.dataset.path} has {tokens} tokens to train on{where}, fewer"
            f" than context = {self.context}; set train.context to {_power_below(tokens)} or less"
            " (and batch_tokens to a multiple of it), or add text"
        )

    @property
    def order(self) -> dict[str, Any]:
        """What decides the order, for data.json: equal orders give equal batches."""
        order: dict[str, Any] = {
            "version": ORDER if self._mix is None else MIXED_ORDER,
            "seed": self.seed,
            "context": self.context,
            "batch_tokens": self.rows * self.context,
        }
        if self._mix is not None:
            rows = self._interleaving.rows.tolist()
            names = [name for name, _ in self.stream.sources]
            order["mix"] = dict(zip(names, rows, strict=True))
            order["after"] = dict(zip(names, self._after.tolist(), strict=True))
        return order

    def counts(self, windows: int) -> list[int]:
        """How many of the first ``windows`` windows each source has, in the dataset's order."""
        return self._interleaving.counts(windows).tolist()

    def epochs(self, windows: int) -> dict[str, float]:
        """How often the first ``windows`` windows go through each source."""
        counts = zip(self._rings, self.counts(windows), strict=True)
        often = [count / ring.windows if ring.windows else 0.0 for ring, count in counts]
        names = [name for name, _ in self.stream.sources] if self._mix else ["all"]
        return dict(zip(names, often, strict=True))

    def places_of(self, starts: Places, stops: Places, count: int) -> tuple[Places, Places]:
        """(which, number): the windows below the running number ``count`` that hold a token of the
        stretches [starts, stops) of the stream, and of which stretch. The inverse of the order."""
        pairs = []
        for source, (ring, taken) in enumerate(zip(self._rings, self.counts(count), strict=True)):
            first = int(self._after[source])
            if taken:
                for which, number in ring.holding(starts, stops, first, first + taken):
                    pairs.append((which, self._interleaving.numbers(source, number - first)))
        none = np.zeros(0, np.int64)
        which = np.concatenate([none, *(pair[0] for pair in pairs)])
        number = np.concatenate([none, *(pair[1] for pair in pairs)])
        # A stretch may leave a window by the ring's end and come back by its beginning.
        both = np.unique(np.stack([which, number]), axis=1)
        both = both[:, np.lexsort((both[1], both[0]))]
        return both[0], both[1]

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
        starts, source = self._starts(first + window)
        stream_BT = self._gather(starts, source, piece * length, length + 1)
        tokens_BT = np.ascontiguousarray(stream_BT[:, :-1])
        documents_BT = np.cumsum(tokens_BT == self.dataset.eot_id, axis=1, dtype=np.int32)
        documents_BT -= documents_BT[:, :1].copy()
        return Batch(tokens_BT, np.ascontiguousarray(stream_BT[:, 1:]), documents_BT)

    def _starts(self, index: Places) -> tuple[Places, Places]:
        """Where in the stream the windows of these running numbers begin, and of which source."""
        source, number = self._interleaving.sources(index)
        starts = np.empty_like(index)
        for which in np.unique(source).tolist():
            here = source == which
            starts[here] = self._rings[which].starts(number[here] + self._after[which])
        return starts, source

    def _gather(self, starts: Places, source: Places, further: Places, length: int) -> Places:
        """(len(starts), length) tokens, ``further`` on from each start; a ring's end goes on at
        its beginning."""
        out = np.empty((len(starts), length), np.int64)
        for which in np.unique(source).tolist():
            (here,) = np.nonzero(source == which)
            ring = self._rings[which]
            at = ring.begin + (starts[here] - ring.begin + further[here]) % ring.tokens
            rows = self.stream.gather(at, length)
            for row, left in enumerate((ring.begin + ring.tokens - at).tolist()):
                if left < length:
                    rows[row, left:] = self.stream.read(ring.begin, ring.begin + length - left)
            out[here] = rows
        return out

    def documents_of(self, step: int, rows: slice | None = None) -> list[list[Span]]:
        """For each row of a step's batch, the parts of documents in it, in order."""
        ids = np.arange(self.rows)[rows or slice(None)]
        return self.documents_in(step * self.rows + ids)

    def documents_in(self, windows: Places) -> list[list[Span]]:
        """For each of the windows of these running numbers the parts of documents in it."""
        starts, sources = self._starts(windows)
        pairs = zip(starts.tolist(), sources.tolist(), strict=True)
        return [self._spans(start, self._rings[source]) for start, source in pairs]

    def _spans(self, start: int, ring: Ring) -> list[Span]:
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
            at = ring.begin + (stop - ring.begin) % ring.tokens
        return spans

    @cached_property
    def _byte_lengths(self) -> npt.NDArray[np.int64]:
        return byte_lengths(self.dataset.tokenizer)


def _power_below(n: int) -> int:
    """The largest power of two that is at most ``n`` (1 for 0)."""
    return 1 << max(0, n.bit_length() - 1)
