"""Cleaning drops what it says and counts it; the split is stable and never one-sided."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyweight.data.clean import clean, fingerprint, normalise
from flyweight.data.sources import Document
from flyweight.data.split import cut_tail, is_held_out, position, split
from flyweight.spec.errors import ConfigurationError, FlyweightError


def docs(*texts: str) -> list[Document]:
    return [Document(f"d{i}", text, "test") for i, text in enumerate(texts)]


@given(st.text("ab\r\n\ufeff"))
def test_newlines_are_of_one_kind_and_normalising_again_changes_nothing(text: str) -> None:
    once = normalise(text)
    assert "\r" not in once
    assert once.splitlines() == text.removeprefix("\ufeff").splitlines()
    assert normalise(once.removeprefix("\ufeff")) == once.removeprefix("\ufeff").removeprefix(
        "\ufeff"
    )


def test_clean_drops_blank_equal_and_held_out_documents() -> None:
    known = {fingerprint("secret\n")}
    kept, counts = clean(docs("a\r\n", " \n\t", "", "a\n", "secret\r", "b"), known)
    assert [(document.name, document.text) for document in kept] == [("d0", "a\n"), ("d5", "b")]
    assert (counts.documents, counts.empty, counts.duplicates, counts.held_out) == (6, 2, 1, 1)
    assert counts.kept == len(kept)


def test_the_hash_is_what_it_was() -> None:
    """A dataset built tomorrow must hold out the same files."""
    assert position("argparse.py") == pytest.approx(0.7861274150892384, abs=1e-15)
    assert not is_held_out("argparse.py", 0.78)
    assert is_held_out("argparse.py", 0.79)


@given(names=st.lists(st.text(max_size=5), min_size=2, max_size=40), share=st.floats(0.001, 0.999))
def test_both_sides_have_documents_and_the_hash_decides(names: list[str], share: float) -> None:
    documents = [Document(name, f"text {i}", "test") for i, name in enumerate(names)]
    train, held_out = split(documents, share)
    assert train
    assert held_out
    assert sorted(map(id, train + held_out)) == sorted(map(id, documents))
    wrong = [d for d in train if is_held_out(d.name, share)]
    wrong += [d for d in held_out if not is_held_out(d.name, share)]
    # Only where one side would be empty does a single document change sides.
    assert len(wrong) <= 1
    if wrong:
        assert len(train) == 1 or len(held_out) == 1


def test_shares_at_the_ends() -> None:
    documents = docs("a", "b")
    assert split(documents, 0) == (documents, [])
    with pytest.raises(ConfigurationError, match="leaves nothing to train on"):
        split(documents, 1)


@given(
    text=st.text("ab \n", min_size=1, max_size=300).filter(lambda text: len(text.rstrip()) > 1),
    share=st.floats(0.01, 0.9),
)
def test_a_tail_is_cut_without_loss(text: str, share: float) -> None:
    document = Document("book", text, "test")
    (head,), (tail,) = split([document], share)
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
        split(docs("a\n"), 0.1)
