"""What is kept from training: whole documents by a stable hash of their name, or a text's tail."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from flyweight.data.sources import Document
from flyweight.spec.errors import ConfigurationError, FlyweightError


def position(name: str) -> float:
    """Where a name's sha256 falls in [0, 1): the same on every machine and in every corpus."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8")).digest()[:8], "big") / 2**64


def is_held_out(name: str, share: float) -> bool:
    """Whether the document of this name is among the ``share`` (0 to 1) that is held out."""
    return position(name) < share


def split(documents: Sequence[Document], share: float) -> tuple[list[Document], list[Document]]:
    """(training, held-out) documents, order kept. ``share`` = 0 holds out nothing.

    Of several documents at least one is held out and at least one is trained on, whatever the
    hash says; of a single one its tail is held out, cut at a line where there is one near.
    """
    if share >= 1:
        raise ConfigurationError(
            f"data.held_out = {share} leaves nothing to train on; 0.1 is usual"
        )
    if share <= 0:
        return list(documents), []
    if len(documents) == 1:
        head, tail = cut_tail(documents[0], share)
        return [head], [tail]
    held = [is_held_out(document.name, share) for document in documents]
    order = sorted(range(len(documents)), key=lambda i: (position(documents[i].name), i))
    if order:
        held[order[0]], held[order[-1]] = True, False
    pairs = list(zip(documents, held, strict=True))
    return [d for d, out in pairs if not out], [d for d, out in pairs if out]


def cut_tail(document: Document, share: float) -> tuple[Document, Document]:
    """The document cut in two: the last ``share`` of its characters, or near that, apart."""
    text = document.text
    end = len(text.rstrip())
    if end < 2:
        raise FlyweightError(
            f"{document.name} is all the text there is, and too short to hold out a part of it;"
            " add text, or set data.held_out = 0"
        )
    target = min(max(1, round(end * (1 - share))), end - 1)
    # A line's end within half a tail of the wanted place, else a space's, else the place itself.
    slack = min(end - target, target) // 2
    at = target
    for mark in ("\n", " "):
        before = text.rfind(mark, target - slack, target) + 1
        after = text.find(mark, target, target + slack) + 1
        near = [cut for cut in (before, after) if 0 < cut < end]
        if near:
            at = min(near, key=lambda cut: abs(cut - target))
            break
    return replace(document, text=text[:at]), replace(
        document, name=f"{document.name}#tail", text=text[at:]
    )
