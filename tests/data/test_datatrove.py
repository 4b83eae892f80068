"""datatrove's rules as the oracle of ours, where both mean the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyweight.data.lines import line_rules
from flyweight.data.personal import personal_rules
from flyweight.data.quality import duplicate_ngrams, duplicates
from flyweight.data.rule import Edited, Rule
from flyweight.data.words import words
from flyweight.spec.cleaning import Lines, Personal

pytest.importorskip("datatrove")

from datatrove.data import Document
from datatrove.pipeline.filters import C4QualityFilter
from datatrove.pipeline.filters.gopher_repetition_filter import (
    find_all_duplicate,
    find_duplicates,
)
from datatrove.pipeline.formatters import PIIFormatter

WORDS = ["sea", "oak", "été", "sun", "fog", "ice", "owl"]


@given(st.lists(st.sampled_from(["a line", "another", "ü", "a  line"]), min_size=1))
def test_lines_said_again(lines: list[str]) -> None:
    again, characters = find_duplicates(lines)
    expected = again / len(lines), characters / sum(map(len, lines))
    assert duplicates(lines) == pytest.approx(expected)


@given(tokens=st.lists(st.sampled_from(WORDS), min_size=1, max_size=60), n=st.integers(2, 5))
def test_characters_in_ngrams_said_again_are_no_fewer(tokens: list[str], n: int) -> None:
    # datatrove leaps over an n-gram that it knows, and so misses what overlaps with it.
    theirs = find_all_duplicate(tokens, n) / len("".join(tokens))
    assert duplicate_ngrams(words([" ".join(tokens)]), n) >= theirs - 1e-9


@given(picks=st.lists(st.integers(0, 6), min_size=1, max_size=30), n=st.integers(5, 10))
def test_characters_in_whole_passages_said_again(picks: list[int], n: int) -> None:
    # Passages of n words each, all different: nothing overlaps.
    passages = [[f"w{passage}x{place}" for place in range(n)] for passage in range(7)]
    tokens = [token for pick in picks for token in passages[pick]]
    theirs = find_all_duplicate(tokens, n) / len("".join(tokens))
    assert duplicate_ngrams(words([" ".join(tokens)]), n) == pytest.approx(theirs)


NAMES = st.from_regex(r"[a-z][a-z0-9]{0,8}([._+-][a-z0-9]{1,6})?", fullmatch=True)
HOSTS = st.from_regex(r"[a-z][a-z0-9]{1,8}(-[a-z]{1,3})?(\.[a-z]{2,6}){1,2}", fullmatch=True)
ADDRESSES = st.tuples(NAMES, HOSTS).map("@".join)
NUMBERS = st.tuples(*[st.integers(0, 255)] * 4).map(lambda parts: ".".join(map(str, parts)))
PLAIN = st.sampled_from(["write to", "(see", "or:", "at 10:30,", "v1.2", "@home", "a.b", "5%"])


@given(parts=st.lists(ADDRESSES | NUMBERS | PLAIN, max_size=8))
def test_addresses_are_masked(parts: list[str]) -> None:
    text = " ".join(parts)
    table = Personal(phone="keep", card="keep", iban="keep")
    theirs = PIIFormatter(email_replacement="<email>", ip_replacement="<ip>").format(text)
    assert edited(list(personal_rules(table)), text) == theirs


LINE = st.lists(st.sampled_from([*WORDS, "enable JavaScript now"]), min_size=1, max_size=6)
END = st.sampled_from([".", "!", "?", ";", "", " -"])


@given(st.lists(st.tuples(LINE, END), min_size=1, max_size=12))
def test_lines_of_c4(drawn: list[tuple[list[str], str]]) -> None:
    text = "\n".join(" ".join(tokens) + end for tokens, end in drawn)
    document = Document(text=text, id="d")
    c4 = C4QualityFilter(
        min_num_sentences=-1, remove_citations=False, filter_no_terminal_punct=True
    )
    stays = c4.filter(document) is True
    table = Lines(terminal_punctuation=True, min_words=3, containing=["javascript"])
    ours = edited(list(line_rules(table)), text)
    assert ours == (document.text if stays else "")


def edited(rules: list[Rule], text: str) -> str:
    for rule in rules:
        outcome = rule(text)
        if outcome is not None:
            assert isinstance(outcome, Edited)
            text = outcome.text
    return text
