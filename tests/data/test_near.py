"""Words, signatures and near-duplicates against Python's own sets of tuples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyweight.data import words as words_module
from flyweight.data.near import near_duplicates, ngram_set, signatures
from flyweight.data.words import ngrams, pieces, words
from flyweight.spec.cleaning import NearDuplicates

# Letters, marks, digits and the rest, of scripts with spaces and without.
CHARACTERS = "abzAZß éÉı0１٣.,-_\n\t'中國あアสวัดีनमस्ते가ﬁＡİ́\U00020000\U000e0041\U0001f600"
SlowWords = Callable[[str], list[tuple[str, int, int]]]
SlowNgrams = Callable[[str, int], set[tuple[str, ...]]]
TEXTS = st.lists(st.text(CHARACTERS, max_size=30), max_size=8)


@given(texts=TEXTS)
def test_words_are_as_defined(slow_words: SlowWords, texts: list[str]) -> None:
    found = words(texts)
    at = 0
    hashes: dict[str, int] = {}
    for i, text in enumerate(texts):
        expected = slow_words(text)
        mine = slice(found.offsets[i], found.offsets[i + 1])
        assert (found.starts[mine] - at).tolist() == [start for _, start, _ in expected]
        assert (found.ends[mine] - at).tolist() == [end for _, _, end in expected]
        for (word, _, _), value in zip(expected, found.hashes[mine].tolist(), strict=True):
            assert hashes.setdefault(word, value) == value
        at += len(text) + 1
    assert len(set(hashes.values())) == len(hashes)
    assert found.offsets[-1] == len(found)


@given(texts=st.lists(st.text("ab中 \n", max_size=60), max_size=6))
def test_words_are_the_same_in_any_company(texts: list[str]) -> None:
    """Cut into blocks of 16 characters, together or alone."""
    before = words_module._BLOCK
    words_module._BLOCK = 16
    try:
        together = words(texts)
        alone = [words([text]) for text in texts]
    finally:
        words_module._BLOCK = before
    assert together.hashes.tolist() == [h for each in alone for h in each.hashes.tolist()]
    assert together.counts.tolist() == [len(each) for each in alone]
    starts = [start for each in alone for start in each.starts.tolist()]
    borders = np.cumsum([0, *(len(text) + 1 for text in texts)])
    text_of = np.repeat(np.arange(len(texts)), together.counts)
    assert (together.starts - borders[text_of]).tolist() == starts


@given(st.text("ab \n", max_size=200))
def test_pieces_are_the_text(text: str) -> None:
    found = list(pieces(text, 10))
    assert "".join(found) == text
    assert all(len(piece) <= 10 for piece in found)


@given(text=st.text("ab ", max_size=60), n=st.integers(1, 6))
def test_ngrams_are_equal_where_their_words_are(slow_words: SlowWords, text: str, n: int) -> None:
    tokens = [word for word, _, _ in slow_words(text)]
    expected = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    found = ngrams(words([text]).hashes, n).tolist()
    assert len(found) == len(expected)
    pairs = set(zip(expected, found, strict=True))
    assert len(pairs) == len(set(expected)) == len(set(found))


@given(a=st.text("abc中 ", max_size=40), b=st.text("abc中 ", max_size=40))
def test_jaccard_is_that_of_sets(slow_ngrams: SlowNgrams, a: str, b: str) -> None:
    one, other = ngram_set(a, 3), ngram_set(b, 3)
    x, y = slow_ngrams(a, 3), slow_ngrams(b, 3)
    assert len(one) == len(x)
    assert len(np.intersect1d(one, other)) == len(x & y)


WORDS = st.lists(st.sampled_from(["one", "two", "three", "four", "five"]), min_size=0, max_size=12)
EDITS = st.lists(st.tuples(st.integers(0, 11), st.sampled_from(["one", "six", ""])), max_size=2)


@given(
    base=st.lists(WORDS, min_size=1, max_size=4),
    copies=st.lists(st.tuples(st.integers(0, 3), EDITS), max_size=8),
    similarity=st.sampled_from([0.4, 0.6, 0.8, 1.0]),
    cut=st.integers(0, 12),
    protected=st.integers(0, 3),
)
@settings(max_examples=60)
def test_near_duplicates_are_those_of_a_search_of_all_pairs(
    tmp_path_factory: pytest.TempPathFactory,
    slow_ngrams: SlowNgrams,
    base: list[list[str]],
    copies: list[tuple[int, list[tuple[int, str]]]],
    similarity: float,
    cut: int,
    protected: int,
) -> None:
    texts = [" ".join(each) for each in base]
    for which, edits in copies:
        tokens = list(base[which % len(base)])
        for place, word in edits:
            tokens[place : place + 1] = [word] if word else []
        texts.append(" ".join(tokens))
    # So many bands that they miss a pair of similarity 0.4 less than once in 10^22.
    table = NearDuplicates(similarity=similarity, ngram=2, bands=100, rows=1)
    folder = tmp_path_factory.mktemp("signatures")
    files = []
    for number, part in enumerate([texts[:cut], texts[cut:]]):
        files.append(folder / f"{number}.npy")
        np.save(files[-1], signatures(part, table))
    skip = np.arange(len(texts)) % 5 == 4
    found = near_duplicates(table, files, texts.__getitem__, skip, protected)
    staying: list[int] = []
    for document, text in enumerate(texts):
        if skip[document]:
            assert not found.drop[document]
            continue
        mine = slow_ngrams(text, 2)
        alike = [
            other
            for other in staying
            if mine
            and len(mine & slow_ngrams(texts[other], 2))
            >= similarity * len(mine | slow_ngrams(texts[other], 2))
        ]
        dropped = bool(alike) and document >= protected
        assert bool(found.drop[document]) == dropped
        assert found.of[document] == (alike[0] if dropped else -1)
        if not dropped:
            staying.append(document)


def test_signatures_are_of_the_text_alone_and_agree_by_similarity(slow_ngrams: SlowNgrams) -> None:
    """The share of bands of one row that agree estimates the similarity (Broder 1997)."""
    rng = np.random.default_rng(0)
    tokens = [f"w{n}" for n in rng.integers(0, 5000, 2000)]
    other = list(tokens)
    for place in rng.integers(0, 2000, 60):
        other[place] = "changed"
    texts = [" ".join(tokens), "", "!?", " ".join(other), "!?", "three words only"]
    table = NearDuplicates(bands=1000, rows=1)
    found = signatures(texts, table)
    assert found.shape == (1000, 6)
    for i, text in enumerate(texts):
        assert (signatures([text], table)[:, 0] == found[:, i]).all()
    x, y = slow_ngrams(texts[0], 5), slow_ngrams(texts[3], 5)
    exact = len(x & y) / len(x | y)
    # Four standard deviations of a thousand draws.
    assert np.mean(found[:, 0] == found[:, 3]) == pytest.approx(exact, abs=0.06)
    assert (found[:, 2] == found[:, 4]).all()
    assert not (found[:, 1] == found[:, 2]).any()


def test_signatures_stay_what_they_are() -> None:
    """A build that goes on tomorrow, on another machine, finds the same ones."""
    table = NearDuplicates()
    found = signatures(["The quick brown fox jumps over the lazy dog", "你好吗我很好谢谢"], table)
    assert found[:2].tolist() == [
        [5838050372641138492, 3752113111441682004],
        [10929324828742715153, 420661624499192508],
    ]
