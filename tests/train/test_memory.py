"""Freed memory is kept: later large tensors cost the system no new pages. The peak is known."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("torch")

COUNT = """
import resource, sys, torch
from flyweight.train.memory import keep_freed_memory
if "keep" in sys.argv and not keep_freed_memory():
    print("none")
    sys.exit()
faults = []
for _ in range(12):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sum(faults[-4:]))
"""


PEAK = """
import psutil, torch
from flyweight.train.memory import peak_memory
before, held = peak_memory("cpu"), torch.ones(1 << 26)
most = psutil.Process().memory_info().rss
del held
print(before, peak_memory("cpu"), most)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="from Linux's /proc")
def test_the_peak_is_what_was_held_at_most() -> None:
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    before, after, most = map(int, done.stdout.split())
    assert (1 << 28) <= after - before < (1 << 28) + (1 << 24)
    assert after == pytest.approx(most, rel=0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="the setting is glibc's")
def test_large_tensors_are_not_mapped_anew() -> None:
    plain, kept = (
        subprocess.run(
            [sys.executable, "-c", COUNT, mode], capture_output=True, text=True, check=True
        ).stdout.strip()
        for mode in ("plain", "keep")
    )
    if kept == "none":
        pytest.skip("no glibc here")
    # The first tensors grow the heap; each is 16,384 pages of 4 KiB, fewer where pages are huge.
    assert int(kept) < int(plain) / 4
