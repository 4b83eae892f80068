"""GGUF version 3, written a few rows of a tensor at a time."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from flyweight.files.atomic import new_file
from flyweight.files.blocks import Floats
from flyweight.files.formats import Format
from flyweight.files.gguf import ALIGNMENT, LONGEST_NAME
from flyweight.files.quantise import quantise
from flyweight.spec.errors import FlyweightError

_UINT8, _UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY, _UINT64 = 0, 4, 5, 6, 7, 8, 9, 10
# Numbers that are in memory as float32 at a time.
_AT_ONCE = 1 << 21


class Written(NamedTuple):
    """A tensor to be written. ``rows(at, until)`` gives float32 (until - at, columns); a vector
    is one row."""

    name: str
    shape: tuple[int, ...]
    form: Format
    rows: Callable[[int, int], Floats]

    @property
    def bytes(self) -> int:
        return prod(self.shape[:-1]) * self.form.row_bytes(self.shape[-1])


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Sequence[Written],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write ``path``, which must not exist: whole or not at all.

    Whole numbers are written as uint32 (in lists as int32), numbers as float32. ``progress`` is
    told how many bytes of how many are done. Raises FlyweightError naming a tensor that its
    format cannot hold.
    """
    total, done = sum(tensor.bytes for tensor in tensors), 0
    with new_file(path) as file:
        _write_header(file, metadata, tensors)
        for tensor in tensors:
            count, columns = prod(tensor.shape[:-1]), tensor.shape[-1]
            step = max(1, _AT_ONCE // columns)
            for at in range(0, count, step):
                rows = tensor.rows(at, min(count, at + step))
                try:
                    made = quantise(rows, tensor.form)
                except FlyweightError as error:
                    raise FlyweightError(f"{tensor.name} as {tensor.form.name}: {error}") from None
                file.write(made.data)
                done += made.nbytes
                if progress is not None:
                    progress(done, total)
            file.write(bytes(-tensor.bytes % ALIGNMENT))


def _write_header(file: IO[bytes], metadata: Mapping[str, Any], tensors: Sequence[Written]) -> None:
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        kind, data = _value(key, value)
        parts += [_string(key), struct.pack("<I", kind), data]
    at = 0
    for tensor in tensors:
        assert len(tensor.name.encode()) <= LONGEST_NAME, tensor.name
        lengths = struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape[::-1])
        parts += [_string(tensor.name), struct.pack("<I", len(tensor.shape)), lengths]
        parts.append(struct.pack("<IQ", tensor.form.number, at))
        at += tensor.bytes + -tensor.bytes % ALIGNMENT
    head = b"".join(parts)
    file.write(head + bytes(-len(head) % ALIGNMENT))


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(key: str, value: Any) -> tuple[int, bytes]:
    match value:
        case bool():
            return _BOOL, struct.pack("<?", value)
        case int() if 0 <= value < 1 << 32:
            return _UINT32, struct.pack("<I", value)
        case int():
            return _UINT64, struct.pack("<Q", value)
        case float():
            return _FLOAT32, struct.pack("<f", value)
        case str():
            return _STRING, _string(value)
        case bytes():
            return _ARRAY, struct.pack("<IQ", _UINT8, len(value)) + value
        case list() | tuple():
            return _ARRAY, _array(key, value)
    raise TypeError(f"GGUF key {key} cannot hold {type(value).__name__}")


def _array(key: str, values: Iterable[Any]) -> bytes:
    values = list(values)
    kinds = {type(value) for value in values} or {str}
    if kinds == {str}:
        kind, data = _STRING, b"".join(_string(value) for value in values)
    elif kinds == {int}:
        kind, data = _INT32, np.array(values, dtype="<i4").tobytes()
    elif kinds == {float}:
        kind, data = _FLOAT32, np.array(values, dtype="<f4").tobytes()
    else:
        raise TypeError(f"GGUF key {key} cannot hold a list of {kinds}")
    return struct.pack("<IQ", kind, len(values)) + data
