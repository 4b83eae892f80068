"""Whole texts: of any encoding, and out of HTML."""

from __future__ import annotations

import codecs
import contextlib
from collections.abc import Iterator
from pathlib import Path

from flyweight.data.document import Document, Skipped
from flyweight.data.encoding import decode
from flyweight.data.html import declared_charset, html_text
from flyweight.data.piece import Piece, too_long
from flyweight.data.unpack import BrokenError, chunks, inner_name
from flyweight.spec.errors import CorruptFileError

# A text of more bytes is cut at lines into documents of about this many.
LONG_TEXT = 16 << 20


def read_text(piece: Piece, skipped: Skipped) -> Iterator[Document]:
    python = Path(inner_name(piece.path)).suffix.lower() in (".py", ".pyi")
    limit = min(LONG_TEXT, piece.longest)
    number, blocks = 0, _blocks(_whole(piece, limit, skipped), limit)
    block, last = next(blocks, (b"", True))
    if last:
        text, encoding = decode(block, python)
        _count_encoding(skipped, encoding)
        yield Document(piece.name, text, piece.source)
        return
    _, encoding = decode(block)
    wide = encoding.startswith(("utf-16", "utf-32"))
    # Only UTF-8's and the one-byte encodings' newlines are where the bytes say.
    decoder = codecs.getincrementaldecoder(encoding)() if wide else None
    while True:
        number += 1
        text, encoding = (decoder.decode(block, last), encoding) if decoder else decode(block)
        _count_encoding(skipped, encoding)
        yield Document(f"{piece.name}#{number}", text, piece.source)
        if last:
            return
        block, last = next(blocks)


def _whole(piece: Piece, limit: int, skipped: Skipped) -> Iterator[bytes]:
    """A file's bytes; where it turns out to be broken, none of the last ``limit`` of them if that
    is counted and not raised."""
    size = 0
    try:
        for chunk in chunks(piece.path):
            size += len(chunk)
            yield chunk
    except BrokenError as error:
        broken = CorruptFileError(f"{piece.path}, after {size} bytes: {error}; get the file again")
        skipped.broken(f"damaged, {error}", piece.name, broken)
        raise _DamagedError from None


class _DamagedError(Exception):
    """A packed file that is broken has been counted: nothing more comes of it."""


def _blocks(data: Iterator[bytes], limit: int) -> Iterator[tuple[bytes, bool]]:
    """Blocks of at most ``limit`` bytes, cut after a newline, a space, or between characters;
    and whether each is the last."""
    held = b""
    try:
        for chunk in data:
            held += chunk
            while len(held) > limit:
                cut = 1 + max(held.rfind(b"\n", 0, limit), -1) or 1 + held.rfind(b" ", 0, limit)
                if cut == 0:
                    cut = limit
                    while cut > limit - 4 and held[cut] & 0xC0 == 0x80:
                        cut -= 1
                yield held[:cut], False
                held = held[cut:]
    except _DamagedError:
        return
    yield held, True


def _count_encoding(skipped: Skipped, encoding: str) -> None:
    if encoding != "utf-8":
        skipped.encodings[encoding] += 1


def read_html(piece: Piece, skipped: Skipped) -> Iterator[Document]:
    limit = piece.longest
    try:
        parts, size = [], 0
        for chunk in _whole(piece, limit, skipped):
            size += len(chunk)
            if size > limit:
                too_long(piece, skipped, f"{piece.path}", piece.name)
                return
            parts.append(chunk)
    except _DamagedError:
        return
    data = b"".join(parts)
    text, encoding = decode(data)
    declared = declared_charset(data)
    if encoding == "cp1252" and declared:
        with contextlib.suppress(LookupError, UnicodeDecodeError):
            text, encoding = data.decode(declared), declared.lower()
    _count_encoding(skipped, encoding)
    yield Document(piece.name, html_text(text), piece.source)
