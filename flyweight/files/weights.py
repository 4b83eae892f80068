"""Stored tensors as ggml's formats have them: what the engine reads and GGUF files hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from flyweight.files.formats import NUMBERED
from flyweight.files.tensors import Kind, Tensors
from flyweight.spec.errors import CorruptFileError
from flyweight.spec.model import ModelSpec
from flyweight.zoo import shapes

if TYPE_CHECKING:
    from array import array

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from flyweight.files.blocks import Floats
    from flyweight.files.from_gguf import GgufWeight
    from flyweight.files.tensors import Bits

# ggml's numbers of the kinds that weights come in, by the names that safetensors has for them.
NUMBERS = {"F32": 0, "F16": 1, "BF16": 30}


class StoredTensor(NamedTuple):
    """A matrix of ``rows`` rows of ``cols`` numbers, or a vector (one row).

    ``format``: ggml's number of the type. ``data``: flat bytes, row after row in ggml's layout,
    often a view of a mapped file. ``order``: row r of a matrix is row ``order[r]`` of the data;
    None: row r.
    """

    format: int
    rows: int
    cols: int
    data: memoryview | NDArray[np.uint8]
    order: array[int] | NDArray[np.intp] | None = None

    def in_rows(self) -> NDArray[np.uint8]:
        """(rows, bytes of a row), a copy where rows are in another order."""
        import numpy as np

        rows = np.asarray(self.data).reshape(self.rows, -1)
        return rows if self.order is None else rows[np.asarray(self.order)]


class StoredTensors(Mapping[str, StoredTensor]):
    """Tensors of a safetensors file or a Hugging Face folder, each looked at when it is asked for.

    What lies in float64 becomes float32.
    """

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> StoredTensor:
        import numpy as np

        kind = self._tensors.kinds[name]
        bits, number = self._tensors.bits(name), NUMBERS.get(kind.dtype)
        if number is None:
            bits = bits.view(np.float64).astype(np.float32).view(np.uint32)
            number = NUMBERS["F32"]
        rows = 1 if len(kind.shape) < 2 else kind.shape[0]
        data = np.ascontiguousarray(bits).reshape(-1).view(np.uint8)
        return StoredTensor(number, rows, bits.size // max(rows, 1), data)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors.kinds)

    def __len__(self) -> int:
        return len(self._tensors.kinds)


# What a stacked tensor is made of, where a file has its parts apart.
PARTS = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}


class GgufTensors(Mapping[str, StoredTensor]):
    """The tensors of a GGUF file in our names, its own views wherever rows keep their places.

    Parts of a stacked tensor that the file has apart go by names of their own: ``attention.q``
    for the first part of ``attention.qkv``.
    """

    def __init__(self, weights: Mapping[str, GgufWeight]) -> None:
        self._parts = {}
        for name, weight in weights.items():
            if len(weight.parts) == 1:
                self._parts[name] = weight.parts[0]
                continue
            owner, stem, leaf = name.rsplit(".", 2)
            for part, found in zip(PARTS[stem], weight.parts, strict=True):
                self._parts[f"{owner}.{part}.{leaf}"] = found

    def __getitem__(self, name: str) -> StoredTensor:
        part = self._parts[name]
        form, rows, cols = part.tensor.form, part.tensor.rows, part.tensor.shape[-1]
        if len(part.tensor.shape) == 1 and part.order is not None:
            return StoredTensor(form.number, rows, cols, part.rows().reshape(-1))
        return StoredTensor(form.number, rows, cols, part.tensor.flat, part.order)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


class RandomTensors(Mapping[str, StoredTensor]):
    """The random tensors of a spec, made when they are asked for."""

    def __init__(self, spec: ModelSpec) -> None:
        from flyweight.files.random_weights import RandomSource

        self._source = RandomSource(spec)

    def __getitem__(self, name: str) -> StoredTensor:
        if name not in self._source.shapes:
            raise KeyError(name)
        import numpy as np

        rows = self._source.rows(name, slice(None))
        data = rows.reshape(-1).view(np.uint8)
        return StoredTensor(NUMBERS["F32"], rows.shape[0], rows.shape[1], data)

    def __iter__(self) -> Iterator[str]:
        return iter(self._source.shapes)

    def __len__(self) -> int:
        return len(self._source.shapes)


class Dequantised:
    """``tensors`` as the numbers that they stand for: every tensor of ``spec``, in float32."""

    def __init__(self, tensors: Mapping[str, StoredTensor], spec: ModelSpec) -> None:
        self.tensors = tensors
        self.kinds = {t.name: Kind("F32", t.shape) for t in shapes.tensors(spec)}

    def bits(self, name: str) -> Bits:
        import numpy as np

        return self._numbers(name).view(np.uint32)

    def __getitem__(self, name: str) -> torch.Tensor:
        import torch

        numbers = self._numbers(name)
        return torch.from_numpy(numbers if numbers.flags.writeable else numbers.copy())

    def _numbers(self, name: str) -> Floats:
        if name in self.tensors:
            whole = [self.tensors[name]]
        else:
            owner, stem, leaf = name.rsplit(".", 2)
            whole = [self.tensors[f"{owner}.{part}.{leaf}"] for part in PARTS[stem]]
        import numpy as np

        rows = [dequantised(each) for each in whole]
        return np.concatenate(rows, axis=None).reshape(self.kinds[name].shape)


def dequantised(tensor: StoredTensor) -> Floats:
    """The numbers of a tensor, (rows, cols)."""
    from flyweight.files.blocks import dequantise

    form = NUMBERED[tensor.format]
    return dequantise(tensor.in_rows(), form)


def check_fit(kinds: Mapping[str, Kind], spec: ModelSpec, where: Path) -> None:
    """Names and shapes must be the spec's. Raises CorruptFileError naming some that are not."""
    wanted = {tensor.name: tensor.shape for tensor in shapes.tensors(spec)}
    wrong = sorted(wanted.keys() ^ kinds.keys())
    wrong += [n for n, shape in wanted.items() if n in kinds and kinds[n].shape != shape]
    if wrong:
        raise CorruptFileError(f"{where} does not fit its spec: {', '.join(wrong[:5])}")
