"""Other programs that can show a run's ledger: TensorBoard, Weights & Biases, Trackio.

A sink is a copy of the ledger and never its master: it lies in RUN/sinks/NAME, and opening it
writes it anew from the ledger's lines, so that a run which was killed and continued has each step
once. Nothing leaves the machine.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from flyweight.files.run import RunFolder
from flyweight.spec.errors import ConfigurationError, FlyweightError

# Keys that place a line rather than measure something.
_PLACES = frozenset({"step", "chain", "digest"})


class Sink(Protocol):
    def log(self, step: int, values: dict[str, float], seconds: float) -> None:
        """A step's numbers; ``seconds``: how long the run had trained after it."""

    def close(self) -> None: ...


def numbers(record: dict[str, Any]) -> dict[str, float]:
    """The figures of a ledger's line."""
    return {
        key: value
        for key, value in record.items()
        if key not in _PLACES
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    }


class TensorBoard:
    """Event files of scalars (float32), one for each key of the ledger."""

    def __init__(self, folder: Path, name: str, began: float) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary, self._began = Event, Summary, began
        self._writer = EventFileWriter(str(folder), flush_secs=10)

    def log(self, step: int, values: dict[str, float], seconds: float) -> None:
        tags = [self._summary.Value(tag=key, simple_value=value) for key, value in values.items()]
        self._writer.add_event(
            self._event(
                step=step, wall_time=self._began + seconds, summary=self._summary(value=tags)
            )
        )

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run of Weights & Biases in its offline mode; `wandb sync` sends it, if you wish."""

    def __init__(self, folder: Path, name: str, began: float) -> None:
        import wandb

        settings = wandb.Settings(silent=True, console="off", x_disable_stats=True)
        self._run = wandb.init(
            project="flyweight", name=name, dir=str(folder), mode="offline", settings=settings
        )

    def log(self, step: int, values: dict[str, float], seconds: float) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run of Trackio, in a database of its own: `TRACKIO_DIR=RUN/sinks/trackio trackio show`."""

    def __init__(self, folder: Path, name: str, began: float) -> None:
        # All read from the environment; some would have it send what it gets.
        for way in ("SPACE_ID", "SERVER_URL", "BUCKET_ID", "WEBHOOK_URL"):
            os.environ.pop(f"TRACKIO_{way}", None)
        os.environ["TRACKIO_DIR"] = str(folder.resolve())
        import trackio
        from trackio.utils import TRACKIO_DIR

        if Path(TRACKIO_DIR).resolve() != folder.resolve():
            # Its folder is fixed when it is imported.
            raise FlyweightError(f"this process has opened Trackio for {TRACKIO_DIR} before")
        self._trackio = trackio
        with contextlib.redirect_stdout(None):
            trackio.init(
                project="flyweight", name=name, embed=False, auto_log_cpu=False, auto_log_gpu=False
            )

    def log(self, step: int, values: dict[str, float], seconds: float) -> None:
        self._trackio.log(values, step=step)

    def close(self) -> None:
        with contextlib.redirect_stdout(None):
            self._trackio.finish()


SINKS: dict[str, Callable[[Path, str, float], Sink]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
}


def check_sinks(names: Iterable[str]) -> None:
    """Raise ConfigurationError where a sink's package is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigurationError(
                f"the sink {name} is not installed: pip install 'flyweight[sinks]', or leave it out"
            )


class Sinks:
    """The sinks of a run, fed line by line. One that fails is said to, once, and left alone."""

    def __init__(self, names: Iterable[str], run: RunFolder, notice: Callable[[str], None]) -> None:
        self._notice, self._seconds = notice, 0.0
        self._open: dict[str, Sink] = {}
        # run.toml is written when a run begins, and never again.
        began, called = run.config.stat().st_mtime, run.path.resolve().name
        for name in names:
            with self._guarded(name):
                folder = run.sinks / name
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                self._open[name] = SINKS[name](folder, called, began)

    def append(self, record: dict[str, Any]) -> None:
        self._seconds += record["seconds"]
        values = numbers(record)
        for name, sink in list(self._open.items()):
            with self._guarded(name):
                sink.log(record["step"], values, self._seconds)

    def close(self) -> None:
        for name, sink in list(self._open.items()):
            with self._guarded(name):
                sink.close()
        self._open = {}

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever another program's library raises: training goes on
            self._open.pop(name, None)
            self._notice(
                f"the sink {name} failed and is left alone ({type(error).__name__}: {error});"
                " the ledger has every line"
            )


def replay(run: RunFolder, name: str) -> Path:
    """Write a run's ledger into a sink, and return where it lies. Raises FlyweightError where
    that fails."""
    if name not in SINKS:
        raise ConfigurationError(f"--sink {name}: {', '.join(SINKS)} are known")
    check_sinks([name])
    failed: list[str] = []
    sinks = Sinks([name], run, failed.append)
    for line in run.read_ledger():
        sinks.append(line)
    sinks.close()
    if failed:
        raise FlyweightError(failed[0])
    return run.sinks / name
