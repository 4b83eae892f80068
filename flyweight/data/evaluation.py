"""The items of evaluation files: what decontamination looks for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flyweight.data.files import find
from flyweight.data.unpack import BrokenError, chunks, inner_name, lines
from flyweight.spec.errors import CorruptFileError, FlyweightError

_LONGEST = 64 << 20


@dataclass(frozen=True, slots=True)
class Item:
    """One evaluation item: the file's name, the item's ``id`` (else its line), and its texts."""

    file: str
    id: str
    texts: list[str]


def items(paths: list[str]) -> Iterator[Item]:
    """The items of files, folders and globs: each row of ``.jsonl`` (also ``.zst``, ``.gz``), each
    paragraph of any other file, which must be UTF-8 text.

    Of a row every string counts, at any depth, but its ``id``. Raises FlyweightError where there is
    no such file, CorruptFileError (file and line) where one is broken.
    """
    for path in paths:
        for found in find(path, Path())[0]:
            if found.why is None:
                is_json = Path(inner_name(found.path)).suffix.lower() == ".jsonl"
                rows = _rows if is_json else _paragraphs
                yield from rows(found.path, found.name)


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """(number, line) of a file, packed or not."""
    number = 0
    try:
        for number, line in enumerate(lines(chunks(file), _LONGEST), start=1):
            if line is None:
                raise FlyweightError(f"{file}, line {number}: longer than {_LONGEST} bytes")
            yield number, line
    except BrokenError as error:
        raise CorruptFileError(
            f"{file}, after line {number}: {error}; get the file again"
        ) from None
    except OSError as error:
        raise FlyweightError(f"{file} cannot be read: {error.strerror}") from None


def _rows(file: Path, name: str) -> Iterator[Item]:
    for number, line in _lines(file):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorruptFileError(f"{file}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise CorruptFileError(
                f"{file}, line {number}: a {type(row).__name__}, no object; each line of an"
                " evaluation file is one item"
            )
        id = row.pop("id", None)
        yield Item(name, str(number if id is None else id), list(_strings(row)))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _strings(each)


def _paragraphs(file: Path, name: str) -> Iterator[Item]:
    paragraph: list[str] = []
    first = 0
    for number, line in _lines(file):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            raise FlyweightError(
                f"{file}, line {number}: not UTF-8 text; evaluation files are JSON lines or text"
            ) from None
        if text.strip():
            first = first if paragraph else number
            paragraph.append(text)
        elif paragraph:
            yield Item(name, str(first), ["\n".join(paragraph)])
            paragraph = []
    if paragraph:
        yield Item(name, str(first), ["\n".join(paragraph)])
