"""A GGUF file, mapped into memory: its metadata, and its tensors as they lie.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A file may come from
anywhere: every count, length, type, shape and offset is checked before it is used.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flyweight.files.formats import NUMBERED, OTHERS, Format
from flyweight.spec.errors import CorruptFileError, FlyweightError
from flyweight.text.gguf_metadata import Reader

if TYPE_CHECKING:
    from flyweight.files.blocks import Bytes, Floats

# What ggml itself keeps to.
LONGEST_NAME, MOST_DIMENSIONS, ALIGNMENT = 63, 4, 32
_MOST_ALIGNMENT = 1 << 20
_MOST_NUMBERS = 1 << 47
# A tensor's description: a name's length and a letter, dimensions, one length, type, offset.
_LEAST_INFO = 8 + 1 + 4 + 8 + 4 + 8


class GgufTensor(NamedTuple):
    """A tensor as the file has it.

    ``shape``: as numpy counts, rows first (the file has it the other way round). ``flat``: its
    bytes in ggml's layout, a read-only view of the mapped file.
    """

    name: str
    form: Format
    shape: tuple[int, ...]
    flat: memoryview

    @property
    def rows(self) -> int:
        """A vector is one row."""
        return prod(self.shape[:-1])

    @property
    def data(self) -> Bytes:
        """``flat`` as an array, (rows, bytes of a row)."""
        import numpy as np

        return np.frombuffer(self.flat, dtype=np.uint8).reshape(self.rows, -1)

    def dequantise(self) -> Floats:
        """The numbers, in this tensor's shape."""
        from flyweight.files.blocks import dequantise

        return dequantise(self.data, self.form).reshape(self.shape)


class GgufFile:
    """A GGUF file, opened and checked; no tensor is read before it is used.

    ``metadata``: every key, as numbers, bools, strings and lists. ``tensors``: by name, in the
    file's order. Raises CorruptFileError or FlyweightError naming the file and the tensor.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with _named(self.path):
            try:
                with open(self.path, "rb") as file:
                    if file.seek(0, os.SEEK_END) < 24:
                        raise CorruptFileError("it is too short")
                    # Views of the tensors keep the mapping alive.
                    self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                raise FlyweightError(f"it cannot be read: {error.strerror}") from None
            reader = Reader(self._map)
            self.metadata: dict[str, Any] = reader.metadata()
            self.alignment = self._alignment()
            self._refuse_splits()
            infos = _infos(reader)
            self.data_offset = -(-reader.at // self.alignment) * self.alignment
            self.tensors = {t.name: t for t in self._placed(infos)}

    def _alignment(self) -> int:
        value = self.metadata.get("general.alignment", ALIGNMENT)
        power = type(value) is int and value > 0 and value & (value - 1) == 0
        if not power or value > _MOST_ALIGNMENT:
            raise CorruptFileError(f"general.alignment is {value!r}: a power of two is wanted")
        return int(value)

    def _refuse_splits(self) -> None:
        count = self.metadata.get("split.count", 0)
        if count not in (0, 1):
            raise FlyweightError(
                f"it is one of {count} parts of a model; join them (llama.cpp's"
                " `llama-gguf-split --merge`)"
            )

    def _placed(self, infos: list[_Info]) -> Iterator[GgufTensor]:
        size = len(self._map)
        if infos and self.data_offset > size:
            raise CorruptFileError("it ends before its tensors begin")
        ends = 0
        before = ""
        for info in sorted(infos, key=lambda i: i.offset):
            length = info.bytes
            if info.offset % self.alignment:
                raise CorruptFileError(
                    f"tensor {info.name!r} begins at {info.offset}, no multiple of the alignment"
                    f" {self.alignment}"
                )
            if info.offset > size - self.data_offset - length:
                raise CorruptFileError(
                    f"tensor {info.name!r} of {length} bytes at {info.offset} reaches beyond the"
                    " end of the file"
                )
            if info.offset < ends:
                raise CorruptFileError(f"tensors {before!r} and {info.name!r} overlap")
            ends, before = info.offset + length, info.name
        whole = memoryview(self._map)
        for info in infos:
            at = self.data_offset + info.offset
            yield GgufTensor(info.name, info.form, info.shape, whole[at : at + info.bytes])


class _Info(NamedTuple):
    name: str
    form: Format
    shape: tuple[int, ...]
    offset: int

    @property
    def bytes(self) -> int:
        return prod(self.shape[:-1]) * self.form.row_bytes(self.shape[-1])


def _infos(reader: Reader) -> list[_Info]:
    reader.bounded(reader.tensors, _LEAST_INFO, "tensors")
    found: dict[str, _Info] = {}
    for number in range(reader.tensors):
        try:
            name = reader.string()
        except CorruptFileError as error:
            raise CorruptFileError(f"the name of tensor {number}: {error}") from None
        if not name or len(name.encode()) > LONGEST_NAME:
            raise CorruptFileError(
                f"tensor {number} is named {name[:80]!r}: 1 to {LONGEST_NAME} bytes are wanted"
            )
        if name in found:
            raise CorruptFileError(f"tensor {name!r} stands in it twice")
        try:
            found[name] = _info(reader, name)
        except FlyweightError as error:
            raise type(error)(f"tensor {name!r}: {error}") from None
    return list(found.values())


def _info(reader: Reader, name: str) -> _Info:
    dimensions = reader.number("<I")
    if not 1 <= dimensions <= MOST_DIMENSIONS:
        raise CorruptFileError(f"{dimensions} dimensions; 1 to {MOST_DIMENSIONS} are possible")
    shape = tuple(reader.number("<Q") for _ in range(dimensions))[::-1]
    # Each before the product, which could be astronomic.
    if not all(0 < length < _MOST_NUMBERS for length in shape) or prod(shape) > _MOST_NUMBERS:
        raise CorruptFileError(f"shape {list(shape)} is none that a tensor can have")
    number = reader.number("<I")
    form = NUMBERED.get(number)
    if form is None:
        if number in OTHERS:
            raise FlyweightError(
                f"format {OTHERS[number]} is not supported; known: {', '.join(NUMBERED_NAMES)}"
            )
        raise CorruptFileError(f"format {number} is none that ggml has")
    if shape[-1] % form.block:
        raise CorruptFileError(
            f"rows of {shape[-1]} numbers are no whole number of {form.name} blocks of {form.block}"
        )
    return _Info(name, form, shape, reader.number("<Q"))


NUMBERED_NAMES = tuple(form.name for form in NUMBERED.values())


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors that name the file."""
    try:
        yield
    except CorruptFileError as error:
        raise CorruptFileError(f"{path} is a damaged GGUF file: {error}") from None
    except FlyweightError as error:
        raise FlyweightError(f"{path}: {error}") from None
