"""The tokens of one part's documents, by split, before they are put together into shards."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

from flyweight.data.parts import close
from flyweight.data.shards import Entry
from flyweight.spec.errors import FlyweightError

_SUFFIXES = (".bin", ".idx", ".rows")


def row(split: str, entry: Entry) -> bytes:
    """A document's line in documents.jsonl."""
    values = {
        "split": split,
        "name": entry.name,
        "source": entry.source,
        "bytes": entry.bytes,
    }
    return json.dumps(values, ensure_ascii=False).encode() + b"\n"


def require_no_eot(ids: npt.NDArray[np.unsignedinteger], eot: int, name: str) -> None:
    if bool((ids == eot).any()):
        raise FlyweightError(
            f"the tokenizer turned text of {name} into its end-of-text token; documents"
            " could not be told apart, use another tokenizer"
        )


class PackedWriter:
    """Writes PLACE.SPLIT.bin (tokens, ``<eot>`` before each document), .idx (int64, where each
    begins) and .rows (lines of documents.jsonl), which come to their places when all went well.
    A split without documents has no files."""

    def __init__(self, place: Path, split: str, eot: int, dtype: Any) -> None:
        self._split, self._eot = split, eot
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._names = [place.with_suffix(f".{split}{suffix}") for suffix in _SUFFIXES]
        self._temporary = [name.with_name(f".{name.name}.{os.getpid()}") for name in self._names]
        self._files: list[IO[bytes]] = []
        self.documents = self.tokens = self.bytes = 0

    def __enter__(self) -> Self:
        return self

    def add(self, entries: Sequence[Entry], ids: Sequence[npt.NDArray[np.unsignedinteger]]) -> None:
        if not entries:
            return
        self._files = self._files or [name.open("wb") for name in self._temporary]
        eot = np.array([self._eot], self._dtype)
        stream = np.concatenate([part for tokens in ids for part in (eot, tokens)])
        sizes = np.array([len(tokens) + 1 for tokens in ids], np.int64)
        if int((stream == self._eot).sum()) != len(entries):
            for entry, tokens in zip(entries, ids, strict=True):
                require_no_eot(tokens, self._eot, entry.name)
        # Not tofile, whose errors do not say why.
        self._files[0].write(stream.astype(self._dtype, copy=False).data)
        starts = self.tokens + np.cumsum(sizes) - sizes
        self._files[1].write(starts.astype("<i8").data)
        self._files[2].write(b"".join(row(self._split, entry) for entry in entries))
        self.documents += len(entries)
        self.tokens += int(sizes.sum())
        self.bytes += sum(entry.bytes for entry in entries)

    @property
    def counts(self) -> dict[str, int]:
        return {"documents": self.documents, "tokens": self.tokens, "bytes": self.bytes}

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        close(*self._files)
        for temporary, name in zip(self._temporary, self._names, strict=True):
            if kind is not None:
                temporary.unlink(missing_ok=True)
            elif self._files:
                temporary.replace(name)


@dataclass(frozen=True)
class Packed:
    """What a PackedWriter wrote: ``tokens`` (N,), ``starts`` (documents,), the documents' rows and
    the sum of their sizes in bytes."""

    tokens: npt.NDArray[np.unsignedinteger]
    starts: npt.NDArray[np.int64]
    rows: bytes
    bytes: int

    @classmethod
    def open(cls, place: Path, split: str, counts: dict[str, int], dtype: Any) -> Packed:
        tokens, starts, rows = (place.with_suffix(f".{split}{suffix}") for suffix in _SUFFIXES)
        little = np.dtype(dtype).newbyteorder("<")
        return cls(
            np.memmap(tokens, little, "r") if counts["tokens"] else np.zeros(0, little),
            np.fromfile(starts, "<i8"),
            rows.read_bytes(),
            counts["bytes"],
        )
