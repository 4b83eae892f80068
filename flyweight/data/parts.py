"""Documents on their way through a build: parts of some megabytes on the disk.

A part is two files: PART.text, the texts in UTF-8 one after the other, and PART.rows, a line
``[name, bytes]`` of JSON for each. All documents of a part are of one source.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Self

from flyweight.data.document import Document


class PartWriter:
    """Writes a part under temporary names, and puts it in its place when all went well."""

    def __init__(self, path: Path) -> None:
        self.documents = self.bytes = 0
        self._names = [path.with_suffix(suffix) for suffix in (".text", ".rows")]
        self._temporary = [name.with_name(f".{name.name}.{os.getpid()}") for name in self._names]
        self._text, self._rows = (name.open("wb") for name in self._temporary)

    def __enter__(self) -> Self:
        return self

    def add(self, name: str, text: bytes) -> None:
        self._text.write(text)
        self._rows.write(json.dumps([name, len(text)], ensure_ascii=False).encode() + b"\n")
        self.documents += 1
        self.bytes += len(text)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        close(self._text, self._rows)
        for temporary, name in zip(self._temporary, self._names, strict=True):
            if kind is None:
                temporary.replace(name)
            else:
                temporary.unlink(missing_ok=True)


def read_part(path: Path, source: str) -> Iterator[Document]:
    """The documents of a part, in order."""
    with path.with_suffix(".text").open("rb") as texts, path.with_suffix(".rows").open() as rows:
        for row in rows:
            name, size = json.loads(row)
            yield Document(name, texts.read(size).decode(), source)


def remove_part(path: Path) -> None:
    for suffix in (".text", ".rows"):
        path.with_suffix(suffix).unlink(missing_ok=True)


def close(*files: IO[bytes]) -> None:
    """Close files whose content is then on the disk."""
    for file in files:
        file.flush()
        os.fsync(file.fileno())
        file.close()
