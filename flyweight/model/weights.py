"""Filling a decoder from our own safetensors."""

from __future__ import annotations

from pathlib import Path

import torch

from flyweight.files.tensors import read_tensors
from flyweight.model.decoder import Decoder
from flyweight.spec.errors import CorruptFileError


def load_weights(model: Decoder, path: Path) -> None:
    """Fill a model from our own safetensors; every tensor must be there in its shape."""
    tensors = read_tensors(path)
    wanted = model.state_dict()
    wrong = sorted(wanted.keys() ^ tensors.keys())
    wrong += [n for n in wanted if n in tensors and wanted[n].shape != tensors[n].shape]
    if wrong:
        raise CorruptFileError(f"{path} does not fit its spec: {', '.join(wrong[:5])}")
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(tensors[name])
