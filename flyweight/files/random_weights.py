"""Random tensors of a spec, for shapes that are to be timed or looked at without a checkpoint."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping

import numpy as np

from flyweight.files.weights import NUMBERS, StoredTensor
from flyweight.spec.model import ModelSpec
from flyweight.zoo.shapes import tensors


class RandomTensors(Mapping[str, StoredTensor]):
    """Every tensor of ``spec`` in float32, made anew each time that it is asked for.

    A tensor depends on its name and ``seed`` alone. Matrices N(0, 1 / columns), tables N(0, 1/50²),
    gains 1, biases 0.
    """

    def __init__(self, spec: ModelSpec, seed: int = 0) -> None:
        self._tensors = {tensor.name: tensor for tensor in tensors(spec)}
        self._seed = seed

    def __getitem__(self, name: str) -> StoredTensor:
        tensor = self._tensors[name]
        cols = tensor.shape[-1]
        if len(tensor.shape) == 1:
            fill = 0.0 if name.endswith(".bias") else 1.0
            values = np.full(cols, fill, dtype=np.float32)
        else:
            generator = np.random.default_rng((self._seed, zlib.crc32(name.encode())))
            values = generator.standard_normal(tensor.size, dtype=np.float32)
            values *= np.float32(0.02 if tensor.lookup else cols**-0.5)
        return StoredTensor(NUMBERS["F32"], tensor.size // cols, cols, values.view(np.uint8))

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
