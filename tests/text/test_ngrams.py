"""Looked-up features against slow, plain versions written from their definitions."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyweight.text.ngrams import match_tokens, ngram_rows, positions_in_document

Ints = npt.NDArray[np.int64]
WORD = (1 << 64) - 1
NONE = 999


def slow_hash(tokens: list[int]) -> int:
    """mix(n + sum of (token + 1) * M^(k+1)), k = 0 for the last token, modulo 2^64."""
    total, power = len(tokens), 1
    for token in reversed(tokens):
        power = power * 0x9E3779B97F4A7C15 & WORD
        total = total + (token + 1) * power & WORD
    # splitmix64's finaliser
    total = (total ^ total >> 30) * 0xBF58476D1CE4E5B9 & WORD
    total = (total ^ total >> 27) * 0x94D049BB133111EB & WORD
    return total ^ total >> 31


def slow_rows(tokens: Ints, orders: list[int], rows: int, documents: Ints) -> Ints:
    out = np.zeros((*tokens.shape, len(orders)), np.int64)
    for b, row in enumerate(tokens.tolist()):
        for i in range(len(row)):
            start = next(s for s in range(i + 1) if documents[b, s] == documents[b, i])
            for j, n in enumerate(orders):
                gram = row[max(start, i - n + 1) : i + 1]
                # A gram that its document's beginning cuts short hashes as the order n it is of.
                value = slow_hash(gram) if len(gram) == n else slow_hash_short(gram, n)
                out[b, i, j] = value % rows + j * rows
    return out


def slow_hash_short(gram: list[int], n: int) -> int:
    """Tokens before the document count as -1, so that (token + 1) is 0."""
    return slow_hash([-1] * (n - len(gram)) + gram)


def slow_matches(tokens: Ints, lengths: list[int], documents: Ints) -> Ints:
    """A dictionary from the last m tokens to what followed them, cleared at each document."""
    out = np.full((*tokens.shape, len(lengths)), NONE)
    for b, row in enumerate(tokens.tolist()):
        for j, m in enumerate(lengths):
            last_end: dict[tuple[int, ...], int] = {}
            start = 0
            for i in range(len(row)):
                if i and documents[b, i] != documents[b, i - 1]:
                    last_end, start = {}, i
                if i - m + 1 >= start:
                    gram = tuple(row[i - m + 1 : i + 1])
                    if gram in last_end:
                        out[b, i, j] = row[last_end[gram] + 1]
                    last_end[gram] = i
    return out


@st.composite
def batches(draw: st.DrawFn) -> tuple[Ints, Ints]:
    """Tokens over a small alphabet, and documents of any lengths in each row."""
    rows, width = draw(st.integers(1, 3)), draw(st.integers(1, 40))
    size = draw(st.sampled_from([1, 2, 3, 300]))
    cells = st.lists(st.integers(0, size - 1), min_size=rows * width, max_size=rows * width)
    borders = st.lists(st.sampled_from([0, 0, 0, 1]), min_size=rows * width, max_size=rows * width)
    tokens = np.array(draw(cells), np.int64).reshape(rows, width)
    documents = np.cumsum(np.array(draw(borders)).reshape(rows, width), axis=1)
    return tokens, documents


LENGTHS = st.lists(st.integers(1, 64), min_size=1, max_size=4, unique=True)


@settings(max_examples=150)
@given(batches(), LENGTHS, st.integers(1, 5000))
def test_rows_are_those_of_the_plain_definition(
    batch: tuple[Ints, Ints], orders: list[int], rows: int
) -> None:
    tokens, documents = batch
    fast = ngram_rows(tokens, orders, rows, documents)
    assert np.array_equal(fast, slow_rows(tokens, orders, rows, documents))


@settings(max_examples=200)
@given(batches(), LENGTHS)
def test_matches_are_those_of_a_dictionary(batch: tuple[Ints, Ints], lengths: list[int]) -> None:
    tokens, documents = batch
    fast = match_tokens(tokens, lengths, NONE, documents)
    assert np.array_equal(fast, slow_matches(tokens, lengths, documents))


@given(batches(), st.data())
def test_nothing_looks_ahead(batch: tuple[Ints, Ints], data: st.DataObject) -> None:
    tokens, documents = batch
    cut = data.draw(st.integers(0, tokens.shape[1]))
    changed = tokens.copy()
    changed[:, cut:] = 7
    for find in (_rows, _matches):
        before, after = find(tokens, documents), find(changed, documents)
        assert np.array_equal(before[:, :cut], after[:, :cut])
        # And a row cut short has what the whole row has.
        if cut:
            assert np.array_equal(find(tokens[:, :cut], documents[:, :cut]), before[:, :cut])


@given(batches())
def test_a_document_is_the_same_in_company_and_alone(batch: tuple[Ints, Ints]) -> None:
    tokens, documents = batch
    position = positions_in_document(documents)
    for b in range(len(tokens)):
        for number in np.unique(documents[b]):
            own = documents[b] == number
            assert position[b, own].tolist() == list(range(own.sum()))
            alone, zeros = tokens[b][own][None], np.zeros((1, own.sum()), np.int64)
            for find in (_rows, _matches):
                assert np.array_equal(find(tokens, documents)[b, own], find(alone, zeros)[0])


def _rows(tokens: Ints, documents: Ints) -> Ints:
    return ngram_rows(tokens, (2, 3, 5), 512, documents)


def _matches(tokens: Ints, documents: Ints) -> Ints:
    return match_tokens(tokens, (1, 2, 4), NONE, documents)


@pytest.fixture(scope="module")
def source() -> Ints:
    text = Path(str(argparse.__file__)).read_bytes()[:40_000]
    return np.frombuffer(text, np.uint8).astype(np.int64)[None]


def test_matches_of_real_text_are_those_of_a_dictionary(source: Ints) -> None:
    documents = np.cumsum(source == ord("}"), axis=1)
    lengths = [1, 3, 8, 20]
    fast = match_tokens(source, lengths, NONE, documents)
    assert np.array_equal(fast, slow_matches(source, lengths, documents))
    # They are there to be right: what followed last time follows again, and the longer the surer.
    target = source[0, 1:]
    right = [
        (fast[0, :-1, j] == target)[fast[0, :-1, j] != NONE].mean() for j in range(len(lengths))
    ]
    assert right == sorted(right)
    assert right[-1] > 0.8


def test_rows_of_real_text_spread_over_the_whole_table(source: Ints) -> None:
    zeros: Any = np.zeros_like(source)
    rows = ngram_rows(source, (6,), 256, zeros)[0, :, 0]
    grams = {tuple(source[0, i - 5 : i + 1].tolist()): rows[i] for i in range(5, source.size)}
    counts = np.bincount(list(grams.values()), minlength=256)
    # Distinct grams fall into rows as balls into bins: the variance is about the mean.
    assert counts.var() == pytest.approx(counts.mean(), rel=0.35)


def test_rows_longer_than_the_keys_allow_are_refused() -> None:
    tokens = np.zeros((1, 65_537), np.int64)
    with pytest.raises(ValueError, match="65537"):
        match_tokens(tokens, (2,), NONE, tokens)
    tokens = tokens[:, 1:]
    assert match_tokens(tokens, (2,), NONE, tokens)[0, :, 0].tolist() == [NONE] * 2 + [0] * 65_534
