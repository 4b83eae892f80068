"""From a file's bytes to text, in whatever encoding they are; or the finding that it is no text."""

from __future__ import annotations

import codecs
import re
import unicodedata

# What a text file may hold below U+0020: tab, newlines, backspace, form feed, escape.
_ALLOWED = frozenset(b"\b\t\n\v\f\r\x1b")
_CONTROLS = bytes(byte for byte in range(32) if byte not in _ALLOWED) + b"\x7f"
_BINARY_SHARE = 0.03
# Zeros among the bytes of UTF-16, whose spaces and newlines have one each.
_ZERO_SHARE = 0.1
_SAMPLE = 1 << 16
_BOMS = (
    # UTF-32's little-endian mark begins with UTF-16's.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CODING = re.compile(rb"^[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)", re.MULTILINE)  # PEP 263


class NotTextError(Exception):
    """The bytes are no text in any encoding that is tried."""


def decode(data: bytes, python: bool = False) -> tuple[str, str]:
    """(text without byte order mark, encoding: "utf-8" or another's name). Raises NotTextError.

    In this order: a byte order mark; UTF-8; UTF-16 without a mark, which the zeros of its ASCII
    characters betray; for Python the encoding that its first two lines declare; cp1252; latin-1.
    Zeros elsewhere, or many control characters, make a binary file.
    """
    for bom, encoding in _BOMS:
        if data.startswith(bom):
            try:
                text = data.decode(encoding)
            except UnicodeDecodeError:
                raise NotTextError from None
            if _strange(text):
                raise NotTextError
            return text.removeprefix("\ufeff"), encoding.removesuffix("-sig")
    if b"\0" in data:
        return _utf16(data)
    if _controlled(data):
        raise NotTextError
    declared = _declared(data) if python else None
    for encoding in ("utf-8", *([declared] if declared else []), "cp1252"):
        try:
            return data.decode(encoding), encoding
        except UnicodeDecodeError:
            continue
    text = data.decode("latin-1")
    if _strange(text):
        raise NotTextError
    return text, "latin-1"


def _utf16(data: bytes) -> tuple[str, str]:
    """UTF-16 that holds ASCII characters has zeros on one side of its pairs only."""
    low, high = data[0::2].count(0), data[1::2].count(0)
    if low + high < _ZERO_SHARE * len(data) and _is_utf8(data.replace(b"\0", b"")):
        raise NotTextError  # zeros astray in another text
    # Four to one leaves room for the odd character that ends in zero, such as U+0100.
    if len(data) % 2 == 0 and max(low, high) > 4 * min(low, high):
        encoding = "utf-16-le" if high > low else "utf-16-be"
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            raise NotTextError from None
        if "\0" not in text and not _strange(text):
            return text, encoding
    raise NotTextError


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return not _controlled(data)


def _controlled(data: bytes) -> bool:
    """Whether more than a few bytes are controls."""
    sample = data[:_SAMPLE]
    return len(sample) - len(sample.translate(None, _CONTROLS)) > _BINARY_SHARE * len(sample)


def _strange(text: str) -> bool:
    """Whether more than a few characters are controls, unassigned or for private use."""
    sample = text[:_SAMPLE]
    strange = sum(
        unicodedata.category(character) in ("Cc", "Cn", "Co", "Cs")
        for character in sample
        if not (character.isascii() and (character.isprintable() or ord(character) in _ALLOWED))
    )
    return "\0" in text or strange > _BINARY_SHARE * len(sample)


def _declared(data: bytes) -> str | None:
    head = b"\n".join(data.split(b"\n", 2)[:2])
    found = _CODING.search(head)
    if found is None:
        return None
    try:
        return codecs.lookup(found[1].decode("ascii")).name
    except (LookupError, UnicodeDecodeError):
        return None
