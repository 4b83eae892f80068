"""What any corpus wants: one kind of newline, and a fingerprint that tells copies."""

from __future__ import annotations

import hashlib


def normalise(text: str) -> str:
    """``text`` without a byte order mark, every newline as ``\\n``."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def fingerprint(text: str) -> bytes:
    """sha256 of a text's UTF-8: equal texts, equal fingerprints."""
    return hashlib.sha256(text.encode("utf-8")).digest()
