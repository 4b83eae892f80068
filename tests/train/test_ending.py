"""A process that has gone ends the job, even where nobody exchanges anything with it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")

# Each waits as for a card whose work needs the other's.
PROGRAM = """
import os, sys, time
from flyweight.train import ending
from flyweight.train.processes import joined
ending.SIGN = 0.05  # many signs of life
with joined() as processes:
    print("joined", os.getpid(), flush=True)
    time.sleep(float(sys.argv[1]))
"""


def agents(program: Path, seconds: float) -> list[subprocess.Popen[str]]:
    """Two machines with a process each: torchrun of the one knows nothing of the other's."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = str(found.getsockname()[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
    command += ["--master-addr", "localhost", "--master-port", port, "--nproc-per-node", "1"]
    return [
        subprocess.Popen(
            [*command, "--node-rank", str(rank), str(program), str(seconds)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_exchanges_nothing_hears_of_a_death(tmp_path: Path, victim: int) -> None:
    program = tmp_path / "waits.py"
    program.write_text(PROGRAM)
    started = agents(program, 1000)
    outputs = [agent.stdout for agent in started]
    pids = [int(out.readline().split()[1]) for out in outputs if out is not None]
    os.kill(pids[victim], signal.SIGKILL)
    begin = time.monotonic()
    said = [agent.communicate(timeout=300)[1] for agent in started]
    assert time.monotonic() - begin < 30
    left = 1 - victim
    assert f"error: rank {left} of 2 ends: another process of this job was killed" in said[left]


@pytest.mark.slow
def test_a_job_that_is_done_ends_quietly(tmp_path: Path) -> None:
    program = tmp_path / "waits.py"
    program.write_text(PROGRAM)
    for agent in agents(program, 0):
        _, said = agent.communicate(timeout=300)
        assert agent.returncode == 0 and "error" not in said, said
