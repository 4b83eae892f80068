"""Filling a decoder from stored tensors in our names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from flyweight.files.tensors import TensorFile, Tensors
from flyweight.model.decoder import Decoder
from flyweight.spec.errors import CorruptFileError


def load_weights(model: Decoder, path: Path) -> None:
    """Fill a model from our own safetensors; every tensor must be there in its shape."""
    fill_weights(model, TensorFile(path), path)


def fill_weights(model: Decoder, tensors: Tensors, where: Path) -> None:
    """Copy ``tensors`` into the model, one at a time; names and shapes must be the model's."""
    wanted = model.state_dict()
    check_shapes({name: tensor.shape for name, tensor in wanted.items()}, tensors, where)
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(tensors[name])


def check_shapes(wanted: Mapping[str, tuple[int, ...]], tensors: Tensors, where: Path) -> None:
    """Raises CorruptFileError naming some of the tensors that are not as ``wanted``."""
    kinds = tensors.kinds
    wrong = sorted(wanted.keys() ^ kinds.keys())
    wrong += [n for n in wanted if n in kinds and wanted[n] != kinds[n].shape]
    if wrong:
        raise CorruptFileError(f"{where} does not fit its spec: {', '.join(wrong[:5])}")
