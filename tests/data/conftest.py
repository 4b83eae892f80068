"""Small datasets, written by the real writer; words as their definition says, one character at a
time: the oracle of `flyweight.data.words`."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from flyweight.data.shards import Dataset, Entry
from flyweight.data.writer import SHARD_TOKENS, Writer
from flyweight.text.bytes import ByteTokenizer


def _write_dataset(
    out: Path,
    train: Sequence[str],
    held_out: Sequence[str] = (),
    shard_tokens: int = SHARD_TOKENS,
) -> Dataset:
    """A dataset of bytes; documents are named train-0, train-1, ..., held_out-0, ..."""
    tokenizer = ByteTokenizer()
    with Writer(out, tokenizer, shard_tokens) as writer:
        for split, texts in (("train", train), ("held_out", held_out)):
            for i, ids in enumerate(tokenizer.encode_documents(texts)):
                writer.add(split, Entry(f"{split}-{i}", split, len(ids)), ids)
        return writer.finish("test")


@pytest.fixture(scope="session")
def write_dataset() -> Callable[..., Dataset]:
    return _write_dataset


@pytest.fixture
def small(tmp_path: Path) -> Dataset:
    texts = [f"document {n}: " + "words " * (n % 7) for n in range(40)]
    return _write_dataset(tmp_path / "small", texts, ["held out é", "too"], shard_tokens=200)


_ALONE = [
    *[(0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3040, 0x30FF)],
    *[(0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xFF66, 0xFF9D)],
    (0x20000, 0x3FFFD),
]


def _slow_words(text: str) -> list[tuple[str, int, int]]:
    """(folded word, start, end) of each word."""
    found: list[list] = []
    before = "separator"
    for place, character in enumerate(text):
        kind = _kind(character)
        if kind != "separator":
            new = before == "separator" or kind == "alone" or (before, kind) == ("alone", "letter")
            if new:
                found.append(["", place, place])
            found[-1][0] += _folded(character)
            found[-1][2] = place + 1
        before = kind
    return [(word, start, end) for word, start, end in found]


def _slow_ngrams(text: str, n: int) -> set[tuple[str, ...]]:
    """The different n-grams; all the words of a text that has fewer."""
    tokens = [word for word, _, _ in _slow_words(text)]
    if not tokens:
        return set()
    return {tuple(tokens[i : i + n]) for i in range(max(1, len(tokens) - n + 1))}


def _kind(character: str) -> str:
    category = unicodedata.category(character)[0]
    code = ord(character)
    alone = any(first <= code <= last for first, last in _ALONE)
    if code >= 0x20000:
        return "alone" if alone else "separator"
    if category == "M":
        return "mark"
    if category not in "LN":
        return "separator"
    return "alone" if alone else "letter"


def _folded(character: str) -> str:
    plain = unicodedata.normalize("NFKC", character).casefold()
    return plain if len(plain) == 1 else character


@pytest.fixture(scope="session")
def slow_words() -> Callable[[str], list[tuple[str, int, int]]]:
    return _slow_words


@pytest.fixture(scope="session")
def slow_ngrams() -> Callable[[str, int], set[tuple[str, ...]]]:
    return _slow_ngrams
