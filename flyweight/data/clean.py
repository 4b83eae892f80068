"""Cleaning that any corpus wants: one kind of newline, no empty documents, none twice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from flyweight.data.sources import Document


@dataclass(frozen=True, slots=True)
class Cleaned:
    """How many documents came in, and how many of them each rule dropped."""

    documents: int
    empty: int
    duplicates: int
    # Equal to a held-out document that the user named.
    held_out: int

    @property
    def kept(self) -> int:
        return self.documents - self.empty - self.duplicates - self.held_out


def normalise(text: str) -> str:
    """``text`` without a byte order mark, every newline as ``\\n``."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def fingerprint(text: str) -> bytes:
    """sha256 of a text's UTF-8: equal texts, equal fingerprints."""
    return hashlib.sha256(text.encode("utf-8")).digest()


def clean(
    documents: Iterable[Document], held_out: AbstractSet[bytes] = frozenset()
) -> tuple[list[Document], Cleaned]:
    """The documents normalised, less the blank ones, exact duplicates (the first one stays), and
    those whose `fingerprint` is in ``held_out``."""
    kept: list[Document] = []
    seen: set[bytes] = set()
    count = empty = duplicates = known = 0
    for document in documents:
        count += 1
        text = normalise(document.text)
        if not text or text.isspace():
            empty += 1
            continue
        key = fingerprint(text)
        if key in held_out:
            known += 1
        elif key in seen:
            duplicates += 1
        else:
            seen.add(key)
            kept.append(replace(document, text=text))
    return kept, Cleaned(count, empty, duplicates, known)
