"""Rules with words that the user gives: bad words, and keywords that a text may not be full of."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from flyweight.data.personal import replaced, without_lines
from flyweight.data.rule import Dropped, Edited, Rule
from flyweight.data.words import Hashes, Words, ngrams, words
from flyweight.spec.cleaning import BadWords, Keywords
from flyweight.spec.errors import ConfigurationError

_MASK = "<...>"
# Shorter words are often the most frequent of an honest text.
_KEYWORD = 4


class WordList:
    """Words and phrases to look for, as n-grams of words: case, width and punctuation aside."""

    def __init__(self, key: str, entries: list[str], files: list[str]) -> None:
        """``key`` names the table in errors. Raises ConfigurationError where there is no word."""
        for file in files:
            try:
                text = Path(file).expanduser().read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigurationError(f"{key}.files: {file} cannot be read: {error}") from None
            entries = entries + [line for line in text.splitlines() if line.strip()]
        found = words(entries)
        self._grams: dict[int, Hashes] = {}
        for entry, n in zip(entries, found.counts.tolist(), strict=True):
            if not n:
                raise ConfigurationError(f"{key}: {entry!r} has no letter or digit to look for")
        for n in sorted(set(found.counts.tolist())):
            entry_of = np.flatnonzero(found.counts == n)
            grams = [
                ngrams(found.hashes[found.offsets[i] : found.offsets[i + 1]], n) for i in entry_of
            ]
            self._grams[n] = np.unique(np.concatenate(grams))

    def spans(self, found: Words) -> list[tuple[int, int]]:
        """Where the words of a text have entries, (first, last + 1), in order, none overlapping:
        the longer one counts where two begin together."""
        hits: list[tuple[int, int]] = []
        for n, entries in self._grams.items():
            places = np.flatnonzero(np.isin(ngrams(found.hashes, n), entries))
            hits += [(place, place + n) for place in places.tolist()]
        apart: list[tuple[int, int]] = []
        for first, last in sorted(hits, key=lambda hit: (hit[0], -hit[1])):
            if not apart or first >= apart[-1][1]:
                apart.append((first, last))
        return apart


def bad_word_rules(table: BadWords) -> Iterator[Rule]:
    listed = WordList("data.clean.bad_words", table.words, table.files)
    yield partial(_bad_words, table, listed)


def _bad_words(table: BadWords, listed: WordList, text: str) -> Dropped | Edited | None:
    found = words([text])
    spans = [
        (int(found.starts[first]), int(found.ends[last - 1])) for first, last in listed.spans(found)
    ]
    if len(spans) <= table.max_count:
        return None
    shown = text[slice(*spans[0])]
    if table.action == "drop":
        return Dropped("bad_words", f"{len(spans)}, {shown!r} first")
    if table.action == "drop_line":
        kept, lines = without_lines(text, spans)
        return Edited("bad_words", kept, lines, len(spans), shown)
    return Edited("bad_words", replaced(text, spans, _MASK), 0, len(spans), shown)


def keyword_rules(table: Keywords) -> Iterator[Rule]:
    listed = None
    if table.words or table.files:
        listed = WordList("data.clean.keywords", table.words, table.files)
    yield partial(_keywords, table, listed)


def _keywords(table: Keywords, listed: WordList | None, text: str) -> Dropped | None:
    found = words([text])
    if not len(found):
        return None
    if listed is not None:
        share = sum(last - first for first, last in listed.spans(found)) / len(found)
        if share > table.max_density:
            return Dropped("keywords.max_density", f"{share:.3f}")
    long = found.ends - found.starts >= _KEYWORD
    if long.any():
        _, at, counts = np.unique(found.hashes[long], return_index=True, return_counts=True)
        share = int(counts.max()) / len(found)
        if share > table.max_top_word:
            place = np.flatnonzero(long)[at[counts.argmax()]]
            word = text[int(found.starts[place]) : int(found.ends[place])]
            return Dropped("keywords.max_top_word", f"{share:.3f}, {word!r}")
    return None
