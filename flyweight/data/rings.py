"""The windows of one stretch of a token stream, in an order without memory; and back again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flyweight.data.order import keys, permute, unpermute

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Ring:
    """``tokens`` tokens from ``begin`` on, as a ring that is cut into windows of ``context``.

    Where it is cut changes with each epoch; each epoch sees every window once, in the order of a
    keyed permutation. The windows have running numbers from 0, on across the epochs' borders.
    """

    begin: int
    tokens: int
    context: int
    seed: int

    @property
    def windows(self) -> int:
        """Windows an epoch."""
        return self.tokens // self.context

    def starts(self, index: Places) -> Places:
        """Where in the stream the windows of these running numbers begin."""
        epochs, places = np.divmod(index, self.windows)
        starts = np.empty_like(index)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            windows = permute(places[here], self.windows, self.seed, epoch)
            starts[here] = (self._cut(epoch) + windows * self.context) % self.tokens
        return self.begin + starts

    def holding(
        self, starts: Places, stops: Places, first: int, last: int
    ) -> Iterator[tuple[Places, Places]]:
        """Pairs of arrays (which of the stretches, running number) of the windows from ``first``
        up to ``last`` that hold a token of a stretch [start, stop) of the stream."""
        low = np.maximum(starts, self.begin) - self.begin
        high = np.minimum(stops, self.begin + self.tokens) - self.begin
        (inside,) = np.nonzero(low < high)
        low, size = low[inside], (high - low)[inside]
        for epoch in range(first // self.windows, -(-last // self.windows)):
            # From the epoch's cut on; what goes over the ring's end goes on at its beginning.
            at = (low - self._cut(epoch)) % self.tokens
            over = np.maximum(at + size - self.tokens, 0)
            for begin, end in ((at, at + size - over), (np.zeros_like(at), over)):
                yield from self._numbers(epoch, inside, begin, end, first, last)

    def _numbers(
        self, epoch: int, which: Places, begin: Places, end: Places, first: int, last: int
    ) -> Iterator[tuple[Places, Places]]:
        window = begin // self.context
        while True:
            # The tokens behind the last whole window are in none.
            here = (window * self.context < end) & (begin < end) & (window < self.windows)
            if not here.any():
                return
            number = epoch * self.windows + unpermute(window[here], self.windows, self.seed, epoch)
            wanted = (number >= first) & (number < last)
            yield which[here][wanted], number[wanted]
            window = window + 1

    def _cut(self, epoch: int) -> int:
        return int(keys(self.seed, epoch, "offset", 1)[0]) % self.tokens
