"""What is fixed while the state of a training run moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from flyweight.data.batches import Batch, Batches
from flyweight.spec.errors import ConfigurationError
from flyweight.spec.run import Train
from flyweight.train.corruption import Sentinels, changed
from flyweight.train.processes import ALONE, Processes
from flyweight.train.schedule import Moment, Plan
from flyweight.train.state import TrainState
from flyweight.train.view import View


@dataclass
class Session:
    """One stretch of training: what is fixed while the state moves."""

    train: Train
    batches: Batches
    # Bytes that each token id stands for, (V,), so that losses are comparable per byte.
    token_bytes: np.ndarray
    dtype: torch.dtype
    device: str
    view: View
    # A step's matrix FLOPs, and the machine's measured peak in FLOP/s; 0 leaves the share out.
    flops: float = 0.0
    peak: float = 0.0
    # Called with the state whenever a sample is due.
    sample: Callable[[TrainState], None] | None = None
    # Other data from the step at which the rate's decay begins.
    decay_batches: Batches | None = None
    # What stands for spans that are taken out, where the objective takes any.
    sentinels: Sentinels | None = None
    # Those that train together; the whole batch is everybody's.
    processes: Processes = ALONE

    @cached_property
    def plan(self) -> Plan:
        return Plan(self.train, switch=self.decay_batches is not None)

    @property
    def order(self) -> Any:
        """What decides the order of the data, for data.json; a list of two where it switches."""
        if self.decay_batches is None:
            return self.batches.order
        return [self.batches.order, self.decay_batches.order]

    def check_rows(self) -> None:
        """Refuse a batch of any step, a ramp's too, that does not divide among the processes."""
        plan = self.plan
        rows = plan.windows * (self.train.context // plan.contexts)
        for step in np.sort(np.unique(rows, return_index=True)[1]).tolist():
            try:
                self.processes.rows(int(rows[step]))
            except ConfigurationError as error:
                raise ConfigurationError(
                    f"step {step + 1} has {plan.windows[step] * self.train.context} tokens in rows"
                    f" of {plan.contexts[step]} (train.ramp): {error}"
                ) from None

    def batch(self, moment: Moment, first: int | None = None) -> Batch:
        """The step's batch, or one that begins with another window, ``first``."""
        mix = self.batches if moment.mix == "main" else self.decay_batches
        assert mix is not None
        at = moment.first if first is None else first
        batch = mix.take(at, moment.windows, context=moment.context)
        return changed(batch, self.train.objective, self.sentinels, mix.seed, at)
