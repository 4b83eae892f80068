"""Rules on whole documents: length, symbols, and how much of a text repeats itself (Gopher,
arXiv:2112.11446, table A1). Words are those of `flyweight.data.words`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from flyweight.data.lines import is_terminated
from flyweight.data.rule import Dropped, Rule
from flyweight.data.words import Words, ngrams, stand_alone, word_characters, words
from flyweight.spec.cleaning import Length, Repetition, Symbols

_LETTER = re.compile(r"[^\W\d_]")
_BULLETS = ("•", "‣", "▪", "▫", "●", "○", "◦", "■", "□", "–", "- ", "* ", "+ ")
_BLANK_LINE = re.compile(r"\n\s*\n")


def length_rules(table: Length) -> Iterator[Rule]:
    yield partial(_length, table)


def _length(table: Length, text: str) -> Dropped | None:
    if len(text) < table.min_characters:
        return Dropped("length.min_characters", str(len(text)))
    if table.max_characters is not None and len(text) > table.max_characters:
        return Dropped("length.max_characters", str(len(text)))
    found = words([text])
    if len(found) < table.min_words:
        return Dropped("length.min_words", str(len(found)))
    if table.max_words is not None and len(found) > table.max_words:
        return Dropped("length.max_words", str(len(found)))
    # A character that is a word of its own says nothing of how long words are.
    spaced = ~stand_alone(text, found)
    if 2 * np.count_nonzero(spaced) > len(found):
        mean = float((found.ends - found.starts)[spaced].mean())
        if mean < table.min_mean_word:
            return Dropped("length.min_mean_word", f"{mean:.2f}")
        if mean > table.max_mean_word:
            return Dropped("length.max_mean_word", f"{mean:.2f}")
    if table.min_terminal_lines:
        lines = [line for line in text.split("\n") if line.strip()]
        share = sum(map(is_terminated, lines)) / max(1, len(lines))
        if share < table.min_terminal_lines:
            return Dropped("length.min_terminal_lines", f"{share:.3f}")
    return None


def symbol_rules(table: Symbols) -> Iterator[Rule]:
    yield partial(_symbols, table)


def _symbols(table: Symbols, text: str) -> Dropped | None:
    tokens = text.split()
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not tokens:
        return None
    bullets = sum(line.startswith(_BULLETS) for line in lines) / len(lines)
    endings = sum(line.endswith(("...", "…")) for line in lines) / len(lines)
    characters = sum(map(len, tokens))
    for key, value, most in (
        ("max_hashes", text.count("#") / len(tokens), table.max_hashes),
        ("max_ellipses", (text.count("...") + text.count("…")) / len(tokens), table.max_ellipses),
        ("max_bullet_lines", bullets, table.max_bullet_lines),
        ("max_ellipsis_lines", endings, table.max_ellipsis_lines),
        ("max_share", 1 - word_characters(text) / characters, table.max_share),
    ):
        if value > most:
            return Dropped(f"symbols.{key}", f"{value:.3f}")
    share = sum(_LETTER.search(token) is not None for token in tokens) / len(tokens)
    if share < table.min_words_with_letters:
        return Dropped("symbols.min_words_with_letters", f"{share:.3f}")
    return None


def repetition_rules(table: Repetition) -> Iterator[Rule]:
    yield partial(_repetition, table)


def _repetition(table: Repetition, text: str) -> Dropped | None:
    for unit, parts in (
        ("line", [line.strip() for line in text.split("\n")]),
        ("paragraph", [part.strip() for part in _BLANK_LINE.split(text)]),
    ):
        share, characters = duplicates([part for part in parts if part])
        if share > getattr(table, f"duplicate_{unit}s"):
            return Dropped(f"repetition.duplicate_{unit}s", f"{share:.3f}")
        if characters > getattr(table, f"duplicate_{unit}_characters"):
            return Dropped(f"repetition.duplicate_{unit}_characters", f"{characters:.3f}")
    found = words([text])
    for n, most in sorted(table.top_ngrams.items()):
        if (share := top_ngram(found, n)) > most:
            return Dropped(f"repetition.top_ngrams.{n}", f"{share:.3f}")
    for n, most in sorted(table.duplicate_ngrams.items()):
        if (share := duplicate_ngrams(found, n)) > most:
            return Dropped(f"repetition.duplicate_ngrams.{n}", f"{share:.3f}")
    return None


def duplicates(parts: Sequence[str]) -> tuple[float, float]:
    """(share of ``parts`` that occurred before, share of their characters in those)."""
    seen: set[str] = set()
    again = characters = 0
    for part in parts:
        if part in seen:
            again += 1
            characters += len(part)
        seen.add(part)
    return again / max(1, len(parts)), characters / max(1, sum(map(len, parts)))


def top_ngram(found: Words, n: int) -> float:
    """The share of the words' characters that the most frequent n-gram covers (the one of most
    characters, of several; 0 where each occurs once)."""
    grams = ngrams(found.hashes, n)
    if not len(grams):
        return 0.0
    _, which, counts = np.unique(grams, return_inverse=True, return_counts=True)
    if counts.max() == 1:
        return 0.0
    most = np.flatnonzero(counts == counts.max())
    return max(_covered(found, which == gram, n) for gram in most.tolist()[:_TIES])


# Of so many n-grams that are equally frequent the longest is looked for.
_TIES = 8


def duplicate_ngrams(found: Words, n: int) -> float:
    """The share of the words' characters in n-grams that occurred before."""
    grams = ngrams(found.hashes, n)
    if not len(grams):
        return 0.0
    again = np.ones(len(grams), np.bool_)
    again[np.unique(grams, return_index=True)[1]] = False
    return _covered(found, again, n)


def _covered(found: Words, marks: npt.NDArray[np.bool_], n: int) -> float:
    """The share of the words' characters in the n-grams that ``marks`` marks, each counted once."""
    change = np.zeros(len(found) + 1, np.int64)
    np.add.at(change, np.flatnonzero(marks), 1)
    np.add.at(change, np.flatnonzero(marks) + n, -1)
    inside = np.cumsum(change)[:-1] > 0
    lengths = found.ends - found.starts
    return float(lengths[inside].sum() / lengths.sum())
