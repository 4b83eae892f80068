"""Documents out of files, folders and globs: text and code in any encoding, JSON lines, parquet."""

from __future__ import annotations

import codecs
import glob
import gzip
import importlib
import json
import os
import sysconfig
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from flyweight.data.encoding import NotTextError, decode
from flyweight.spec.errors import CorruptFileError, FlyweightError
from flyweight.text.tokenizer import utf8

STANDARD_LIBRARY = "python standard library"
_IGNORED_FOLDERS = {"__pycache__", "node_modules"}
_NOT_STANDARD_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages"}


@dataclass(frozen=True, slots=True)
class Document:
    """One text. ``name`` is stable and free of the machine's paths; ``source`` is the path,
    folder or glob, as the user wrote it, that it came through."""

    name: str
    text: str
    source: str


@dataclass
class Skipped:
    """What was not read, counted by reason, with the first few names of each; and how many texts
    were read in an encoding other than UTF-8."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    encodings: Counter[str] = field(default_factory=Counter)

    def add(self, reason: str, name: str) -> None:
        self.counts[reason] += 1
        names = self.examples.setdefault(reason, [])
        if len(names) < 5:
            names.append(name)

    def lines(self) -> list[str]:
        """One line per reason, for a notice."""
        lines = []
        for reason, count in sorted(self.counts.items()):
            names = self.examples[reason]
            more = ", ..." if count > len(names) else ""
            lines.append(f"skipped {count}: {reason} ({', '.join(names)}{more})")
        for encoding, count in sorted(self.encodings.items()):
            lines.append(f"read {count} as {encoding}, for want of valid UTF-8")
        return lines


def documents(paths: list[str], skipped: Skipped) -> Iterator[Document]:
    """The documents of files, folders (with all below, sorted) and globs (``**`` and ``~`` too).

    Hidden files and folders, ``__pycache__`` and ``node_modules`` inside a folder are passed
    over. A document's name is its path relative to the folder (or to the fixed part of the glob);
    in JSON lines and parquet its ``id``, or file:line. Binary and unreadable files inside a
    folder or glob are counted in ``skipped``.

    Raises FlyweightError where a path has no text to give, CorruptFileError (file and line) where
    a compressed file or a line of JSON is broken.
    """
    for path in paths:
        found = 0
        before = skipped.counts.copy()
        files, alone = _files(path)
        for file, name in files:
            for document in _read(file, name, path, skipped, alone):
                found += 1
                yield document
        if not found:
            raise FlyweightError(_nothing(path, len(files), skipped.counts - before))


def standard_library() -> Iterator[Document]:
    """The Python sources of the running interpreter's standard library, without its tests and
    what is written for this machine alone (configuration, installed packages)."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = Skipped()
    source = STANDARD_LIBRARY
    found = False
    for file, name in _walk(root):
        parts = name.split("/")
        if not name.endswith(".py") or _NOT_STANDARD_LIBRARY & set(parts):
            continue
        if parts[0].startswith(("config-", "_sysconfigdata")):
            continue
        found = True
        yield from _read(file, name, source, skipped, alone=False)
    if not found:
        raise FlyweightError(
            f"the running interpreter has no standard library sources in {root};"
            " name your own text, as in data.train = [\"texts\"]"
        )  # fmt: skip


def _nothing(path: str, files: int, skipped: Counter[str]) -> str:
    if os.path.isdir(os.path.expanduser(path)) and not files:
        return f"{path} holds no files (hidden ones are passed over); name a folder with text"
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
    found = f"{files} file{'s' if files != 1 else ''}" + (f": {reasons}" if reasons else "")
    return f"no text in {path} ({found}); name text, code, .jsonl, .zst, .gz or .parquet files"


# -- which files


def _files(path: str) -> tuple[list[tuple[Path, str]], bool]:
    """((file, name) pairs, is it one file named by the user itself?)."""
    expanded = os.path.expanduser(path)
    here = Path(expanded)
    if here.is_dir():
        return list(_walk(here)), False
    if here.exists():
        return [(here, here.name)], True
    if not glob.has_magic(expanded):
        raise FlyweightError(f"no such file or folder: {path}")
    root = _fixed_part(expanded)
    pairs: dict[Path, str] = {}
    for match in sorted(glob.glob(expanded, recursive=True)):
        found = Path(match)
        name = os.path.relpath(match, root).replace(os.sep, "/")
        # With ** a folder and what it holds both match; a folder's files are taken once.
        if found.is_dir():
            if "**" not in path:
                pairs |= {file: f"{name}/{below}" for file, below in _walk(found)}
        else:
            pairs[found] = name
    if not pairs:
        raise FlyweightError(f"no file matches {path}")
    return sorted(pairs.items(), key=lambda pair: pair[1]), False


def _fixed_part(pattern: str) -> str:
    parts = pattern.split(os.sep)
    magic = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    return os.sep.join(parts[:magic]) or (os.sep if pattern.startswith(os.sep) else ".")


def _walk(root: Path) -> Iterator[tuple[Path, str]]:
    """Every file below ``root`` and its name relative to it, sorted, hidden ones left out."""
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        if entry.name.startswith(".") or entry.name in _IGNORED_FOLDERS:
            continue
        if entry.is_dir(follow_symlinks=False):
            try:
                below = list(_walk(Path(entry.path)))
            except PermissionError:
                # Handed on as a file, so that reading it fails and is counted.
                yield Path(entry.path), entry.name
                continue
            for file, name in below:
                yield file, f"{entry.name}/{name}"
        else:
            yield Path(entry.path), entry.name


