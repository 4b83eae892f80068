"""The learning rate and the context as pure functions of the step."""

from __future__ import annotations

import math

from flyweight.spec.run import Ramp, Schedule


def rate(schedule: Schedule, step: int, steps: int) -> float:
    """The factor of the peak rate at ``step`` (0-based) of ``steps``: between 0 and 1.

    "wsd" decays linearly over the last ``decay`` share (MiniCPM, arXiv:2404.06395, eq. 1, with a
    linear tail); "cosine" (arXiv:1608.03983) and "linear" fall from the end of warmup.
    """
    warmup = min(schedule.warmup, steps)
    up = min(1.0, (step + 1) / warmup) if warmup else 1.0
    if schedule.kind == "constant":
        return up
    if schedule.kind == "wsd":
        tail = steps * schedule.decay
        left = min(1.0, (steps - step) / tail) if tail else 1.0
    else:
        progress = max(0.0, (step - warmup) / max(1, steps - warmup))
        left = 1.0 - progress
        if schedule.kind == "cosine":
            left = 0.5 * (1 + math.cos(math.pi * progress))
    return up * (schedule.floor + (1 - schedule.floor) * left)


def context_at(ramp: list[Ramp], context: int, step: int, steps: int) -> int:
    """The context of ``step``: that of the first ramp entry whose share of the run is not over."""
    for entry in sorted(ramp, key=lambda entry: entry.until):
        if step < entry.until * steps:
            return entry.context
    return context
