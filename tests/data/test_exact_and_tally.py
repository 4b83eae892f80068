"""Exact copies against a set; tallies of parts, merged, are the tally of the whole."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyweight.data.exact import exact_duplicates
from flyweight.data.tally import Finding, Tally
from flyweight.spec.cleaning import BadWords, Clean, Decontaminate, Perplexity
from flyweight.spec.errors import ConfigurationError


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3))))
def test_the_first_of_equal_documents_stays(rows: list[tuple[int, int]]) -> None:
    seen: set[tuple[int, int]] = set()
    expected = []
    for row in rows:
        expected.append(row in seen)
        seen.add(row)
    found = exact_duplicates(np.array(rows, np.uint64).reshape(-1, 2))
    assert found.tolist() == expected


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["seen", "drop", "edit", "finding"]),
        st.sampled_from(["length", "urls"]),
        st.text("ab\n", max_size=20),
    ),
    max_size=30,
)


def tally_of(events: list[tuple[str, str, str]]) -> Tally:
    tally = Tally(samples=2)
    for kind, rule, text in events:
        if kind == "seen":
            tally.seen(text)
        elif kind == "drop":
            tally.drop(rule, "name", text, "why")
        elif kind == "edit":
            tally.edit(rule, "name", text, text[1:], 1, 2, text)
        else:
            tally.finding(Finding("name", "file", "item", 3, text))
    return tally


@given(events=EVENTS, cut=st.integers(0, 30))
def test_parts_add_up_to_the_whole(events: list[tuple[str, str, str]], cut: int) -> None:
    whole = tally_of(events)
    merged = tally_of(events[:cut])
    # Through JSON, as a continued build reads them.
    merged.merge(Tally.from_dict(json.loads(json.dumps(tally_of(events[cut:]).to_dict()))))
    assert merged == whole
    assert merged.lines(samples=True) == whole.lines(samples=True)
    assert all(len(count.samples) <= 2 for count in whole.rules.values())


def test_findings_are_bounded_and_the_rest_counted() -> None:
    tally = Tally()
    for number in range(10_005):
        tally.finding(Finding(f"d{number}", "f", "i", 1, ""))
    assert len(tally.findings) == 10_000
    assert tally.findings_left_out == 5


@pytest.mark.parametrize(
    ("table", "values", "said"),
    [
        (Clean, {"url": {}}, "did you mean `data.clean.urls`"),
        (Clean, {"length": {"min_word": 3}}, "did you mean `data.clean.length.min_words`"),
        (BadWords, {}, "words or files is needed"),
        (BadWords, {"words": ["x"], "action": "mask", "max_count": 1}, "max_count goes with"),
        (Perplexity, {"model": "m"}, "one of min and max"),
        (Perplexity, {"model": "m", "min": 3, "max": 2}, "min must be less than max"),
        (Decontaminate, {"files": []}, "files"),
        (Decontaminate, {"files": ["f"], "ngram": 5}, "min_words = 8 is more than ngram = 5"),
    ],
)
def test_a_wrong_table_says_so(table: type, values: dict, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        table.parse(values, "data.clean")
