"""The memory that training takes, and keeps so that the next step need not ask for it again."""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path

import torch

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_KEEP = 1 << 30


def peak_memory(device: str) -> int | None:
    """The most bytes that this process has held so far: of a card's memory in tensors, else of the
    machine's. None where the system does not tell.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        said = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return int(said[1]) << 10 if said else None


def keep_freed_memory() -> bool:
    """Let glibc's malloc keep blocks of up to 1 GiB for reuse; False where there is no glibc.

    By default it maps every block over 32 MiB anew and gives it back when freed, and the
    system zeroes the pages each time: a few per cent of a training step's time.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(
        [
            mallopt(_M_MMAP_THRESHOLD, _KEEP),
            mallopt(_M_TRIM_THRESHOLD, _KEEP),
            mallopt(_M_TOP_PAD, 1 << 26),
        ]
    )
