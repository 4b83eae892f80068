"""The ledger: a JSON line a step, each chained to all that came before it."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from flyweight.files.index import MEAN_OVER
from flyweight.files.run import RunFolder
from flyweight.spec.run import RunSpec
from flyweight.train.sinks import Sinks

if TYPE_CHECKING:
    from flyweight.train.session import Session

# What the clock and the system say, and two equal runs do not share.
TIMES = frozenset({"seconds", "tokens_per_second", "bytes_per_second", "peak_memory"})
# Settings that move no number of the ledger.
_WITHOUT_EFFECT = frozenset({"checkpoint", "sample_every", "sinks"})


class Chained(Protocol):
    """What holds the chain from step to step, and takes it along into checkpoints."""

    chain: str


def identity_of(spec: RunSpec) -> str:
    """The digest of a whole configuration, which every checkpoint holds."""
    return hashlib.sha256(json.dumps(spec.values(), sort_keys=True).encode()).hexdigest()


def first_link(spec: RunSpec, fingerprint: str, order: Any) -> str:
    """What the chain of a run begins with: all that decides its numbers, as one digest.

    That is the seed, the model, the weights started from, the training, the dataset and its
    order; not the run's name, where the text came from, or when it is saved.
    """
    values = spec.values()
    decides = {
        "seed": spec.seed,
        "model": values["model"],
        "start": spec.start and spec.start.sha256,
        "train": {k: v for k, v in values["train"].items() if k not in _WITHOUT_EFFECT},
        "dataset": fingerprint,
        "order": order,
    }
    return _digest(json.dumps(decides, sort_keys=True))


def link(chain: str, record: dict[str, Any]) -> str:
    """The chain after ``record``: a digest of the chain before it and of all that the record says
    but TIMES. Equal chains mean equal runs up to there."""
    said = {k: v for k, v in record.items() if k != "chain" and k not in TIMES}
    return _digest(chain + json.dumps(said, sort_keys=True))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Ledger:
    """RUN/ledger.jsonl, open for appending. ``recent`` holds the newest lines.

    ``sinks``, newly opened, get the lines that are there and then each new one. Without
    ``writes`` (in all processes but the first) it keeps the chain alone.
    """

    def __init__(
        self, run: RunFolder, state: Chained, sinks: Sinks | None = None, writes: bool = True
    ) -> None:
        self._state, self._sinks = state, sinks
        self.recent: deque[dict[str, Any]] = deque(maxlen=MEAN_OVER)
        for line in run.read_ledger() if writes else ():
            self.recent.append(line)
            if sinks is not None:
                sinks.append(line)
        path = run.ledger if writes else os.devnull
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed in __exit__)

    def append(self, record: dict[str, Any]) -> None:
        """Write a step's line. Adds ``chain`` to ``record`` and moves the state's on."""
        record["chain"] = self._state.chain = link(self._state.chain, record)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        self.recent.append(record)
        if self._sinks is not None:
            self._sinks.append(record)

    def sync(self) -> None:
        """Flush to the disk: a checkpoint must not outlive, in a power cut, its lines."""
        if self._file.name != os.devnull:
            os.fsync(self._file.fileno())

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
        if self._sinks is not None:
            self._sinks.close()


def open_ledger(state: Chained, session: Session, run: RunFolder) -> Ledger:
    """The ledger of a run in training, with the sinks that its configuration names."""
    if not session.processes.leader:
        return Ledger(run, state, writes=False)
    names = session.train.sinks
    return Ledger(run, state, Sinks(names, run, session.view.notice) if names else None)
