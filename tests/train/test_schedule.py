"""The learning rate and the context at every step, against their formulas."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyweight.spec.run import Ramp, Schedule
from flyweight.train.schedule import context_at, rate

KINDS = ["wsd", "cosine", "linear", "constant"]


@st.composite
def schedules(draw: st.DrawFn) -> tuple[Schedule, int]:
    steps = draw(st.integers(1, 3000))
    values: dict[str, Any] = {
        "kind": draw(st.sampled_from(KINDS)),
        "warmup": draw(st.integers(0, 4000)),
        "decay": draw(st.floats(0, 1)),
        "floor": draw(st.floats(0, 1)),
    }
    return Schedule.parse(values), steps


@given(schedules())
def test_a_rate_rises_once_and_falls_once_within_its_bounds(made: tuple[Schedule, int]) -> None:
    schedule, steps = made
    rates = [rate(schedule, step, steps) for step in range(steps)]
    assert all(0 <= r <= 1 for r in rates)
    assert all(r > 0 for r in rates), "no step is for nothing"
    top = rates.index(max(rates))
    slack = 1e-12
    assert all(a <= b + slack for a, b in pairwise(rates[: top + 1]))
    assert all(a >= b - slack for a, b in pairwise(rates[top:]))


@given(schedules())
def test_the_end_is_the_floor(made: tuple[Schedule, int]) -> None:
    """At `steps`, where training stops: the last step itself is just above."""
    schedule, steps = made
    if schedule.kind in ("cosine", "linear") and schedule.warmup >= steps:
        assert rate(schedule, steps, steps) == 1, "all of it is warmup"
    elif schedule.kind == "constant" or (schedule.kind == "wsd" and schedule.decay * steps == 0):
        assert rate(schedule, steps, steps) == 1
    else:
        assert rate(schedule, steps, steps) == pytest.approx(schedule.floor, abs=1e-9)


def test_warmup_is_linear_and_reaches_the_peak_at_its_last_step() -> None:
    for kind in KINDS:
        schedule = Schedule.parse({"kind": kind, "warmup": 10, "decay": 0.2})
        rates = [rate(schedule, step, 1000) for step in range(10)]
        assert rates == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rate(Schedule(warmup=0), 0, 100) == 1


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_closed_forms(floor: float) -> None:
    steps, warmup = 200, 20
    for step in range(steps):
        progress = (step - warmup) / (steps - warmup)
        forms = {
            "wsd": 1.0 if step < 150 else (steps - step) / 50,
            "linear": 1 - progress,
            "cosine": (1 + math.cos(math.pi * progress)) / 2,
            "constant": 1.0,
        }
        for kind, form in forms.items():
            if step < warmup:
                continue
            values = {"kind": kind, "warmup": warmup, "decay": 0.25, "floor": floor}
            wanted = form if kind == "constant" else floor + (1 - floor) * form
            assert rate(Schedule.parse(values), step, steps) == pytest.approx(wanted)


@given(
    st.lists(st.tuples(st.sampled_from([64, 128, 256]), st.floats(0, 1)), max_size=4),
    st.integers(1, 500),
)
def test_a_context_is_that_of_the_first_entry_not_over(
    entries: list[tuple[int, float]], steps: int
) -> None:
    ramp = [Ramp(context=context, until=until) for context, until in entries]
    ends = sorted({until for _, until in entries})
    for step in range(steps):
        later = [until for until in ends if step < until * steps]
        allowed = {c for c, until in entries if until == later[0]} if later else {512}
        assert context_at(ramp, 512, step, steps) in allowed
    assert context_at(ramp, 512, steps, steps) == 512


def test_a_ramp_by_example() -> None:
    ramp = [Ramp(context=256, until=0.5), Ramp(context=128, until=0.25)]
    contexts = [context_at(ramp, 512, step, 8) for step in range(8)]
    assert contexts == [128, 128, 256, 256, 512, 512, 512, 512]
