"""What every benchmark prints beside its table: versions, processor, measured peaks."""

from __future__ import annotations

from typing import Any

import torch

from flyweight.train.machine import environment, matrix_peak


def header(device: str = "cpu") -> dict[str, Any]:
    """Versions, processor, threads, and the matrix peaks measured now, in GFLOP/s."""
    size = 2048 if device == "cpu" else None
    peaks = {
        f"{name}_gflops": round(matrix_peak(dtype, device, size, 1.0) / 1e9)
        for name, dtype in (("bf16", torch.bfloat16), ("f32", torch.float32))
    }
    return {**environment(), **peaks}


def lines(values: dict[str, Any]) -> list[str]:
    """The header as text."""
    return [f"{name}: {value}" for name, value in values.items() if value is not None]
