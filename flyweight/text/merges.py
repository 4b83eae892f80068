"""BPE as SentencePiece has it: of all neighbours the pair that makes the best-scored piece merges.

Where scores are equal the leftmost pair goes first. That differs from byte-level BPE, where each
pair has a rank of its own. (arXiv:1808.06226; the merges themselves arXiv:1508.07909.)
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Mapping, Sequence, Set

from flyweight.text.charsmap import Longest

# Words kept, and the longest of them in characters.
_CACHE = 1 << 16
_LONGEST_WORD = 64


class ScoredMerges:
    """Segments normalised text.

    ``pieces`` has id and score of what merging can make; ``unused`` are the ids among them that
    fall apart again at the end; ``unknown`` gives the ids of a character that is no piece.
    ``words`` splits a text where no piece can cross (None: nowhere).
    """

    def __init__(
        self,
        pieces: Mapping[str, tuple[int, float]],
        unused: frozenset[int],
        unknown: Callable[[str], Sequence[int]],
        words: re.Pattern[str] | None,
    ) -> None:
        self._pieces = pieces
        self._unused = unused
        self._unknown = unknown
        self._words = words
        self._cache: dict[str, list[int]] = {}

    def __call__(self, text: str, whole: Longest) -> list[int]:
        """The ids of ``text``; what ``whole`` finds in it stays whole and merges with nothing."""
        symbols: list[str] = []
        frozen: set[int] = set()
        ids: list[int] = []
        at = 0
        while at < len(text):
            start, stop = whole.find(text, at) or (len(text), len(text))
            if self._unused:
                symbols += text[at:start]
                if start < stop:
                    frozen.add(len(symbols))
                    symbols.append(text[start:stop])
            else:
                ids += self._words_of(text[at:start])
                if start < stop:
                    ids.append(self._pieces[text[start:stop]][0])
            at = stop
        return self._merge(symbols, frozen) if self._unused else ids

    def _words_of(self, text: str) -> list[int]:
        ids: list[int] = []
        for word in [text] if self._words is None else self._words.findall(text):
            known = self._cache.get(word)
            if known is None:
                known = self._merge(list(word))
                if len(word) <= _LONGEST_WORD:
                    if len(self._cache) >= _CACHE:
                        self._cache.clear()
                    self._cache[word] = known
            ids += known
        return ids

    def _merge(self, symbols: list[str], frozen: Set[int] = frozenset()) -> list[int]:
        pieces = self._pieces
        last = len(symbols) - 1
        before = list(range(-1, last))
        after = [*range(1, last + 1), -1]
        # How an unused piece came about, the last time in the whole text.
        halves: dict[str, tuple[str, str]] = {}
        agenda: list[tuple[float, int, int, int]] = []

        def consider(left: int, right: int) -> tuple[float, int, int, int] | None:
            merged = symbols[left] + symbols[right]
            found = pieces.get(merged)
            if found is None or left in frozen or right in frozen:
                return None
            if found[0] in self._unused:
                halves[merged] = symbols[left], symbols[right]
            return -found[1], left, right, len(merged)

        agenda = [pair for i in range(last) if (pair := consider(i, i + 1))]
        heapq.heapify(agenda)
        while agenda:
            _, left, right, size = heapq.heappop(agenda)
            a, b = symbols[left], symbols[right]
            if not a or not b or len(a) + len(b) != size:
                continue  # one of the two has merged with another since
            symbols[left], symbols[right] = a + b, ""
            following = after[left] = after[right]
            if following >= 0:
                before[following] = left
            if before[left] >= 0 and (pair := consider(before[left], left)):
                heapq.heappush(agenda, pair)
            if following >= 0 and (pair := consider(left, following)):
                heapq.heappush(agenda, pair)
        ids: list[int] = []
        for symbol in symbols:
            if symbol:
                self._take(symbol, halves, ids)
        return ids

    def _take(self, symbol: str, halves: dict[str, tuple[str, str]], ids: list[int]) -> None:
        waiting = [symbol]
        while waiting:
            symbol = waiting.pop()
            found = self._pieces.get(symbol)
            if found is None:
                ids += self._unknown(symbol)
            elif found[0] in self._unused and symbol in halves:
                waiting += reversed(halves[symbol])
            else:
                ids.append(found[0])
