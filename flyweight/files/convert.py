"""Tensors converted in memory to another of ggml's formats, as they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from flyweight.files.blocks import dequantise
from flyweight.files.formats import FORMATS, NUMBERED, Format
from flyweight.files.gguf_types import FILE_TYPES, Types
from flyweight.files.quantise import quantise
from flyweight.files.weights import StoredTensor
from flyweight.spec.errors import FlyweightError
from flyweight.spec.model import ModelSpec
from flyweight.spec.table import nearest

# Numbers that are in memory as float32 at a time.
_AT_ONCE = 1 << 22
_SIXTEEN_BITS = (FORMATS["f16"].number, FORMATS["bf16"].number)


class Converted(Mapping[str, StoredTensor]):
    """``tensors`` of ``spec`` in the formats that a GGUF file of type ``asked`` gives them.

    Vectors stay as they are. What becomes of matrices whose rows are no multiple of a block is
    told to ``notice``. Raises FlyweightError where there is no such type.
    """

    def __init__(
        self,
        tensors: Mapping[str, StoredTensor],
        spec: ModelSpec,
        asked: str,
        notice: Callable[[str], None],
    ) -> None:
        if asked not in FILE_TYPES:
            raise FlyweightError(f"format = {asked}{nearest(asked, list(FILE_TYPES))}")
        self._tensors, self._notice = tensors, notice
        self._types = Types(asked, spec.depth, spec.tie_embeddings)
        self._told: set[tuple[str, str]] = set()

    def __getitem__(self, name: str) -> StoredTensor:
        found = self._tensors[name]
        if found.rows == 1:
            return found
        form = self._types(name, name, (found.rows, found.cols))
        self._tell(name, found.cols)
        same = found.format == form.number
        if same or (form.name == "f16" and found.format in _SIXTEEN_BITS):
            return found
        return _converted(name, found, form)

    def _tell(self, name: str, cols: int) -> None:
        for wanted, got in self._types.instead.keys() - self._told:
            block = FORMATS[wanted].block
            self._notice(
                f"{name} and others: rows of {cols} are no multiple of {wanted}'s blocks of"
                f" {block}; {got} instead"
            )
            self._told.add((wanted, got))

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _converted(name: str, found: StoredTensor, form: Format) -> StoredTensor:
    stored = NUMBERED[found.format]
    source = found.in_rows()
    made = np.empty((found.rows, form.row_bytes(found.cols)), dtype=np.uint8)
    step = max(1, _AT_ONCE // found.cols)
    for at in range(0, found.rows, step):
        try:
            made[at : at + step] = quantise(dequantise(source[at : at + step], stored), form)
        except FlyweightError as error:
            raise FlyweightError(f"{name} as {form.name}: {error}") from None
    return StoredTensor(form.number, found.rows, found.cols, made.reshape(-1))
