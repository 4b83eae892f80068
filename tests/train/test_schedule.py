"""The learning rate and the context at every step, against their formulas."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyweight.spec.errors import ConfigurationError
from flyweight.spec.run import Schedule, Train
from flyweight.train.schedule import Plan, rate

KINDS = ["wsd", "cosine", "linear", "constant"]
SHAPES = ["linear", "exponential", "1-sqrt"]


@st.composite
def schedules(draw: st.DrawFn) -> tuple[Schedule, int]:
    steps = draw(st.integers(1, 3000))
    values: dict[str, Any] = {
        "kind": draw(st.sampled_from(KINDS)),
        "warmup": draw(st.integers(0, 4000)),
        "decay": draw(st.floats(0, 1)),
        "floor": draw(st.floats(0, 1)),
    }
    if values["kind"] == "wsd":
        values["shape"] = draw(st.sampled_from(SHAPES))
        if values["shape"] == "exponential":
            values["floor"] = draw(st.floats(1e-6, 1))
        if values["shape"] != "linear":
            # Where warmup is not over when the decay begins, their product may wave.
            stable = steps - int(steps * values["decay"])
            values["warmup"] = min(values["warmup"], stable)
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


def test_decays_of_the_papers() -> None:
    """MiniCPM's 0.5^((s - S)/T) over 20,000 steps with T = 5,000; 1 - sqrt; BTLM's floor."""
    minicpm = {"shape": "exponential", "decay": 0.2, "floor": 0.5**4, "warmup": 0}
    steps, stable = 100_000, 80_000
    for step in (0, stable, stable + 1, stable + 7_500, steps - 1):
        wanted = 0.5 ** (max(0, step - stable) / 5_000)
        assert rate(Schedule.parse(minicpm), step, steps) == pytest.approx(wanted)
    root = {"shape": "1-sqrt", "decay": 0.2, "floor": 0.1, "warmup": 0}
    for step in (stable, stable + 5_000, steps - 1):
        wanted = 0.1 + 0.9 * (1 - math.sqrt((step - stable) / 20_000))
        assert rate(Schedule.parse(root), step, steps) == pytest.approx(wanted)
    btlm = Schedule.parse({"kind": "linear", "peak": 0.012, "warmup": 95, "floor": 0.0085})
    ends = [btlm.peak * rate(btlm, step, 159_636) for step in (94, 159_635)]
    assert ends == pytest.approx([0.012, 0.00010138], rel=0.01)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kind": "cosine", "shape": "1-sqrt"}, "belongs to kind = 'wsd'"),
        ({"shape": "exponential"}, "needs a floor above 0"),
    ],
)
def test_schedules_that_cannot_be_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Schedule.parse(values)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"until": 0.5}, "set context or batch_tokens"),
        ({"until": 0.5, "context": 100}, "does not divide 512"),
        ({"until": 0.5, "batch_tokens": 700}, "no multiple of context = 512"),
    ],
)
def test_ramps_that_cannot_be_are_refused(entry: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        plan(10, [entry])


def plan(steps: int, ramp: list[dict[str, Any]], switch: bool = False, **schedule: Any) -> Plan:
    """A run with a context of 512 and batches of 4096."""
    train = {"context": 512, "batch_tokens": 4096, "ramp": ramp, "schedule": schedule}
    return Plan(Train.parse(train), steps, switch)


@given(
    st.lists(st.tuples(st.sampled_from([64, 128, 256]), st.floats(0, 1)), max_size=4),
    st.integers(1, 500),
)
def test_a_context_is_that_of_the_first_entry_not_over(
    entries: list[tuple[int, float]], steps: int
) -> None:
    made = plan(steps, [{"context": context, "until": until} for context, until in entries])
    ends = sorted({until for _, until in entries})
    for step in range(steps):
        later = [until for until in ends if step < until * steps]
        allowed = {c for c, until in entries if until == later[0]} if later else {512}
        assert made.at(step).context in allowed


def test_ramps_by_example() -> None:
    made = plan(8, [{"context": 256, "until": 0.5}, {"context": 128, "until": 0.25}])
    assert made.contexts.tolist() == [128, 128, 256, 256, 512, 512, 512, 512]
    assert made.windows.tolist() == [8] * 8
    # BTLM: 2k for three quarters, then 8k, at the same tokens a batch.
    btlm = {"context": 8192, "batch_tokens": 480 * 8192, "ramp": [{"context": 2048, "until": 0.75}]}
    btlm_plan = Plan(Train.parse(btlm), 159_636)
    assert [btlm_plan.at(step).context for step in (0, 119_726, 119_727)] == [2048, 2048, 8192]
    assert btlm_plan.at(0).windows * 8192 == 1920 * 2048
    made = plan(
        8,
        [
            {"batch_tokens": 1024, "until": 0.5, "linear": True},
            {"context": 64, "until": 0.25},
            {"batch_tokens": 2048, "until": 0.75},
        ],
    )
    # From 1024 to 2048 by steps of 256, in whole windows of 512; then to the end of its entry.
    assert made.windows.tolist() == [2, 2, 3, 3, 4, 4, 8, 8]
    assert made.contexts.tolist() == [64, 64, *[512] * 6]
    made = plan(8, [{"context": 64, "until": 1.0, "linear": True}])
    assert made.contexts.tolist() == [64, 64, 128, 128, 256, 256, 256, 256]


@given(
    st.lists(st.tuples(st.integers(1, 12), st.floats(0, 1), st.booleans()), min_size=1, max_size=4),
    st.integers(1, 300),
    st.floats(0, 1),
    st.booleans(),
)
def test_the_steps_take_every_window_of_a_mix_once_in_order(
    entries: list[tuple[int, float, bool]], steps: int, decay: float, switch: bool
) -> None:
    ramp = [{"batch_tokens": 512 * n, "until": u, "linear": line} for n, u, line in entries]
    made = plan(steps, ramp, switch, decay=decay)
    taken: dict[str, int] = {"main": 0, "decay": 0}
    order = []
    for step in range(steps):
        moment = made.at(step)
        assert moment.first == taken[moment.mix]
        assert 1 <= moment.windows <= 12
        taken[moment.mix] += moment.windows
        order.append(moment.mix)
    assert made.tokens == 512 * sum(taken.values())
    before = order.index("decay") if "decay" in order else steps
    assert order == ["main"] * before + ["decay"] * (steps - before)
    if switch and before < steps:
        top, warm = made.train.schedule, made.train.schedule.warmup
        assert before <= warm or rate(top, before - 1, steps) == 1, "the decay has not begun"
        if before + 1 < steps and before >= warm:
            assert rate(top, before + 1, steps) < 1, "and begins there"
    else:
        assert order == ["main"] * steps or steps * decay >= 1
