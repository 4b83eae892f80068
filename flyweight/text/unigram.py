"""Unigram segmentation: of all ways to write a text in pieces, the likeliest (arXiv:1804.10959).

As SentencePiece has it since it adds up in float64: sums of float32 scores are then exact, so
what is best in a word does not depend on what stands before it, and can be remembered. Of ways
that are equally likely the one whose last piece is longest wins.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Mapping, Sequence

# Words kept, and the longest of them in characters.
_CACHE = 1 << 16
_LONGEST_WORD = 64
_UNKNOWN_PENALTY = 10.0


class Unigram:
    """Segments normalised text.

    ``scores`` has id and log probability of every piece that can be in a text; ``unknown_score``
    is an unknown character's, and ``unknown`` gives the ids of such a one. ``words`` splits a
    text where no piece can cross (None: nowhere).
    """

    def __init__(
        self,
        scores: Mapping[str, tuple[int, float]],
        unknown_score: float,
        unknown: Callable[[str], Sequence[int]],
        words: re.Pattern[str] | None,
    ) -> None:
        # Every beginning of a piece; id -1 where it is no piece itself.
        self._table: dict[str, tuple[int, float]] = {}
        for piece in scores:
            for stop in range(1, len(piece)):
                self._table.setdefault(piece[:stop], (-1, 0.0))
        self._table |= scores
        self._unknown_score = unknown_score
        self._unknown = unknown
        self._words = words
        self._cache: dict[str, list[int]] = {}

    @staticmethod
    def score_of_unknown(scores: Sequence[float]) -> float:
        """SentencePiece's: 10 below the lowest of the normal pieces, in float32."""
        return float32(min(scores, default=0.0) - _UNKNOWN_PENALTY)

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = []
        for word in [text] if self._words is None else self._words.findall(text):
            known = self._cache.get(word)
            if known is None:
                known = self._best(word)
                if len(word) <= _LONGEST_WORD:
                    if len(self._cache) >= _CACHE:
                        self._cache.clear()
                    self._cache[word] = known
            ids += known
        return ids

    def _best(self, word: str) -> list[int]:
        """Viterbi, from left to right: the best way to each place, and its last piece."""
        size = len(word)
        table = self._table
        best = array("d", bytes(8 * (size + 1)))
        begins = array("q", [-1]) * (size + 1)
        via = array("q", [-1]) * (size + 1)
        for start in range(size):
            here = best[start]
            single = False
            for stop in range(start + 1, size + 1):
                found = table.get(word[start:stop])
                if found is None:
                    break
                if found[0] < 0:
                    continue
                single = single or stop == start + 1
                candidate = here + found[1]
                if begins[stop] < 0 or candidate > best[stop]:
                    begins[stop], best[stop], via[stop] = start, candidate, found[0]
            if not single:
                stop = start + 1
                candidate = here + self._unknown_score
                if begins[stop] < 0 or candidate > best[stop]:
                    begins[stop], best[stop], via[stop] = start, candidate, -1
        ids: list[int] = []
        stop = size
        while stop > 0:
            start = begins[stop]
            if via[stop] >= 0:
                ids.append(via[stop])
            else:
                ids += reversed(self._unknown(word[start:stop]))
            stop = start
        ids.reverse()
        return ids


def float32(value: float) -> float:
    """``value`` rounded to float32."""
    return array("f", [value])[0]
