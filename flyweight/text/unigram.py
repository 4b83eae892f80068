"""Unigram segmentation: of all ways to write a text in pieces, the likeliest (arXiv:1804.10959).

As SentencePiece 0.2.3 has it, to the last rounding: it adds up along the text in float32, and so
rounding decides between near-equals, by what stands before them. A word's pieces are looked up
where no rounding can have changed them, and worked out anew elsewhere.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

# Words kept, and the longest of them in characters.
_CACHE = 1 << 16
_LONGEST_WORD = 64
_UNKNOWN_PENALTY = 10.0
# Where SentencePiece begins its sum anew.
_MOST = 100_000.0


class Path(NamedTuple):
    """The best way through a word, and how sure it is."""

    ids: tuple[int, ...]
    scores: tuple[float, ...]
    # The sum before it when it was found, the closest decision, how far sums went from there.
    total: float
    margin: float
    reach: float


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
        self._cache: dict[str, Path] = {}

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = []
        total = array("f", [0.0])  # rounds to float32 whatever is stored
        for word in [text] if self._words is None else self._words.findall(text):
            if abs(total[0]) > _MOST:
                total[0] = 0.0
            path = self._cache.get(word)
            if path is not None and _safe(path, len(word), total[0]):
                for score in path.scores:
                    total[0] = total[0] + score
            else:
                path, after = self._best(word, total[0])
                total[0] = after
                if len(word) <= _LONGEST_WORD:
                    if len(self._cache) >= _CACHE:
                        self._cache.clear()
                    self._cache[word] = path
            ids += path.ids
        return ids

    def _best(self, word: str, total: float) -> tuple[Path, float]:
        """Viterbi from left to right, from a sum of ``total``: the path, and the sum behind it."""
        size = len(word)
        table = self._table
        unknown = -1, self._unknown_score
        best = array("f", bytes(4 * (size + 1)))  # the best sum at each place
        begins = array("q", [-1]) * (size + 1)  # where its last piece begins
        via = [unknown] * (size + 1)  # that piece
        best[0] = total
        rounded = array("f", [0.0])
        margin, reach, furthest = math.inf, 0.0, 0
        for start in range(size):
            here = best[start]
            if abs(here) > _MOST:
                for place in range(start, furthest + 1):
                    if place == start or begins[place] >= 0:
                        best[place] -= here
                here = 0.0
                reach = math.inf  # not to be looked up
            offers: list[tuple[int, tuple[int, float]]] = []
            for stop in range(start + 1, size + 1):
                found = table.get(word[start:stop])
                if found is None:
                    break
                if found[0] >= 0:
                    offers.append((stop, found))
            if not offers or offers[0][0] > start + 1:
                offers.append((start + 1, unknown))
            for stop, found in offers:
                rounded[0] = here + found[1]
                candidate = rounded[0]
                if begins[stop] < 0:
                    begins[stop], best[stop], via[stop] = start, candidate, found
                    furthest = max(furthest, stop)
                else:
                    lead = candidate - best[stop]
                    if lead > 0:
                        begins[stop], best[stop], via[stop] = start, candidate, found
                    margin = min(margin, abs(lead))
                reach = max(reach, abs(candidate - total))
        ids: list[int] = []
        scores: list[float] = []
        stop = size
        while stop > 0:
            id, score = via[stop]
            start = begins[stop]
            ids += [id] if id >= 0 else reversed(self._unknown(word[start:stop]))
            scores.append(score)
            stop = start
        path = Path(tuple(reversed(ids)), tuple(reversed(scores)), total, margin, reach)
        return path, best[size]


def _safe(path: Path, length: int, total: float) -> bool:
    """Whether ``path`` is the best one too where the sum before the word is ``total``.

    Each of at most ``length`` additions rounds by half a unit in the last place; so do those of
    the other candidate, and those of the time when the path was found.
    """
    if abs(total) + path.reach > _MOST:
        return False
    largest = max(abs(total), abs(path.total)) + path.reach
    unit = math.ldexp(1.0, math.frexp(largest)[1] - 24)
    return path.margin > 2 * (length + 2) * unit


def unknown_score(normal: Sequence[float]) -> float:
    """An unknown character's score: 10 below the lowest of the normal pieces."""
    return float32(min(normal, default=0.0) - _UNKNOWN_PENALTY)


def user_defined_score(piece: str) -> float:
    """Above what any other way to write ``piece`` can reach."""
    return float32(0.1 * (len(piece.encode()) - 1))


def float32(value: float) -> float:
    """``value`` rounded to float32."""
    return array("f", [value])[0]
