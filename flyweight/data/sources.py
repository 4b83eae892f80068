"""What a run's [data] names: sources of documents, file by file."""

from __future__ import annotations

import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from flyweight.data.document import Document, Skipped, printable
from flyweight.data.files import Found, find, walk
from flyweight.data.piece import Piece, kind_of
from flyweight.data.reading import read
from flyweight.data.saved import is_saved, saved_pieces
from flyweight.spec.data import Data, Source
from flyweight.spec.errors import FlyweightError

STANDARD_LIBRARY = "python standard library"
STANDARD_INPUT = "-"
_NOT_STANDARD_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages"}

__all__ = ["Document", "Origin", "Skipped", "documents", "origins", "standard_library"]


@dataclass(frozen=True, slots=True)
class Origin:
    """A path of a source, as the user wrote it, and the files that it stands for."""

    source: str
    path: str
    held_out: bool = False
    pieces: list[Piece] = field(default_factory=list)
    # Files and links that are passed over, by reason.
    passed: Skipped = field(default_factory=Skipped)

    @property
    def files(self) -> int:
        return len(self.pieces) + self.passed.counts.total()


def nothing_in(source: str, path: str, files: int, skipped: Counter[str]) -> FlyweightError:
    """The error of a path of ``files`` files that gave no text, and what was skipped below it."""
    if source == STANDARD_LIBRARY:
        return FlyweightError(
            f"the running interpreter has no standard library sources in {_root()};"
            ' name your own text, as in data.train = ["texts"]'
        )
    if not files:
        return FlyweightError(
            f"{path} holds no files (hidden and ignored ones are passed over); name a folder"
            " with text"
        )
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
    found = f"{files} file{'s' if files != 1 else ''}" + (f": {reasons}" if reasons else "")
    return FlyweightError(
        f"no text in {path} ({found}); name text, code, HTML, .jsonl, .csv, .parquet files,"
        " or such files in .zst or .gz"
    )


def origins(data: Data, base: Path, standard_input: Path | None = None) -> Iterator[Origin]:
    """All that ``data`` names, held-out files first, then the sources in their order.

    Relative paths are below ``base``. ``standard_input``: the file that "-" was written to.
    Raises FlyweightError where a path does not exist.
    """
    if isinstance(data.held_out, list):
        for path in data.held_out:
            yield origin("held_out", path, Source(paths=[path]), data, base, held_out=True)
    for path in data.train:
        yield origin(path, path, Source(paths=[path]), data, base)
    for name, source in data.sources.items():
        if source.huggingface is not None:
            pieces = saved_pieces(name, source, source.huggingface, base, data.longest_document)
            yield Origin(name, source.huggingface, pieces=pieces)
        for path in source.paths:
            if path == STANDARD_INPUT:
                assert standard_input is not None
                kind = "text" if source.format == "auto" else source.format
                piece = _piece(Found(standard_input, "stdin"), name, source, data, kind, alone=True)
                yield Origin(name, path, pieces=[piece])
            else:
                yield origin(name, path, source, data, base)
    if not data.train and not data.sources:
        pieces = [
            _piece(found, STANDARD_LIBRARY, Source(paths=["-"]), data, "text", alone=False)
            for found in _standard_library()
        ]
        yield Origin(STANDARD_LIBRARY, STANDARD_LIBRARY, pieces=pieces)


def origin(
    name: str, path: str, source: Source, data: Data, base: Path, held_out: bool = False
) -> Origin:
    """The files of one path of a source."""
    if is_saved(base / Path(path).expanduser()):
        pieces = saved_pieces(name, source, path, base, data.longest_document)
        return Origin(name, path, held_out, pieces)
    found, alone = find(path, base, source.ignore)
    made = Origin(printable(name), printable(path), held_out)
    for file in found:
        if file.why:
            made.passed.add(file.why, file.name)
        else:
            kind = kind_of(file.path) if source.format == "auto" else source.format
            made.pieces.append(_piece(file, made.source, source, data, kind, alone))
    if not made.files:
        raise nothing_in(name, path, 0, Counter())
    return made


def _piece(found: Found, name: str, source: Source, data: Data, kind: str, alone: bool) -> Piece:
    return Piece(
        found.path,
        found.name,
        name,
        kind,
        alone,
        text=source.text,
        id=source.id,
        longest=data.longest_document,
    )


def documents(paths: list[str], skipped: Skipped) -> Iterator[Document]:
    """The documents of files, folders (with all below, sorted) and globs (``**`` and ``~`` too).

    A document's name is its path relative to the folder (or to the fixed part of the glob); in
    JSON lines, CSV and Parquet its ``id``, or file:line. Binary and unreadable files inside a
    folder or glob are counted in ``skipped``.

    Raises FlyweightError where a path has no text to give, CorruptFileError (file and line) where
    a packed file or a line of JSON is broken.
    """
    data = Data()
    for path in paths:
        made = origin(path, path, Source(paths=[path]), data, Path())
        before = skipped.counts.copy()
        skipped.merge(made.passed)
        found = False
        for piece in made.pieces:
            for document in read(piece, skipped):
                found = True
                yield document
        if not found:
            raise nothing_in(path, path, made.files, skipped.counts - before)


def standard_library() -> Iterator[Document]:
    """The Python sources of the running interpreter's standard library, without its tests and
    what is written for this machine alone (configuration, installed packages)."""
    (made,) = origins(Data(), Path())
    skipped = Skipped()
    found = False
    for piece in made.pieces:
        for document in read(piece, skipped):
            found = True
            yield document
    if not found:
        raise nothing_in(made.source, made.path, made.files, skipped.counts)


def _root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _standard_library() -> Iterator[Found]:
    for found in walk(_root()):
        parts = found.name.split("/")
        if not found.name.endswith(".py") or _NOT_STANDARD_LIBRARY & set(parts):
            continue
        if not parts[0].startswith(("config-", "_sysconfigdata")):
            yield found
