"""Datasets on disk: memory-mapped token shards, and the dataset.json that vouches for them.

A dataset folder holds tokenizer.json, documents.jsonl (names, in order) and, for each split,
shards NAME-00000.bin (token ids, little-endian) with NAME-00000.idx (int64, the token offset of
each document within its shard). The token stream of a split is its shards one after the other:
for every document ``<eot>``, then the document's tokens. No document is cut by a shard's end.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from flyweight.spec.errors import CorruptFileError, FlyweightError
from flyweight.text.load import load_tokenizer
from flyweight.text.tokenizer import Tokenizer

FORMAT = 1
SPLITS = ("train", "held_out")
_WAY_OUT = "delete the dataset's folder and build it again (flyweight data build)"


@dataclass(frozen=True, slots=True)
class Entry:
    """A document's line in documents.jsonl. ``bytes`` is the size of its text in UTF-8."""

    name: str
    source: str
    bytes: int


class Split:
    """One split of a dataset: a stream of tokens and the documents in it.

    ``starts`` (documents + 1,) int64: where in the stream each document's ``<eot>`` is, and the
    stream's end.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        record: dict[str, Any],
        dtype: str,
        streams: list[list[Any]] | None = None,
    ) -> None:
        self.name = name
        self._streams = streams
        self.tokens: int = record["tokens"]
        self.documents: int = record["documents"]
        self.bytes: int = record["bytes"]
        self._folder = folder
        shards = record["shards"]
        self._begins = np.cumsum([0] + [shard["tokens"] for shard in shards])
        little = np.dtype(dtype).newbyteorder("<")
        # Plain arrays over the maps: slicing a np.memmap costs ten times as much.
        self._shards = [np.asarray(_map(folder / shard["file"], little)) for shard in shards]
        starts = [
            np.fromfile(index_of(folder / shard["file"]), dtype="<i8") + begin
            for shard, begin in zip(shards, self._begins[:-1], strict=True)
        ]
        self.starts = np.concatenate([*starts, [self.tokens]]).astype(np.int64)

    def read(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """(stop - start,) the stream's tokens from ``start`` up to ``stop``."""
        return self.gather(np.array([start]), stop - start)[0]

    def gather(self, starts: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
        """(len(starts), length) tokens from each start on. The stream is a ring: after its last
        token comes its first."""
        out = np.empty((len(starts), length), dtype=np.int64)
        for row, start in zip(out, starts.tolist(), strict=True):
            done, at = 0, start % self.tokens if self.tokens else 0
            while done < length:
                shard = int(np.searchsorted(self._begins, at, side="right")) - 1
                inside = at - int(self._begins[shard])
                piece = self._shards[shard][inside : inside + length - done]
                row[done : done + len(piece)] = piece
                done += len(piece)
                at = (at + len(piece)) % self.tokens
        return out

    def document(self, index: int) -> npt.NDArray[np.int64]:
        """The tokens of one document, without the ``<eot>`` before them."""
        return self.read(int(self.starts[index]) + 1, int(self.starts[index + 1]))

    @cached_property
    def entries(self) -> list[Entry]:
        """Name, source and size of every document, in the order of the stream."""
        lines = (self._folder / "documents.jsonl").read_text(encoding="utf-8").splitlines()
        rows = (json.loads(line) for line in lines)
        return [
            Entry(row["name"], row["source"], row["bytes"])
            for row in rows
            if row["split"] == self.name
        ]

    @cached_property
    def sources(self) -> list[tuple[str, int]]:
        """(source, tokens) in the order of the stream, which has each source in one piece."""
        streams = self._streams
        if streams is None:
            # A dataset of before sources were recorded: its documents know theirs.
            streams = []
            for entry, size in zip(self.entries, np.diff(self.starts).tolist(), strict=True):
                if streams and streams[-1][0] == entry.source:
                    streams[-1][1] += size
                else:
                    streams.append([entry.source, size])
        names = [name for name, _ in streams]
        if len(set(names)) < len(names):
            raise FlyweightError(
                f"{self._folder} has its sources in pieces, and cannot be mixed anew; build it"
                " again (flyweight data build)"
            )
        return [(name, tokens) for name, tokens in streams]

    def texts(self, tokenizer: Tokenizer) -> Iterator[tuple[str, bytes]]:
        """(name, UTF-8 text) of every document, out of its tokens."""
        for index, entry in enumerate(self.entries):
            yield entry.name, tokenizer.decode_bytes(self.document(index).tolist())


class Dataset:
    """A dataset folder, opened. ``record`` is its dataset.json."""

    def __init__(self, path: Path, record: dict[str, Any]) -> None:
        self.path = path
        self.record = record
        self.name: str = record["name"]
        self.fingerprint: str = record["fingerprint"]
        self.tokenizer_digest: str = record["tokenizer"]
        self.vocab_size: int = record["vocab_size"]
        self.eot_id: int = record["eot_id"]
        self.train, self.held_out = (
            Split(
                *(path, name, record["splits"][name], record["dtype"]),
                record.get("streams", {}).get(name),
            )
            for name in SPLITS
        )

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.path / "tokenizer.json")

    @classmethod
    def open(cls, path: str | os.PathLike[str], check: Literal["size", "full"] = "size") -> Dataset:
        """Open a dataset folder. ``check="full"`` reads every file and compares its sha256.

        Raises FlyweightError where there is no dataset, CorruptFileError (naming the file) where
        a file is missing, cut short, or not the one that dataset.json records.
        """
        folder = Path(path).expanduser()
        record = _read_record(folder)
        for file, size, digest in _recorded_files(record):
            _check(folder / file, size, digest if check == "full" else None)
        # The vocabulary gives the ids their meaning, and the names are few: always in full.
        _check(folder / "tokenizer.json", None, record["tokenizer"])
        if fingerprint(record) != record["fingerprint"]:
            raise CorruptFileError(f"{folder / 'dataset.json'} was changed by hand; {_WAY_OUT}")
        return cls(folder, record)


