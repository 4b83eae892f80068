"""What is kept from training: whole documents by a stable hash of their name, or a text's tail."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from flyweight.data.sources import Document
from flyweight.spec.errors import FlyweightError


def place(name: str) -> int:
    """Where a name's sha256 falls, in 2**-64: the same on every machine and in every corpus."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8")).digest()[:8], "big")


def is_held_out(name: str, share: float) -> bool:
    """Whether the document of this name is among the ``share`` (0 to 1) that is held out."""
    return place(name) / 2**64 < share


def split(places_D: npt.NDArray[np.uint64], share: float) -> npt.NDArray[np.bool_]:
    """Which of the documents with these places are held out. ``share`` = 0 holds out none.

    Of several documents at least one is held out and at least one is trained on, whatever the
    hash says: the ones of the lowest and of the highest place.
    """
    held = places_D.astype(np.float64) * 2.0**-64 < share
    if share > 0 and len(places_D) > 1:
        held[np.argmin(places_D)] = True
        # Of equal places the first is the lowest, the last the highest.
        held[len(places_D) - 1 - np.argmax(places_D[::-1])] = False
    return held


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
