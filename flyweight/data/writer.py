"""Writing a dataset folder: whole or not at all, and never over another one."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from flyweight.data.packed import Packed, require_no_eot, row
from flyweight.data.shards import (
    FORMAT,
    SPLITS,
    Dataset,
    Entry,
    fingerprint,
    index_of,
    is_dataset,
)
from flyweight.files.atomic import sha256, sync
from flyweight.spec.errors import FlyweightError
from flyweight.text.tokenizer import Tokenizer, token_dtype

SHARD_TOKENS = 64 << 20
_PIECE = 1 << 20
NOTHING_KEPT = "nothing was left behind"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Writer:
    """Writes a dataset folder next to where it will be, and puts it there whole or not at all.

    with Writer(out, tokenizer) as writer:
        writer.add("train", entry, ids)
        dataset = writer.finish("name", notes={...})

    ``folder``: where it is written until it is whole. ``kept``: what an error of the disk says
    of the work that led here.
    """

    def __init__(
        self,
        out: str | os.PathLike[str],
        tokenizer: Tokenizer,
        shard_tokens: int = SHARD_TOKENS,
        folder: Path | None = None,
        kept: str = NOTHING_KEPT,
    ) -> None:
        self._out = Path(out).expanduser()
        self._folder = folder or self._out.with_name(f".{self._out.name}.{os.getpid()}.partial")
        self._kept = kept
        self._tokenizer = tokenizer
        self._eot = require_eot(tokenizer)
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._splits = {
            name: _SplitWriter(self._folder, name, self._dtype, shard_tokens) for name in SPLITS
        }
        self._sources: dict[str, dict[str, int]] = {}

    def __enter__(self) -> Self:
        refuse_other(self._out)
        with disk_errors(self._out, self._kept):
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
        return self

    def __exit__(self, *_: object) -> None:
        for split in self._splits.values():
            split.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, split: str, entry: Entry, ids: npt.NDArray[np.unsignedinteger]) -> None:
        """Append one document to ``split`` ("train" or "held_out")."""
        require_no_eot(ids, self._eot, entry.name)
        tokens = np.append(np.array([self._eot], self._dtype), ids.astype(self._dtype))
        rows = row(split, entry)
        packed = Packed(tokens, np.zeros(1, np.int64), rows, entry.bytes)
        self.add_packed(split, entry.source, packed)

    def add_packed(self, split: str, source: str, packed: Packed) -> None:
        """Append the documents of one ``source`` to ``split``."""
        counts = self._sources.setdefault(source, {"documents": 0, "bytes": 0})
        counts["documents"] += len(packed.starts)
        counts["bytes"] += packed.bytes
        with disk_errors(self._out, self._kept):
            self._splits[split].add(source, packed)

    def finish(self, name: str, notes: dict[str, Any] | None = None) -> Dataset:
        """Write dataset.json (``notes`` are added to it), rename the folder to its place, open it.

        A dataset of equal fingerprint that is there already is opened instead; another one raises
        FlyweightError and stays as it is.
        """
        with disk_errors(self._out, self._kept):
            record = self._record(name) | (notes or {})
            if is_dataset(self._out):
                existing = Dataset.open(self._out)
                if existing.fingerprint != record["fingerprint"]:
                    raise FlyweightError(
                        f"{self._out} holds another dataset (fingerprint"
                        f" {existing.fingerprint[:12]}, this one {record['fingerprint'][:12]});"
                        " name another folder, or delete that one"
                    )
                return existing
            text = json.dumps(record, ensure_ascii=False, indent=2) + "\n"
            _write(self._folder / "dataset.json", _text(text))
            sync(self._folder)
            os.rename(self._folder, self._out)
            sync(self._out.parent)
        return Dataset.open(self._out)

    def write(self, name: str, text: str) -> None:
        """A file beside the shards that says something of the dataset."""
        with disk_errors(self._out, self._kept):
            _write(self._folder / name, _text(text))

    def _record(self, name: str) -> dict[str, Any]:
        splits = {name: split.finish() for name, split in self._splits.items()}
        documents = self._folder / "documents.jsonl"
        with documents.open("wb") as whole:
            for split in self._splits.values():
                with split.rows.open("rb") as rows:
                    shutil.copyfileobj(rows, whole)
                split.rows.unlink()
            _sync(whole)
        _write(self._folder / "tokenizer.json", self._tokenizer.to_json().encode("utf-8"))
        record = {
            "format": FORMAT,
            "name": name,
            "fingerprint": "",
            "tokenizer": self._tokenizer.digest,
            "tokenizer_kind": self._tokenizer.kind,
            "vocab_size": self._tokenizer.vocab_size,
            "eot_id": self._eot,
            "dtype": np.dtype(self._dtype).name,
            "splits": splits,
            "documents": {"size": documents.stat().st_size, "sha256": sha256(documents)},
            "sources": self._sources,
            "streams": {name: split.streams for name, split in self._splits.items()},
        }
        record["fingerprint"] = fingerprint(record)
        return record


class _SplitWriter:
    """The shards of one split, written one after the other."""

    def __init__(self, folder: Path, name: str, dtype: Any, limit: int) -> None:
        self._folder = folder
        self._name = name
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._limit = limit
        self._shards: list[dict[str, Any]] = []
        self._file: Any = None
        self._rows: Any = None
        self._hash = hashlib.sha256()
        self._starts: list[npt.NDArray[np.int64]] = []
        self._tokens = 0
        self.bytes = 0
        # [source, tokens] in the order of the stream.
        self.streams: list[list[Any]] = []

    @property
    def rows(self) -> Path:
        return self._folder / f".{self._name}.rows"

    def add(self, source: str, packed: Packed) -> None:
        """Append documents, as many at a time as the shard has room for."""
        self._rows = self._rows or self.rows.open("wb")
        self._rows.write(packed.rows)
        self.bytes += packed.bytes
        tokens, starts = packed.tokens, packed.starts
        if self.streams and self.streams[-1][0] == source:
            self.streams[-1][1] += len(tokens)
        elif len(tokens):
            self.streams.append([source, len(tokens)])
        ends = np.append(starts[1:], len(tokens))
        at, begin = 0, 0
        while at < len(starts):
            room = self._limit - self._tokens + begin
            stop = int(np.searchsorted(ends, room, side="right"))
            if stop <= at and self._tokens:
                self._close_shard()
                continue
            stop = max(stop, at + 1)
            self._append(tokens[begin : int(ends[stop - 1])], starts[at:stop] - begin)
            at, begin = stop, int(ends[stop - 1])

    def _append(
        self, tokens: npt.NDArray[np.unsignedinteger], starts: npt.NDArray[np.int64]
    ) -> None:
        if self._file is None:
            self._file = (self._folder / self._shard_name()).open("wb")
        for piece in range(0, len(tokens), _PIECE):
            data = tokens[piece : piece + _PIECE].astype(self._dtype, copy=False).tobytes()
            self._file.write(data)
            self._hash.update(data)
        self._starts.append(starts + self._tokens)
        self._tokens += len(tokens)

    def finish(self) -> dict[str, Any]:
        if self._file is not None:
            self._close_shard()
        self._rows = self._rows or self.rows.open("wb")
        self._rows.close()
        return {
            "documents": sum(shard["documents"] for shard in self._shards),
            "tokens": sum(shard["tokens"] for shard in self._shards),
            "bytes": self.bytes,
            "shards": self._shards,
        }

    def close(self) -> None:
        for file in (self._file, self._rows):
            if file is not None:
                file.close()

    def _shard_name(self) -> str:
        return f"{self._name}-{len(self._shards):05d}.bin"

    def _close_shard(self) -> None:
        name = self._shard_name()
        _sync(self._file)
        self._file.close()
        starts = np.concatenate(self._starts)
        index = starts.astype("<i8").tobytes()
        _write(index_of(self._folder / name), index)
        self._shards.append(
            {
                "file": name,
                "documents": len(starts),
                "tokens": self._tokens,
                "size": self._tokens * self._dtype.itemsize,
                "sha256": self._hash.hexdigest(),
                "index_sha256": hashlib.sha256(index).hexdigest(),
            }
        )
        self._file, self._hash, self._starts, self._tokens = None, hashlib.sha256(), [], 0


def require_eot(tokenizer: Tokenizer) -> int:
    """The token that separates documents. Raises FlyweightError where there is none."""
    if tokenizer.eot_id is None:
        raise FlyweightError(
            "this tokenizer has no end-of-text token to put between documents; train one, or"
            " load one with <eot>, <|endoftext|> or </s>"
        )
    return tokenizer.eot_id


def refuse_other(out: Path) -> None:
    """Raises FlyweightError where ``out`` holds something that is no dataset."""
    if out.exists() and not is_dataset(out) and not _empty(out):
        raise FlyweightError(f"{out} exists and is no dataset; name another folder for the dataset")


def _empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _text(text: str) -> bytes:
    """UTF-8; what is no character, in the name of a file or folder, is spelled out."""
    return text.encode("utf-8", "backslashreplace")


def _write(file: Path, data: bytes) -> None:
    with file.open("wb") as stream:
        stream.write(data)
        _sync(stream)


def _sync(stream: Any) -> None:
    stream.flush()
    os.fsync(stream.fileno())


@contextlib.contextmanager
def disk_errors(out: Path, kept: str = NOTHING_KEPT) -> Iterator[None]:
    """Turns an OSError while writing into one FlyweightError that names the dataset."""
    try:
        yield
    except OSError as error:
        way_out = "free some space" if error.errno in _FULL else "name another folder"
        raise FlyweightError(
            f"the dataset {out} cannot be written: {error.strerror}; {way_out}; {kept}"
        ) from None
