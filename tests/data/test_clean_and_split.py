"""Cleaning drops what it says and counts it; the split is stable and never one-sided."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyweight.data.clean import normalise
from flyweight.data.sources import Document
from flyweight.data.split import cut_tail, is_held_out, place, split
from flyweight.spec.errors import FlyweightError


@given(st.text("ab\r\n\ufeff"))
def test_newlines_are_of_one_kind_and_normalising_again_changes_nothing(text: str) -> None:
    once = normalise(text)
    assert "\r" not in once
    assert once.splitlines() == text.removeprefix("\ufeff").splitlines()
    assert normalise(once.removeprefix("\ufeff")) == once.removeprefix("\ufeff").removeprefix(
        "\ufeff"
    )


def test_the_hash_is_what_it_was() -> None:
    """A dataset built tomorrow must hold out the same files."""
    assert place("argparse.py") / 2**64 == pytest.approx(0.7861274150892384, abs=1e-15)
    assert not is_held_out("argparse.py", 0.78)
    assert is_held_out("argparse.py", 0.79)


@given(names=st.lists(st.text(max_size=5), min_size=2, max_size=40), share=st.floats(0.001, 0.999))
def test_both_sides_have_documents_and_the_hash_decides(names: list[str], share: float) -> None:
    held = split(np.array([place(name) for name in names], np.uint64), share)
    assert 0 < held.sum() < len(names)
    wrong = [name for name, out in zip(names, held, strict=True) if out != is_held_out(name, share)]
    # Only where one side would be empty does a single document change sides.
    assert len(wrong) <= 1
    if wrong:
        assert held.sum() in (1, len(names) - 1)


def test_shares_at_the_ends() -> None:
    places = np.array([place("a"), place("b")], np.uint64)
    assert not split(places, 0).any()
    assert split(places, 1).sum() == 1


@given(
    text=st.text("ab \n", min_size=1, max_size=300).filter(lambda text: len(text.rstrip()) > 1),
    share=st.floats(0.01, 0.9),
)
def test_a_tail_is_cut_without_loss(text: str, share: float) -> None:
    document = Document("book", text, "test")
    head, tail = cut_tail(document, share)
    assert head.text + tail.text == text
    assert head.text
    assert tail.text.strip()
    assert (head.name, tail.name) == ("book", "book#tail")


def test_a_tail_begins_at_a_line() -> None:
    text = "".join(f"this is line {n} of the book\n" for n in range(200))
    head, tail = cut_tail(Document("book", text, "test"), 0.1)
    assert head.text.endswith("\n")
    assert tail.text.startswith("this is line 18")
    assert len(tail.text) == pytest.approx(0.1 * len(text), abs=30)
    # One line in the whole text, far from the place: the cut stays near the place.
    head, tail = cut_tail(Document("book", "title\n" + "x" * 1000, "test"), 0.1)
    assert len(tail.text) == pytest.approx(100, abs=5)


def test_a_text_of_one_character_cannot_be_split() -> None:
    with pytest.raises(FlyweightError, match="too short to hold out"):
        cut_tail(Document("d", "a\n", "test"), 0.1)
