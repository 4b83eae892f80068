"""A file to read, or part of one, and the format that it is in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flyweight.data.document import Skipped
from flyweight.data.unpack import inner_name
from flyweight.spec.errors import CorruptFileError

KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
}


@dataclass(frozen=True, slots=True)
class Piece:
    """A file to read, or part of one: bytes ``start`` to ``stop`` of JSON lines, row groups of a
    Parquet file, rows of a Hugging Face dataset. ``first``: the number of its first line or row.

    ``alone``: the user named this very file, so what it lacks is an error and not its business.
    """

    path: Path
    name: str
    source: str
    kind: str
    alone: bool
    start: int = 0
    stop: int | None = None
    first: int = 1
    text: str = "text"
    id: str = "id"
    longest: int = 64 << 20
    # Of a Hugging Face dataset.
    subset: str | None = None
    split: str = "train"
    revision: str | None = None


def kind_of(path: Path) -> str:
    """The format that a file's name says: "text" for any that it does not know."""
    return KINDS.get(Path(inner_name(path)).suffix.lower(), "text")


def too_long(piece: Piece, skipped: Skipped, where: str, name: str) -> None:
    """A document beyond data.longest_document, wherever it was found."""
    limit = f"more than data.longest_document = {piece.longest} bytes"
    error = CorruptFileError(f"{where}: {limit}; cut it, or set a larger limit")
    skipped.broken(f"longer than {piece.longest} bytes", name, error)
