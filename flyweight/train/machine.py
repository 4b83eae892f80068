"""What the machine can do: its matrix peak, the faster precision, the environment's record."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from flyweight.spec.errors import ConfigurationError
from flyweight.spec.run import Train


def matrix_peak(
    dtype: torch.dtype, device: str, size: int | None = None, seconds: float = 0.3
) -> float:
    """The best rate of square matrix products within ``seconds``, in FLOP/s.

    ``size`` by default: 1024 on a processor, 8192 on a card, which smaller ones do not fill.
    """
    size = size or (1024 if device == "cpu" else 8192)
    a = torch.randn(size, size, device=device).to(dtype)
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(4):
            a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 4 * 2 * size**3 / (time.perf_counter() - start))
    return best


def resolve_device(train: Train) -> str:
    """The device that "auto" means here; an asked-for one must exist."""
    have = {"cpu": True, "cuda": torch.cuda.is_available()}
    have["mps"] = torch.backends.mps.is_available()
    if train.device == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if have[name])
    if not have[train.device]:
        raise ConfigurationError(f"train.device = {train.device!r}: PyTorch finds none here")
    return train.device


def resolve_precision(train: Train, device: str) -> str:
    """bf16 where its matrix products measure at least 1.5 times as fast as float32's."""
    if train.precision != "auto":
        return train.precision
    fast, plain = (matrix_peak(t, device, 512, 0.1) for t in (torch.bfloat16, torch.float32))
    return "bf16" if fast > 1.5 * plain else "f32"


def processor() -> str:
    """The processor's name as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def environment() -> dict[str, Any]:
    """Versions, processor, threads and commit, for environment.json."""
    from flyweight import __version__

    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=5
        ).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        commit = ""
    return {
        "flyweight": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "commit": commit or None,
    }
