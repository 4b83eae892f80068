"""Bits per byte: of a model, and of general compressors on the same bytes."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from flyweight.spec.errors import FlyweightError


class Scorer(Protocol):
    def logprobs(self, text: str, bos: bool | None = None) -> list[tuple[int, float]]: ...


@dataclass(frozen=True)
class Bits:
    """``bits_per_byte`` of ``bytes`` bytes in ``documents`` documents."""

    bits_per_byte: float
    bytes: int
    documents: int
    sampled: bool

    def values(self) -> dict[str, Any]:
        return asdict(self)


Document = tuple[str, bytes]


def sample(documents: Iterable[Document], most: int) -> tuple[list[Document], bool]:
    """Whole documents of at most ``most`` bytes together, and whether any were left out.

    They are taken in the order of a stable hash of their names, so that the sample is the same
    for every run and machine; a document that would overflow is passed over.
    """
    ordered = sorted(documents, key=lambda d: (hashlib.sha256(d[0].encode()).digest(), d[1]))
    taken: list[Document] = []
    size = 0
    for name, text in ordered:
        if not taken or size + len(text) <= most:
            taken.append((name, text))
            size += len(text)
    return taken, len(taken) < len(ordered)


def bits_per_byte(
    model: Scorer,
    documents: Sequence[Document],
    sampled: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Bits:
    """-sum of log2 p over all documents, per byte of text.

    What the model cannot score (a first token that nothing precedes) costs it 8 bits a byte, so
    that models with and without a beginning-of-text token compare.
    """
    total = sum(len(text) for _, text in documents)
    nats, done, unscored = 0.0, 0, 0
    for _, raw in documents:
        text = raw.decode("utf-8", errors="replace")
        if text:
            scores = model.logprobs(text)
            nats -= sum(value for _, value in scores)
            unscored += _unscored(model, text, scores)
        done += len(raw)
        if progress is not None:
            progress(done, total)
    if not total:
        raise FlyweightError("there is no text to score: every document is empty")
    bits = nats / math.log(2) + 8 * unscored
    return Bits(bits / total, total, len(documents), sampled)


def _unscored(model: Scorer, text: str, scores: list[tuple[int, float]]) -> int:
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None or tokenizer.add_bos:
        return 0
    return len(text.encode()) - sum(len(tokenizer.token_bytes(token)) for token, _ in scores)


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip -9": lambda data: gzip.compress(data, 9, mtime=0),
    "bzip2 -9": lambda data: bz2.compress(data, 9),
    "xz -9e": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
}


def compressors(documents: Sequence[Document]) -> list[dict[str, Any]]:
    """What each compressor makes of the documents joined into one file: bits per byte, bytes."""
    joined = b"".join(text for _, text in documents)
    sizes = {name: len(compress(joined)) for name, compress in COMPRESSORS.items()}
    return [
        {"name": name, "bits_per_byte": 8 * size / len(joined), "bytes": size}
        for name, size in sizes.items()
    ]
