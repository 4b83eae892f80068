"""How many steps fit into a run's minutes, and whether compiling pays: by timing real steps."""

from __future__ import annotations

import math
import time

import numpy as np

from flyweight.train.compiled import can_pay, compile_parts
from flyweight.train.loop import backward
from flyweight.train.schedule import Plan
from flyweight.train.session import Session
from flyweight.train.state import TrainState

DEFAULT_MINUTES = 2.0
# Compiling takes up to a minute on two cores, and makes a token model's steps 1.2 to 1.4 times as
# fast (docs/lab-notes.md): a run must be this long, in seconds, to earn it back.
COMPILE_PAYS_AFTER = 300.0
# So short a run is not even timed to find that out.
FEW_STEPS = 500
# Steps of a plan whose averages stand for those of a run whose length is not known yet.
STAGES = 1000


def calibrate(scratch: TrainState, session: Session, spent: float) -> tuple[int, str]:
    """(steps, "on" or "off" for compiling) of a run. ``scratch`` is used up.

    ``spent``: seconds of the budget that are gone already; this calibration counts too.
    """
    began, train = time.perf_counter(), session.train
    steps = train.steps
    if train.tokens is not None:
        steps = math.ceil(train.tokens / (Plan(train, STAGES).tokens / STAGES))
    # Whether to compile is measured in a process alone.
    measuring = train.compile == "auto" and session.processes.size == 1
    if steps is not None and (not measuring or steps < FEW_STEPS):
        return steps, "off" if train.compile == "auto" else train.compile
    compiled = train.compile == "on" and compile_parts(scratch, session)
    each = step_seconds(scratch, session)
    budget = (train.minutes or DEFAULT_MINUTES) * 60
    length = budget if steps is None else steps * each
    if measuring and length > COMPILE_PAYS_AFTER and can_pay(scratch.model):
        compiled = compile_parts(scratch, session)
        faster = step_seconds(scratch, session) if compiled else each
        compiled = compiled and faster < 0.95 * each
        word = "used" if compiled else "not used"
        session.view.notice(f"torch.compile: {each / faster:.2f} times as fast, {word}")
        each = faster if compiled else each
    if steps is None:
        # Counting FLOPs takes a step too, and saving the end about one.
        left = budget - spent - (time.perf_counter() - began) - 2 * each
        steps = max(1, int(left / each))
        session.view.notice(f"calibration: {1 / each:.1f} steps a second, so {steps} steps")
    return session.processes.told((steps, "on" if compiled else "off"))


def step_seconds(scratch: TrainState, session: Session) -> float:
    """The time of a training step, averaged over the ramps as the run will take them.

    A batch of another size is taken to cost time in proportion.
    """
    plan, mean = Plan(session.train, STAGES), 0.0
    for context in np.unique(plan.contexts).tolist():
        times = []
        for step in range(10):
            start = time.perf_counter()
            backward(scratch, session, session.batches.batch(step, context=context))
            norm = scratch.optimizer.gather()
            scratch.optimizer.apply(1e-6, session.train.clip, norm)
            times.append(time.perf_counter() - start)
        sizes = plan.windows[plan.contexts == context] / session.batches.rows
        # The first steps allocate; the median of the rest is not moved by a busy moment.
        mean += float(sizes.sum()) / STAGES * sorted(times[2:])[len(times[2:]) // 2]
    # What follows from it must be the same in all processes.
    return session.processes.told(mean)


def count_flops(state: TrainState, session: Session) -> float:
    """Matrix FLOPs of one step's forward and backward pass, counted on a real batch."""
    from torch.utils.flop_counter import FlopCounterMode

    batch = session.batches.batch(state.step)
    with FlopCounterMode(display=False) as counter:
        backward(state, session, batch)
    state.optimizer.forget()
    return float(counter.get_total_flops())
