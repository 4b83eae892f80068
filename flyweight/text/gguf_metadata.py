"""The metadata at the front of a GGUF file, read strictly and without its tensors.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A count that the file claims
is believed only as far as the file is long.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

from flyweight.spec.errors import CorruptFileError, FlyweightError

_NUMBERS = {
    0: "B",
    1: "b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_LENGTH = struct.Struct("<Q")
_VERSIONS = (2, 3)
_DEEPEST = 4


def read_metadata(path: str | os.PathLike[str], prefix: str = "") -> dict[str, Any]:
    """The keys that begin with ``prefix`` and their values: numbers, bools, strings, lists.

    Raises CorruptFileError where the file is not GGUF, ends early, or names a key twice.
    """
    try:
        with open(path, "rb") as file:
            if file.seek(0, os.SEEK_END) < 24:
                raise CorruptFileError(f"{path} is too short for a GGUF file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return Reader(data).metadata(prefix)
    except OSError as error:
        raise FlyweightError(f"{path} cannot be read: {error.strerror}") from None
    except CorruptFileError as error:
        if str(path) in str(error):
            raise
        raise CorruptFileError(f"{path} is a damaged GGUF file: {error}") from None


class Reader:
    """Reads GGUF's values from ``data``, one after another, each checked before it is used.

    ``at`` is the place of the next byte; after ``metadata`` that of the first tensor's description,
    and ``tensors`` says how many of them the file claims.
    """

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0
        self.tensors = 0
        # The kinds of values: how to read one, and how many bytes it takes at least.
        self.kinds: dict[int, tuple[Callable[[int], Any], int]] = {
            _BOOL: (lambda depth: self.boolean(), 1),
            _STRING: (lambda depth: self.string(), 8),
            _ARRAY: (self.array, 12),
        }
        for kind, layout in _NUMBERS.items():
            self.kinds[kind] = partial(self._number, layout), struct.calcsize(layout)

    def _number(self, layout: str, depth: int) -> Any:
        return self.number(layout)

    def metadata(self, prefix: str = "") -> dict[str, Any]:
        """The header, checked, and the keys that begin with ``prefix``."""
        if self.take(4) != b"GGUF":
            raise CorruptFileError("it does not begin with GGUF")
        version = self.number("<I")
        if version not in _VERSIONS:
            known = " and ".join(str(v) for v in _VERSIONS)
            raise CorruptFileError(
                f"version {version:#x} (little-endian versions {known} are read)"
            )
        self.tensors = self.number("<Q")
        count = self.number("<Q")
        self.bounded(count, 8 + 4 + 1, "keys")
        found: dict[str, Any] = {}
        seen: set[str] = set()
        for _ in range(count):
            key = self.string()
            if key in seen:
                raise CorruptFileError(f"the key {key!r} stands in it twice")
            seen.add(key)
            try:
                value = self.value(self.number("<I"))
            except CorruptFileError as error:
                raise CorruptFileError(f"at the key {key!r}: {error}") from None
            if key.startswith(prefix):
                found[key] = value
        return found

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind not in self.kinds:
            raise CorruptFileError(f"type {kind} is none that GGUF has")
        return self.kinds[kind][0](depth)

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise CorruptFileError(
                f"{size} bytes are claimed where {len(self.data) - self.at} are left"
            )
        self.at += size
        return self.data[self.at - size : self.at]

    def bounded(self, count: int, least: int, what: str) -> None:
        if count * least > len(self.data) - self.at:
            raise CorruptFileError(
                f"{count} {what} are claimed where {len(self.data) - self.at} bytes are left"
            )

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def boolean(self) -> bool:
        byte = self.take(1)[0]
        if byte > 1:
            raise CorruptFileError(f"a bool is {byte}")
        return byte == 1

    def string(self) -> str:
        data = self.take(self.number("<Q"))
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise CorruptFileError(f"{data[:40]!r} is not UTF-8") from None

    def array(self, depth: int) -> list[Any]:
        kind, count = self.number("<I"), self.number("<Q")
        if kind not in self.kinds or depth >= _DEEPEST:
            raise CorruptFileError(f"an array of type {kind} at depth {depth}")
        self.bounded(count, self.kinds[kind][1], "values")
        if kind in _NUMBERS:
            layout = _NUMBERS[kind]
            size = struct.calcsize(layout)
            return list(struct.unpack(f"<{count}{layout[-1]}", self.take(count * size)))
        if kind == _STRING:
            return self._strings(count)
        read = self.kinds[kind][0]
        return [read(depth + 1) for _ in range(count)]

    def _strings(self, count: int) -> list[str]:
        """As ``string`` would read them; a vocabulary has hundreds of thousands."""
        data, at, end, length = self.data, self.at, len(self.data), _LENGTH.unpack_from
        found: list[str] = []
        try:
            for _ in range(count):
                (size,) = length(data, at)
                at += 8
                if size > end - at:
                    raise CorruptFileError(f"{size} bytes are claimed where {end - at} are left")
                found.append(data[at : at + size].decode("utf-8"))
                at += size
        except struct.error:
            raise CorruptFileError(f"8 bytes are claimed where {end - at} are left") from None
        except UnicodeDecodeError:
            raise CorruptFileError(f"{data[at : at + min(size, 40)]!r} is not UTF-8") from None
        self.at = at
        return found
