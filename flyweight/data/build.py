"""From a run's [data] and [text] tables to a dataset folder."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flyweight.data.clean import Cleaned, clean, fingerprint
from flyweight.data.shards import Dataset, Entry, is_dataset
from flyweight.data.sources import Document, Skipped, documents, standard_library
from flyweight.data.split import split
from flyweight.data.writer import Writer
from flyweight.spec import run
from flyweight.spec.errors import ConfigurationError, FlyweightError
from flyweight.text.bytes import ByteTokenizer
from flyweight.text.load import load_tokenizer
from flyweight.text.subword import SubwordTokenizer
from flyweight.text.tokenizer import Tokenizer

# (stage: "read", "tokenizer" or "encode"; done so far; of how many, if known)
Progress = Callable[[str, int, int | None], None]
_CHUNK = 16 << 20


def build(
    data: run.Data, tokenizer: run.Tokenizer, out: Path, progress: Progress | None = None
) -> Dataset:
    """Read, clean, split, tokenise and write the dataset of a run to the folder ``out``.

    No ``data.train`` means the running interpreter's standard library; the one folder of a built
    dataset means that dataset, as it is. A tokenizer is trained on the training split alone.
    Raises FlyweightError for text that is not there or too little, and where ``out`` holds
    something else.
    """
    progress = progress or (lambda stage, done, total: None)
    built = [path for path in data.train if is_dataset(path)]
    if built:
        return _open(built[0], data, tokenizer)
    skipped = Skipped()
    train, held_out, cleaned = prepare(data, skipped, progress)
    maker = make_tokenizer(tokenizer, train, progress)
    with Writer(out, maker) as writer:
        total = sum(len(document.text) for document in train) + sum(
            len(document.text) for document in held_out
        )
        done = 0
        for name, part in (("train", train), ("held_out", held_out)):
            for document, entry, ids in encode(maker, part):
                writer.add(name, entry, ids)
                done += len(document.text)
                progress("encode", done, total)
        notes = {
            "held_out": data.held_out,
            "skipped": dict(sorted(skipped.counts.items())),
            "encodings": dict(sorted(skipped.encodings.items())),
            "cleaned": asdict(cleaned),
            "notices": [*skipped.lines(), *_cleaned_lines(cleaned)],
        }
        return writer.finish(out.name, notes)


def prepare(
    data: run.Data, skipped: Skipped, progress: Progress
) -> tuple[list[Document], list[Document], Cleaned]:
    """(training documents, held-out documents, what cleaning dropped of the training text)."""
    if isinstance(data.held_out, list):
        if not data.held_out:
            raise ConfigurationError(
                "data.held_out is an empty list; name files, or a share as 0.1"
            )
        held_out, _ = clean(_counted(documents(data.held_out, skipped), progress))
        _some(held_out, data.held_out)
        known = {fingerprint(document.text) for document in held_out}
    else:
        held_out, known = [], set()
    source = documents(data.train, skipped) if data.train else standard_library()
    train, cleaned = clean(_counted(source, progress), known)
    _some(train, data.train)
    if not isinstance(data.held_out, list):
        train, held_out = split(train, data.held_out)
    return train, held_out, cleaned


def make_tokenizer(
    tokenizer: run.Tokenizer, train: Sequence[Document], progress: Progress
) -> Tokenizer:
    """The tokenizer that the table names: bytes, loaded from a path, or trained on ``train``."""
    if tokenizer.kind == "bytes":
        return ByteTokenizer()
    if tokenizer.kind == "file":
        return load_tokenizer(tokenizer.path or "")
    assert tokenizer.size is not None
    progress("tokenizer", 0, None)
    return SubwordTokenizer.train(
        tokenizer.kind,
        tokenizer.size,
        (document.text for document in train),
        tokenizer.max_bytes,
    )


def encode(
    tokenizer: Tokenizer, part: Sequence[Document]
) -> Iterator[tuple[Document, Entry, npt.NDArray[np.unsignedinteger]]]:
    """Each document with its entry and its tokens, encoded some megabytes at a time."""
    for chunk in _chunks(part):
        encoded = tokenizer.encode_documents([document.text for document in chunk])
        for document, ids in zip(chunk, encoded, strict=True):
            size = len(document.text.encode("utf-8"))
            yield document, Entry(document.name, document.source, size), ids


def _chunks(part: Sequence[Document]) -> Iterator[list[Document]]:
    chunk: list[Document] = []
    size = 0
    for document in part:
        chunk.append(document)
        size += len(document.text)
        if size >= _CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _counted(source: Iterable[Document], progress: Progress) -> Iterator[Document]:
    for count, document in enumerate(source, start=1):
        progress("read", count, None)
        yield document


def _some(kept: Sequence[Document], paths: Sequence[str]) -> None:
    if not kept:
        where = ", ".join(paths) or "the standard library"
        raise FlyweightError(
            f"nothing is left of {where}: every document is empty, or held out;"
            " name text that is neither"
        )


def _cleaned_lines(cleaned: Cleaned) -> list[str]:
    dropped = [
        (cleaned.empty, "empty"),
        (cleaned.duplicates, "an exact copy of another document"),
        (cleaned.held_out, "equal to a held-out document"),
    ]
    return [f"dropped {count}: {reason}" for count, reason in dropped if count]


def _open(path: str, data: run.Data, tokenizer: run.Tokenizer) -> Dataset:
    """A dataset built before: it has its own tokenizer and split, which no setting changes."""
    if len(data.train) > 1:
        raise ConfigurationError(
            f"data.train names the built dataset {path} among others; name it alone, or name the"
            " text that it was built from"
        )
    dataset = Dataset.open(path)
    if "kind" in tokenizer.model_fields_set and not _agrees(tokenizer, dataset):
        raise ConfigurationError(
            f"text.tokenizer asks for {_wanted(tokenizer)}, but the dataset {path} was built with"
            f" {dataset.record['tokenizer_kind']} of {dataset.vocab_size} tokens; leave"
            " text.tokenizer out, or build the dataset again"
        )
    if "held_out" in data.model_fields_set and data.held_out != dataset.record.get("held_out"):
        warnings.warn(
            f"data.held_out is not used: the dataset {path} was split when it was built",
            stacklevel=3,
        )
    return dataset


def _agrees(tokenizer: run.Tokenizer, dataset: Dataset) -> bool:
    if tokenizer.kind == "file":
        return load_tokenizer(tokenizer.path or "").digest == dataset.tokenizer_digest
    # A small corpus gives fewer tokens than were asked for.
    return tokenizer.kind == dataset.record["tokenizer_kind"] and (
        tokenizer.size is None or dataset.vocab_size <= tokenizer.size
    )


def _wanted(tokenizer: run.Tokenizer) -> str:
    values: dict[str, Any] = tokenizer.values()
    return " ".join(str(value) for value in values.values())
