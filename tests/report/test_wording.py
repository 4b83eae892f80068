"""Figures and foreign text for people."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyweight.report.wording import duration, finite, short, visible


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "", "0"),
        (999, "", "999"),
        (999.6, "", "1.00k"),
        (1920, "", "1.92k"),
        (12_345_678, "", "12.3M"),
        (43_512, "B", "43.5 kB"),
        (15, "B", "15 B"),
        (999_950, "B", "1.00 MB"),
        (-1500, "", "-1.50k"),
    ],
)
def test_short(value: float, unit: str, text: str) -> None:
    assert short(value, unit) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0.0 s"),
        (0.44, "0.4 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (125, "2 min 5 s"),
        (3600, "1 h"),
        (12_000, "3 h 20 min"),
        (349_200, "4 d 1 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=())))
def test_visible_text_encodes_and_steers_nothing(text: str) -> None:
    shown = visible(text)
    shown.encode("utf-8")
    assert not [c for c in shown if c not in "\n\t" and (ord(c) < 32 or 0x7F <= ord(c) < 0xA0)]
    assert visible(shown) == shown


@settings(deadline=None)
@given(st.text(st.characters(categories=("L", "N", "P", "Zs"))))
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert visible(text) == text


def test_finite() -> None:
    odd = (None, "1", True, float("nan"), float("inf"), 10**400)
    assert [finite(v) for v in odd] == [None] * 6
    assert finite(3) == 3.0
