"""Who does a build's units: this process, or workers beside it that cannot outlive it."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any

from flyweight.data.work import Work
from flyweight.spec import errors
from flyweight.spec.errors import FlyweightError

# (unit that is done)
Done = Callable[[int], None]


def open_with(opener: str, folder: Path) -> Work:
    """The work folder, opened by ``open_work`` of the module ``opener``: a process that does units
    imports that by name, and so gets what a room above hands in (a model for perplexities)."""
    work: Work = importlib.import_module(opener).open_work(folder)
    return work


def work_here(work: Work, stage: str, units: Iterable[int], done: Done) -> None:
    """Do the units one after the other in this process."""
    for unit in units:
        work.run(stage, unit)
        done(unit)


class Crew:
    """``count`` worker processes over one work folder, each told a unit at a time.

    ``opener``: the module whose ``open_work`` opens the folder (see `open_with`). After an error
    no further unit is begun, and the error of the lowest unit is raised: the same for any count.
    """

    def __init__(self, folder: Path, count: int, opener: str) -> None:
        # Units are spread over the processes already: one thread each.
        environment = {**os.environ, "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        environment["TOKENIZERS_PARALLELISM"] = "false"
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "flyweight.data.crew", opener, str(folder.absolute())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                # Ctrl-C is for this process, which then ends them.
                process_group=0,
            )
            for _ in range(count)
        ]
        self._tending: list[threading.Thread] = []

    def work(self, stage: str, units: Sequence[int], done: Done) -> None:
        """Do the units; raises FlyweightError with what a worker raised."""
        waiting = iter(units)
        lock = threading.Lock()
        finished: queue.Queue[int | None] = queue.Queue()
        failures: dict[int, FlyweightError] = {}

        def tend(process: subprocess.Popen[bytes]) -> None:
            while True:
                with lock:
                    unit = None if failures else next(waiting, None)
                if unit is None:
                    break
                error = _order(process, stage, unit)
                if error is not None:
                    with lock:
                        failures[unit] = error
                else:
                    finished.put(unit)
            finished.put(None)

        self._tending = [
            threading.Thread(target=tend, args=(process,), daemon=True)
            for process in self._processes
        ]
        for thread in self._tending:
            thread.start()
        left = len(self._tending)
        while left:
            unit = finished.get()
            if unit is None:
                left -= 1
            else:
                done(unit)
        if failures:
            raise failures[min(failures)]

    def close(self) -> None:
        """End the processes, whatever they are at."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
        for thread in self._tending:
            if thread.ident is not None:
                thread.join()
        for process in self._processes:
            for pipe in (process.stdin, process.stdout):
                # An order that the process did not take any more.
                with contextlib.suppress(OSError):
                    if pipe is not None:
                        pipe.close()


def _order(process: subprocess.Popen[bytes], stage: str, unit: int) -> FlyweightError | None:
    """Have a worker do a unit; the error that came of it."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(f"{stage} {unit}\n".encode())
        process.stdin.flush()
        answer = process.stdout.readline()
    except OSError:
        answer = b""
    if not answer:
        return FlyweightError(
            f"a worker ended while it did {stage} {unit} (out of memory, or killed); run the"
            " command again to go on, with fewer workers: data.workers=1"
        )
    told = json.loads(answer)
    if "error" in told:
        kind = getattr(errors, told["error"])
        error: FlyweightError = kind(told["message"])
        return error
    return None


def serve(work: Work) -> None:
    """A worker: units from standard input, answers to standard output, until the input ends.

    Its end is the end of this process, whatever it is at: it means that the builder has gone.
    """
    orders: queue.Queue[tuple[str, int]] = queue.Queue()
    answers = os.fdopen(os.dup(1), "wb")
    # What a library prints is no answer.
    os.dup2(2, 1)
    threading.Thread(target=_listen, args=(sys.stdin.buffer, orders), daemon=True).start()
    while True:
        stage, unit = orders.get()
        try:
            work.run(stage, unit)
            told: dict[str, Any] = {"done": unit}
        except FlyweightError as error:
            told = {"error": type(error).__name__, "message": str(error)}
        answers.write(json.dumps(told).encode() + b"\n")
        answers.flush()


def _listen(orders: IO[bytes], into: queue.Queue[tuple[str, int]]) -> None:
    for line in orders:
        stage, unit = line.split()
        into.put((stage.decode(), int(unit)))
    os._exit(0)


if __name__ == "__main__":
    serve(open_with(sys.argv[1], Path(sys.argv[2])))
