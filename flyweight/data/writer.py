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

from flyweight.data.shards import (
    FORMAT,
    SPLITS,
    Dataset,
    Entry,
    fingerprint,
    index_of,
    is_dataset,
)
from flyweight.spec.errors import FlyweightError
from flyweight.text.tokenizer import Tokenizer, token_dtype

SHARD_TOKENS = 64 << 20


class Writer:
    """Writes a dataset folder next to where it will be, and puts it there whole or not at all.

    with Writer(out, tokenizer) as writer:
        writer.add("train", entry, ids)
        dataset = writer.finish("name", notes={...})
    """

    def __init__(
        self, out: str | os.PathLike[str], tokenizer: Tokenizer, shard_tokens: int = SHARD_TOKENS
    ) -> None:
        if tokenizer.eot_id is None:
            raise FlyweightError(
                "this tokenizer has no end-of-text token to put between documents; train one, or"
                " load one with <eot>, <|endoftext|> or </s>"
            )
        self._out = Path(out).expanduser()
        self._folder = self._out.with_name(f".{self._out.name}.{os.getpid()}.partial")
        self._tokenizer = tokenizer
        self._eot = tokenizer.eot_id
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._shard_tokens = shard_tokens
        self._splits = {name: _SplitWriter(self._folder, name, self._dtype) for name in SPLITS}
        self._documents: list[str] = []
        self._sources: dict[str, dict[str, int]] = {}

    def __enter__(self) -> Self:
        if self._out.exists() and not is_dataset(self._out) and not _empty(self._out):
            raise FlyweightError(
                f"{self._out} exists and is no dataset; name another folder for the dataset"
            )
        with _disk_errors(self._out):
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
        return self

    def __exit__(self, *_: object) -> None:
        for split in self._splits.values():
            split.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, split: str, entry: Entry, ids: npt.NDArray[np.unsignedinteger]) -> None:
        """Append one document to ``split`` ("train" or "held_out")."""
        if bool((ids == self._eot).any()):
            raise FlyweightError(
                f"the tokenizer turned text of {entry.name} into its end-of-text token; documents"
                " could not be told apart, use another tokenizer"
            )
        with _disk_errors(self._out):
            self._splits[split].add(self._eot, ids, self._shard_tokens)
        self._splits[split].bytes += entry.bytes
        source = self._sources.setdefault(entry.source, {"documents": 0, "bytes": 0})
        source["documents"] += 1
        source["bytes"] += entry.bytes
        row = {"split": split, "name": entry.name, "source": entry.source, "bytes": entry.bytes}
        self._documents.append(json.dumps(row, ensure_ascii=False))

    def finish(self, name: str, notes: dict[str, Any] | None = None) -> Dataset:
        """Write dataset.json (``notes`` are added to it), rename the folder to its place, open it.

        A dataset of equal fingerprint that is there already is opened instead; another one raises
        FlyweightError and stays as it is.
        """
        with _disk_errors(self._out):
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
            _write(self._folder / "dataset.json", text.encode("utf-8"))
            _sync_folder(self._folder)
            os.rename(self._folder, self._out)
            _sync_folder(self._out.parent)
        return Dataset.open(self._out)

    def _record(self, name: str) -> dict[str, Any]:
        lines = "".join(line + "\n" for line in self._documents).encode("utf-8")
        _write(self._folder / "documents.jsonl", lines)
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
            "splits": {name: split.finish() for name, split in self._splits.items()},
            "documents": {"size": len(lines), "sha256": hashlib.sha256(lines).hexdigest()},
            "sources": self._sources,
        }
        record["fingerprint"] = fingerprint(record)
        return record


class _SplitWriter:
    """The shards of one split, written one after the other."""

    def __init__(self, folder: Path, name: str, dtype: Any) -> None:
        self._folder = folder
        self._name = name
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._shards: list[dict[str, Any]] = []
        self._file: Any = None
        self._hash = hashlib.sha256()
        self._starts: list[int] = []
        self._tokens = 0
        self.bytes = 0

    def add(self, eot: int, ids: npt.NDArray[np.unsignedinteger], limit: int) -> None:
        if self._file is not None and self._tokens + len(ids) + 1 > limit:
            self._close_shard()
        if self._file is None:
            self._file = (self._folder / self._shard_name()).open("wb")
        data = np.concatenate([[eot], ids]).astype(self._dtype).tobytes()
        self._file.write(data)
        self._hash.update(data)
        self._starts.append(self._tokens)
        self._tokens += len(ids) + 1

    def finish(self) -> dict[str, Any]:
        if self._file is not None:
            self._close_shard()
        return {
            "documents": sum(shard["documents"] for shard in self._shards),
            "tokens": sum(shard["tokens"] for shard in self._shards),
            "bytes": self.bytes,
            "shards": self._shards,
        }

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _shard_name(self) -> str:
        return f"{self._name}-{len(self._shards):05d}.bin"

    def _close_shard(self) -> None:
        name = self._shard_name()
        _sync(self._file)
        self._file.close()
        index = np.asarray(self._starts, dtype="<i8").tobytes()
        _write(index_of(self._folder / name), index)
        self._shards.append(
            {
                "file": name,
                "documents": len(self._starts),
                "tokens": self._tokens,
                "size": self._tokens * self._dtype.itemsize,
                "sha256": self._hash.hexdigest(),
                "index_sha256": hashlib.sha256(index).hexdigest(),
            }
        )
        self._file, self._hash, self._starts, self._tokens = None, hashlib.sha256(), [], 0


def _empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _write(file: Path, data: bytes) -> None:
    with file.open("wb") as stream:
        stream.write(data)
        _sync(stream)


def _sync(stream: Any) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    """Turns an OSError while writing into one FlyweightError that names the dataset."""
    try:
        yield
    except OSError as error:
        way_out = "free some space" if error.errno == errno.ENOSPC else "name another folder"
        raise FlyweightError(
            f"the dataset {out} cannot be written: {error.strerror}; {way_out};"
            " nothing was left behind"
        ) from None
