"""The protocol buffers' wire format: the fields of one message, read strictly.

Enough for a SentencePiece model. The format: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from flyweight.spec.errors import CorruptFileError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_KINDS = {_VARINT: "a varint", _FIXED64: "64 bits", _BYTES: "bytes", _FIXED32: "32 bits"}


class Field(NamedTuple):
    """One field of a message: its number, and its value as the wire has it."""

    number: int
    wire: int
    value: int | bytes

    def _is(self, wire: int) -> None:
        if self.wire != wire:
            raise CorruptFileError(
                f"field {self.number} is {_KINDS[self.wire]} where {_KINDS[wire]} is wanted"
            )

    def integer(self) -> int:
        """An int32, int64 or enum."""
        self._is(_VARINT)
        assert isinstance(self.value, int)
        return self.value - (1 << 64) if self.value >> 63 else self.value

    def boolean(self) -> bool:
        return self.integer() != 0

    def data(self) -> bytes:
        self._is(_BYTES)
        assert isinstance(self.value, bytes)
        return self.value

    def text(self) -> str:
        try:
            return self.data().decode("utf-8")
        except UnicodeDecodeError:
            raise CorruptFileError(f"field {self.number} is not UTF-8") from None

    def float32(self) -> float:
        self._is(_FIXED32)
        assert isinstance(self.value, int)
        value: float = struct.unpack("<f", struct.pack("<I", self.value))[0]
        return value


def fields(message: bytes) -> Iterator[Field]:
    """Every field of ``message`` in its order. Raises CorruptFileError where it is no message."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire not in _KINDS or not 0 < number < 1 << 29:
            raise CorruptFileError(f"no field can begin at byte {at}: not a protocol buffer")
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield Field(number, wire, value)
            continue
        if wire == _BYTES:
            size, at = _varint(message, at)
        else:
            size = 8 if wire == _FIXED64 else 4
        if size > len(message) - at:
            raise CorruptFileError(
                f"field {number} claims {size} bytes and {len(message) - at} are left"
            )
        data = message[at : at + size]
        at += size
        yield Field(number, wire, data if wire == _BYTES else int.from_bytes(data, "little"))


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        if at >= len(message):
            raise CorruptFileError("the file ends within a number")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & ((1 << 64) - 1), at
        shift += 7
    raise CorruptFileError(f"a number of more than ten bytes ends at byte {at}")
