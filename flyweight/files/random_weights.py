"""Random weights for a model that has none: for its size and its speed, not for what it says."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from flyweight.files.blocks import Floats
from flyweight.spec.model import ModelSpec
from flyweight.zoo import shapes

_DEVIATION = np.float32(0.02)


class RandomSource:
    """Matrices N(0, 0.02²), gains 1 and biases 0, each row from the seed, its tensor's name and
    its number alone."""

    def __init__(self, spec: ModelSpec, seed: int = 0) -> None:
        self.seed = seed
        self.shapes = {tensor.name: tensor.shape for tensor in shapes.tensors(spec)}

    def rows(self, name: str, index: slice | NDArray[np.intp]) -> Floats:
        shape = self.shapes[name]
        if len(shape) == 1:
            value = 1.0 if name.endswith(".weight") else 0.0
            return np.full((1, shape[0]), value, dtype=np.float32)
        numbers = np.arange(shape[0])[index]
        made = np.empty((len(numbers), shape[1]), dtype=np.float32)
        named = zlib.crc32(name.encode())
        for row, number in zip(made, numbers.tolist(), strict=True):
            generator = np.random.Generator(np.random.SFC64([self.seed, named, number]))
            generator.standard_normal(dtype=np.float32, out=row)
        made *= _DEVIATION
        return made