def is_dataset(path: str | os.PathLike[str]) -> bool:
    return (Path(path).expanduser() / "dataset.json").is_file()


# -- what a dataset is made of, and whether it still is


def fingerprint(record: dict[str, Any]) -> str:
    """sha256 over what decides the stream of tokens: the shards' digests, the tokenizer's, and
    the layout. Names, sources and notes are no part of it."""
    parts = {key: record[key] for key in ("format", "dtype", "vocab_size", "eot_id", "tokenizer")}
    parts["splits"] = {
        name: [[shard["sha256"], shard["index_sha256"]] for shard in split["shards"]]
        for name, split in record["splits"].items()
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8")).hexdigest()


def _recorded_files(record: dict[str, Any]) -> Iterator[tuple[str, int, str]]:
    for split in record["splits"].values():
        for shard in split["shards"]:
            yield shard["file"], shard["size"], shard["sha256"]
            index = index_of(Path(shard["file"])).name
            yield index, 8 * shard["documents"], shard["index_sha256"]
    yield "documents.jsonl", record["documents"]["size"], record["documents"]["sha256"]


def _read_record(folder: Path) -> dict[str, Any]:
    file = folder / "dataset.json"
    if not file.is_file():
        raise FlyweightError(
            f"{folder} is no dataset: it has no dataset.json; build one with"
            " `flyweight data build CONFIG.toml`"
        )
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        version = record["format"]
        if version == FORMAT:
            list(_recorded_files(record))
            fingerprint(record)
            missing = {"name", "fingerprint"} - record.keys()
            if missing:
                raise KeyError(missing.pop())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptFileError(
            f"{file} is damaged ({type(error).__name__}: {error}); {_WAY_OUT}"
        ) from None
    if version != FORMAT:
        raise FlyweightError(
            f"{file} has format {version!r}, this program reads {FORMAT}; {_WAY_OUT}"
        )
    return record


def _check(file: Path, size: int | None, digest: str | None) -> None:
    if not file.is_file():
        raise CorruptFileError(f"{file} is missing; {_WAY_OUT}")
    actual = file.stat().st_size
    if size is not None and actual != size:
        kind = "cut short" if actual < size else "too long"
        raise CorruptFileError(f"{file} is {kind}: {actual} bytes, {size} recorded; {_WAY_OUT}")
    if digest is not None:
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != digest:
            raise CorruptFileError(
                f"{file} has changed: its sha256 is {found[:12]}, {digest[:12]} is recorded;"
                f" {_WAY_OUT}"
            )


def index_of(shard: Path) -> Path:
    return shard.with_suffix(".idx")


def _map(file: Path, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    return np.memmap(file, dtype=dtype, mode="r")