# -- what is in them


def _read(file: Path, name: str, source: str, skipped: Skipped, alone: bool) -> Iterator[Document]:
    packed = file.suffix.lower() if file.suffix.lower() in (".zst", ".gz") else ""
    inner = Path(file.name[: len(file.name) - len(packed)]).suffix.lower()
    try:
        if not file.is_file() and not file.is_dir() and not file.is_symlink():
            skipped.add("no regular file", name)
        elif inner == ".jsonl":
            yield from _json_lines(file, name, source, skipped, alone)
        elif inner == ".parquet":
            yield from _parquet(file, name, source)
        else:
            data = b"".join(_chunks(file))
            text, encoding = decode(data, python=inner in (".py", ".pyi"))
            if encoding != "utf-8":
                skipped.encodings[encoding] += 1
            yield Document(name, text, source)
    except NotTextError:
        if alone:
            raise FlyweightError(f"{file} is a binary file, no text") from None
        skipped.add("binary", name)
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        if alone:
            raise FlyweightError(f"{file} cannot be read: {reason}") from None
        skipped.add(f"unreadable, {reason}", name)


def _json_lines(
    file: Path, name: str, source: str, skipped: Skipped, alone: bool
) -> Iterator[Document]:
    number = 0
    try:
        for number, line in enumerate(_lines(_chunks(file)), start=1):
            if not line.strip():
                continue
            row = _json_row(line, file, number)
            if number == 1 and not alone and "text" not in row:
                skipped.add("JSON lines without a `text`", name)
                return
            yield _document(row, f"{name}:{number}", source, f"{file}, line {number}")
    except _BrokenError as error:
        raise CorruptFileError(
            f"{file}, after line {number}: {error}; get the file again"
        ) from None


def _json_row(line: bytes, file: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line.removeprefix(codecs.BOM_UTF8))
    except ValueError as error:
        raise CorruptFileError(
            f"{file}, line {number}: not valid JSON ({error}); mend or remove the line"
        ) from None
    if not isinstance(row, dict):
        raise CorruptFileError(f"{file}, line {number}: a {type(row).__name__}, not an object")
    return row


def _document(row: dict[str, Any], name: str, source: str, where: str) -> Document:
    text, id = row.get("text"), row.get("id")
    if not isinstance(text, str):
        known = f"it has {', '.join(sorted(row)) or 'no fields'}"
        what = "no `text`" if "text" not in row else f"`text` is a {type(text).__name__}"
        raise FlyweightError(f"{where}: {what} ({known}); each row needs its text in `text`")
    utf8(text, where)
    return Document(str(id) if isinstance(id, (str, int)) and id != "" else name, text, source)


def _parquet(file: Path, name: str, source: str) -> Iterator[Document]:
    try:
        pyarrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise FlyweightError(f"{file} needs the package `pyarrow`: pip install pyarrow") from None
    number = 0
    try:
        table = parquet.ParquetFile(file)
        columns = [column for column in ("id", "text") if column in table.schema_arrow.names]
        for batch in table.iter_batches(columns=columns):
            for row in batch.to_pylist():
                number += 1
                shown = row if "text" in row else dict.fromkeys(table.schema_arrow.names)
                yield _document(shown, f"{name}:{number}", source, f"{file}, row {number}")
    except pyarrow.ArrowException as error:
        raise CorruptFileError(f"{file}, after row {number}: {error}; get the file again") from None


# -- bytes out of a file


class _BrokenError(Exception):
    """Compressed data that ends early or does not decompress."""


def _chunks(file: Path) -> Iterator[bytes]:
    """The file's bytes, decompressed where its name ends in .zst or .gz."""
    suffix = file.suffix.lower()
    size = 0
    try:
        with file.open("rb") as raw:
            unpacked = {".zst": _unzstd, ".gz": _ungzip}.get(suffix, _plain)(raw)
            for chunk in unpacked:
                size += len(chunk)
                yield chunk
    except _BrokenError as error:
        if ".jsonl" in file.suffixes:
            raise
        raise CorruptFileError(f"{file}, after {size} bytes: {error}; get the file again") from None


def _plain(raw: IO[bytes] | gzip.GzipFile) -> Iterator[bytes]:
    while chunk := raw.read(1 << 20):
        yield chunk


def _unzstd(raw: IO[bytes]) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError:
        raise FlyweightError(
            f"{raw.name} needs the package `zstandard`: pip install zstandard"
        ) from None
    # Frame by frame: only so does a file that was cut short differ from one that ends.
    frame = None
    try:
        for chunk in _plain(raw):
            while chunk:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(chunk)
                chunk = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    except zstandard.ZstdError as error:
        raise _BrokenError(f"not valid zstd ({error})") from None
    if frame is not None:
        raise _BrokenError("the zstd data ends early")


def _ungzip(raw: IO[bytes]) -> Iterator[bytes]:
    try:
        yield from _plain(gzip.GzipFile(fileobj=raw))
    except EOFError:
        raise _BrokenError("the gzip data ends early") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise _BrokenError(f"not valid gzip ({error})") from None


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest
