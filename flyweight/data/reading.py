"""Documents out of a piece of a source, whatever its format."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator

from flyweight.data.document import Document, Skipped
from flyweight.data.encoding import NotTextError
from flyweight.data.piece import Piece
from flyweight.data.rows import read_csv, read_json_lines, read_parquet
from flyweight.data.saved import read_hub, read_saved
from flyweight.data.texts import read_html, read_text
from flyweight.spec.errors import FlyweightError

_READ = (stat.S_IFREG, stat.S_IFDIR)
_READERS: dict[str, Callable[[Piece, Skipped], Iterator[Document]]] = {
    "text": read_text,
    "html": read_html,
    "jsonl": read_json_lines,
    "csv": read_csv,
    "parquet": read_parquet,
    "saved": read_saved,
    "hub": read_hub,
}


def read(piece: Piece, skipped: Skipped) -> Iterator[Document]:
    """The documents of a piece. What is broken raises, or is counted, as ``skipped`` says; binary
    and unreadable files inside a folder are counted in any case.

    Raises FlyweightError, CorruptFileError: they name the file and the line, row or byte.
    """
    path = piece.path
    try:
        # A pipe or a device may never end, behind a link too.
        if piece.kind != "hub" and stat.S_IFMT(path.stat().st_mode) not in _READ:
            skipped.add("no regular file", piece.name)
        else:
            yield from _READERS[piece.kind](piece, skipped)
    except NotTextError:
        if piece.alone:
            raise FlyweightError(f"{path} is a binary file, no text") from None
        skipped.add("binary", piece.name)
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        if piece.alone:
            raise FlyweightError(f"{path} cannot be read: {reason}") from None
        skipped.add(f"unreadable, {reason}", piece.name)
