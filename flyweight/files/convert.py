"""Tensors converted in memory to another of ggml's formats, as they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from flyweight.files.blocks import FORMATS, NUMBERED, Format, dequantise
from flyweight.files.quantise import WRITABLE, quantise
from flyweight.files.weights import StoredTensor
from flyweight.spec.errors import FlyweightError
from flyweight.spec.table import nearest

# Numbers that are in memory as float32 at a time.
_AT_ONCE = 1 << 22


def wanted_format(name: str) -> Format:
    """The format called ``name``. Raises FlyweightError naming the nearest that can be written."""
    if name not in WRITABLE:
        raise FlyweightError(f"format = {name}{nearest(name, list(WRITABLE))}")
    return FORMATS[name]


class Converted(Mapping[str, StoredTensor]):
    """``tensors`` with their matrices in ``form``; vectors stay as they are.

    A matrix whose rows are no multiple of the format's block becomes F16, and ``notice`` is told
    once, of all of them.
    """

    def __init__(
        self,
        tensors: Mapping[str, StoredTensor],
        form: Format,
        notice: Callable[[str], None],
    ) -> None:
        self._tensors, self._form, self._notice = tensors, form, notice
        self._told = False

    def __getitem__(self, name: str) -> StoredTensor:
        found = self._tensors[name]
        form = self._form
        if found.rows == 1 or found.format == form.number:
            return found
        if found.cols % form.block:
            if not self._told:
                self._notice(
                    f"{name} has rows of {found.cols}, no multiple of {form.name}'s block of"
                    f" {form.block}; it and all like it are kept in 16 bits"
                )
                self._told = True
            form = FORMATS["f16"]
            if found.format in (FORMATS["f16"].number, FORMATS["bf16"].number):
                return found
        stored = NUMBERED[found.format]
        source = found.data.reshape(found.rows, stored.row_bytes(found.cols))
        made = np.empty((found.rows, form.row_bytes(found.cols)), dtype=np.uint8)
        step = max(1, _AT_ONCE // found.cols)
        for at in range(0, found.rows, step):
            rows = dequantise(source[at : at + step], stored)
            try:
                made[at : at + step] = quantise(rows, form)
            except FlyweightError as error:
                raise FlyweightError(f"{name} as {form.name}: {error}") from None
        return StoredTensor(form.number, found.rows, found.cols, made.reshape(-1))

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
