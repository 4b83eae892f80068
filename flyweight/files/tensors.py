"""Safetensors, read and written with our errors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flyweight.spec.errors import CorruptFileError, FlyweightError

if TYPE_CHECKING:
    import torch


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file. Raises CorruptFileError naming the file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise FlyweightError(f"no such file: {path}")
    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise CorruptFileError(f"{path} is not a whole safetensors file: {error}") from None


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Equal tensors make files equal to the byte: no metadata, names sorted."""
    from safetensors.torch import save

    ordered = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    with open(path, "wb") as file:
        file.write(save(ordered))
