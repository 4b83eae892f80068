"""What the machine can do: its matrix peak, the faster precision, the environment's record."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from flyweight.files.atomic import write_text
from flyweight.spec.errors import ConfigurationError
from flyweight.spec.run import Train
from flyweight.train.kernels import instruction_set


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
        if device != "cpu":
            torch.accelerator.synchronize()
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
    # Small products on a processor, for the sake of time; they would not fill a card.
    size = 512 if device == "cpu" else None
    fast, plain = (matrix_peak(t, device, size, 0.1) for t in (torch.bfloat16, torch.float32))
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


# What keeps PyTorch's matrix products from the processor's best instructions, where it is set.
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR")


def instructions() -> str:
    """The instruction sets that PyTorch and our kernels compute with, and what limits them."""
    limits = [f"{name}={os.environ[name]}" for name in _LIMITS if name in os.environ]
    sets = [torch.backends.cpu.get_cpu_capability(), instruction_set()]
    return ", ".join([*sets, *limits])


def environment(processes: int = 1) -> dict[str, Any]:
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
        "instructions": instructions(),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "commit": commit or None,
    }


def difference(there: dict[str, Any], here: dict[str, Any]) -> str:
    """Why steps taken on the one machine may round otherwise on the other; "" where they do not."""
    for key, word in _DECIDES.items():
        if there.get(key) != here.get(key):
            return f"the run's {word} was {there.get(key)}, here it is {here.get(key)}"
    return ""


# The parts of environment() that decide how sums are rounded.
_DECIDES = {
    "processor": "processor",
    "instructions": "instruction set",
    "accelerator": "accelerator",
    "threads": "number of threads",
    "processes": "number of processes",
    "torch": "PyTorch",
}


def record_machine(path: Path, here: dict[str, Any], step: int) -> None:
    """Note in environment.json that the run goes on from ``step`` in the environment ``here``, if
    that is of another kind than the last one."""
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
        last = [recorded, *recorded.get("resumed", [])][-1]
    except (OSError, ValueError, AttributeError, TypeError):
        recorded = last = {}
    if difference(last, here):
        recorded.setdefault("resumed", []).append({"from_step": step, **here})
        write_text(path, json.dumps(recorded, indent=1) + "\n")


def machines_of(path: Path, first: int, last: int) -> list[dict[str, Any]]:
    """The environments in which the steps ``first`` to ``last`` were taken; [] where the record
    is absent or damaged."""
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
        machines = [recorded, *recorded.get("resumed", [])]
        changes = [int(each["from_step"]) for each in machines[1:]]
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        return []
    stretches = zip(machines, [0, *changes], [*changes, last], strict=True)
    return [each for each, begin, end in stretches if begin < last and end >= first]
