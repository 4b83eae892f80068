"""The charts' arithmetic: what is thinned, averaged, ticked."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyweight.report.charts import Mark, Series, line_chart, log_ticks, nice_ticks, smooth, thin

numbers = st.floats(-1e9, 1e9)
measured = st.one_of(numbers, st.just(math.nan))


@settings(deadline=None)
@given(y=st.lists(measured, max_size=400), limit=st.integers(8, 100))
def test_thin_keeps_order_ends_extremes_and_gaps(y: list[float], limit: int) -> None:
    x = [float(i) for i in range(len(y))]
    kept_x, kept_y = thin(x, y, limit)
    assert len(kept_x) == len(kept_y) <= limit
    assert kept_x == sorted(set(kept_x))
    for at, value in zip(kept_x, kept_y, strict=True):
        assert value == y[int(at)] or (math.isnan(value) and math.isnan(y[int(at)]))
    finite = [v for v in y if math.isfinite(v)]
    if finite:
        assert max(finite) in kept_y and min(finite) in kept_y
    if y:
        assert kept_x[0] == 0 and kept_x[-1] == len(y) - 1
    assert any(map(math.isnan, y)) == any(map(math.isnan, kept_y))


@settings(deadline=None)
@given(y=st.lists(measured, max_size=200))
def test_smooth_stays_within_what_was_measured(y: list[float]) -> None:
    result = smooth(y)
    assert len(result) == len(y)
    finite = [v for v in y if math.isfinite(v)]
    slack = 1e-6 * max([abs(v) for v in finite], default=0) + 1e-6
    for value in result:
        if math.isfinite(value):
            assert min(finite) - slack <= value <= max(finite) + slack


def test_smooth_keeps_a_constant_and_the_first_value() -> None:
    assert smooth([2.0] * 100) == [2.0] * 100
    assert smooth([9.0, *[1.0] * 200])[0] == 9.0


@pytest.mark.parametrize("spike", [1e20, 1e90, 1e308, -1e308, math.inf, math.nan])
def test_smooth_forgets_a_spike(spike: float) -> None:
    y = [2.0] * 200
    y[100] = spike
    assert smooth(y)[:90] == [2.0] * 90
    assert smooth(y)[110:] == [2.0] * 90


@settings(deadline=None)
@given(low=st.floats(-1e12, 1e12), span=st.floats(1e-6, 1e12), count=st.integers(2, 10))
def test_nice_ticks_are_few_evenly_spaced_and_inside(low: float, span: float, count: int) -> None:
    high = low + span
    if not (high - low) > 1e-9 * max(abs(low), abs(high)):
        return  # closer together than a chart can tell
    ticks = nice_ticks(low, high, count)
    assert len(ticks) <= count + 1
    slack = 1e-6 * span
    assert all(low - slack <= t <= high + slack for t in ticks)
    steps = [b - a for a, b in pairwise(ticks)]
    assert all(step > 0 for step in steps)


def test_nice_ticks_read_well() -> None:
    assert nice_ticks(0, 1, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert nice_ticks(0, 0.02, 4) == [0, 0.005, 0.01, 0.015, 0.02]


@settings(deadline=None)
@given(low=st.floats(1e-9, 1e9), ratio=st.floats(1.05, 1e9))
def test_log_ticks_are_inside_and_rising(low: float, ratio: float) -> None:
    ticks = log_ticks(low, low * ratio)
    assert ticks == sorted(set(ticks))
    assert len(ticks) <= 8
    assert all(low * 0.99 <= t <= low * ratio * 1.01 for t in ticks)


@pytest.mark.parametrize("log", [False, True])
@settings(deadline=None)
@given(y=st.lists(st.floats(), max_size=40))
def test_any_values_draw(log: bool, y: list[float]) -> None:
    x = [float(i) for i in range(len(y))]
    marks = [Mark("<m>", 1.5), Mark("n", math.nan), Mark("o", -1.0)]
    curves = [Series("<a&>", x, y), Series("b", x, y, 1, "raw")]
    chart = line_chart(curves, title="<t>", log=log, marks=marks)
    HTMLParser().feed(chart)
    assert "<a&>" not in chart and "<m>" not in chart and "<t>" not in chart
    for geometry in re.findall(r' (?:d|x|y|x1|x2|y1|y2|width)="([^"]*)"', chart):
        assert not re.search("nan|inf", geometry), geometry


@pytest.mark.parametrize("log", [False, True])
def test_a_run_that_diverged_still_draws(log: bool) -> None:
    y = [1e-300, 5e-324, 2.0, 1e308, -1.7e308, 3.0]
    chart = line_chart([Series("s", [float(i) for i in range(6)], y)], title="t", log=log)
    assert 'class="curve' in chart
    assert not re.search("nan|inf", chart)


def test_a_gap_breaks_the_curve_and_a_lone_point_is_a_dot() -> None:
    y = [1.0, 2.0, math.nan, 3.0, math.nan, 4.0, 5.0]
    chart = line_chart([Series("s", [float(i) for i in range(7)], y)], title="t")
    path = re.search(r'class="curve[^>]* d="([^"]*)"', chart)
    assert path is not None
    assert path[1].count("M") == 3
    assert path[1].count("h0") == 1


def test_names_of_close_marks_do_not_overlap() -> None:
    marks = [Mark(f"m{i}", 1.4 + i / 1000) for i in range(5)]
    chart = line_chart([Series("s", [0.0, 1.0], [1.0, 8.0])], title="t", log=True, marks=marks)
    places = [float(y) for y in re.findall(r'<text class="c1" x="14" y="([^"]*)"', chart)]
    assert len(places) == 5
    assert all(b - a >= 13.9 for a, b in pairwise(places))
    assert max(places) <= 225
