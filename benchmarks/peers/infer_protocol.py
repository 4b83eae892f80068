"""How a contender of cpu_inference.py is driven: JSON lines over its standard streams.

Needs the standard library alone: it runs inside each peer's own environment.
"""

from __future__ import annotations

import json
import os
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

Run = Callable[[list[int], int], tuple[float, float]]


def serve(build: Callable[[str, int], tuple[Run, str]], path: str, threads: int) -> None:
    """``build`` loads a model and returns (a run, name and version). A run takes a prompt and how
    many tokens to make, and returns the seconds to the first token and of each one after it; where
    it has ``costs()``, these are told at the end."""
    # What a model's library says goes to standard error: standard output is the answers'.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    before = _resident("VmRSS")
    run, version = build(path, threads)
    run([3, 4, 5, 6, 7, 8, 9, 10], 1)
    print(json.dumps({"version": version}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if not request:
            # Not getrusage's: that keeps the most of the process that started this one.
            peak = _resident("VmHWM") - before
            costs = getattr(run, "costs", dict)()
            print(json.dumps({"peak_mib": peak, **costs}), file=answers, flush=True)
            return
        print(json.dumps(_turn(run, request)), file=answers, flush=True)


def _turn(run: Run, request: dict[str, Any]) -> dict[str, float]:
    """Medians of as many runs as take ``seconds``, each of a text that nobody has seen, in ids that
    every vocabulary has."""
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + request["seconds"]
    while not times or time.perf_counter() < end:
        draw = random.Random(request["seed"] + len(times))
        prompt = [draw.randrange(3, 253) for _ in range(request["prompt"])]
        times.append(run(prompt, request["tokens"]))
    prefill, decode = (statistics.median(values) for values in zip(*times, strict=True))
    return {"prefill": prefill, "decode": decode}


def _resident(what: str) -> float:
    """MiB resident now ("VmRSS") or at most since the last reset ("VmHWM").

    Where the system does not tell: the most of the process so far.
    """
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(what)) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
