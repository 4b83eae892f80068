"""What a step is given, as pure functions of the step: rate, context, batch, place in the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from flyweight.spec.run import Dropout, Schedule, Train


def rate(schedule: Schedule, step: int, steps: int) -> float:
    """The factor of the peak rate at ``step`` (0-based) of ``steps``: between 0 and 1.

    "wsd" decays over the last ``decay`` share (MiniCPM, arXiv:2404.06395, eq. 1), by a straight
    line, exponentially or as 1 - sqrt (arXiv:2405.18392); "cosine" (arXiv:1608.03983) and
    "linear" fall from the end of warmup.
    """
    warmup = min(schedule.warmup, steps)
    up = min(1.0, (step + 1) / warmup) if warmup else 1.0
    if schedule.kind == "constant":
        return up
    if schedule.kind == "wsd":
        tail = steps * schedule.decay
        left = min(1.0, (steps - step) / tail) if tail else 1.0
        if schedule.shape == "exponential":
            return up * schedule.floor ** (1 - left)
        if schedule.shape == "1-sqrt":
            left = 1 - math.sqrt(1 - left)
    else:
        progress = max(0.0, (step - warmup) / max(1, steps - warmup))
        left = 1.0 - progress
        if schedule.kind == "cosine":
            left = 0.5 * (1 + math.cos(math.pi * progress))
    return up * (schedule.floor + (1 - schedule.floor) * left)


def dropout_at(dropout: Dropout | None, step: int, steps: int) -> float:
    """The dropout of ``step``: constant, or a line or triangles over the run."""
    if dropout is None:
        return 0.0
    way = 1.0
    if dropout.kind == "linear":
        way = (step / steps - dropout.begin) / (dropout.until - dropout.begin)
    elif dropout.kind == "triangle":
        way = 1 - abs(2 * (step * dropout.cycles / steps % 1) - 1)
    return dropout.start + (dropout.rate - dropout.start) * min(1.0, max(0.0, way))


@dataclass(frozen=True, slots=True)
class Moment:
    """A step's share of everything that a schedule decides.

    ``first``: the running number of its first window in the order of its mix, where nothing was
    skipped; ``windows`` of them make the batch, cut into rows of ``context``.
    """

    rate: float
    context: int
    windows: int
    first: int
    mix: Literal["main", "decay"]
    dropout: float = 0.0


class Plan:
    """All of a run's schedules. ``steps``: of the run, or of a run of that length.

    ``switch``: other data from the step at which wsd's decay begins (MiniCPM).
    """

    def __init__(self, train: Train, steps: int | None = None, switch: bool = False) -> None:
        total = steps or train.steps
        assert total is not None, "a resolved run has steps"
        self.train, self.steps = train, total
        # (steps,) each.
        self.contexts = _staged(train, "context", total)
        self.windows = _staged(train, "batch_tokens", total) // train.context
        self.before = np.concatenate(([0], np.cumsum(self.windows)))
        self.decay_start = total - math.floor(total * train.schedule.decay)
        self.switch = self.decay_start if switch else total

    def at(self, step: int) -> Moment:
        """What ``step`` (0-based) is given."""
        switched = step >= self.switch
        return Moment(
            rate=self.train.schedule.peak * rate(self.train.schedule, step, self.steps),
            context=int(self.contexts[step]),
            windows=int(self.windows[step]),
            first=int(self.before[step] - (self.before[self.switch] if switched else 0)),
            mix="decay" if switched else "main",
            dropout=dropout_at(self.train.dropout, step, self.steps),
        )

    @property
    def tokens(self) -> int:
        """Of the whole run."""
        return int(self.before[-1]) * self.train.context


def _staged(
    train: Train, key: Literal["context", "batch_tokens"], steps: int
) -> npt.NDArray[np.int64]:
    """The value of ``key`` at every step, by the ramp's entries that set it."""
    values = np.full(steps, getattr(train, key), np.int64)
    entries = [entry for entry in train.ramp if getattr(entry, key) is not None]
    entries.sort(key=lambda entry: entry.until)
    start = 0
    for i, entry in enumerate(entries):
        stop = max(start, math.ceil(entry.until * steps))
        value = getattr(entry, key)
        values[start:stop] = value
        if entry.linear:
            after = getattr(entries[i + 1] if i + 1 < len(entries) else train, key)
            share = np.arange(stop - start) / max(1, stop - start)
            values[start:stop] = _allowed(value + (after - value) * share, train.context, key)
        start = stop
    return values


def _allowed(
    line: npt.NDArray[np.float64], context: int, key: Literal["context", "batch_tokens"]
) -> npt.NDArray[np.int64]:
    """Rounded down: to multiples of the run's context, or to a divisor of it."""
    if key == "batch_tokens":
        return (line // context).astype(np.int64) * context
    divisors = np.array([n for n in range(1, context + 1) if context % n == 0])
    return divisors[np.searchsorted(divisors, line, side="right") - 1]
