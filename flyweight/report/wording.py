"""Figures and foreign text in a form that a person can read, on a page or in a terminal."""

from __future__ import annotations

import math
import re

# What would move the cursor, flip the direction of a line or not encode as UTF-8.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def visible(text: object) -> str:
    """``text`` with control characters shown as pictures (ESC as U+241B); tab and newline stay.

    C1 and bidirectional controls, line separators and lone surrogates become U+FFFD, so that
    the result encodes as UTF-8 and cannot steer a terminal or reorder a page.
    """
    # \r\n is an ordinary line end in many files; a lone \r is not.
    return _UNSAFE.sub(_picture, str(text).replace("\r\n", "\n"))


def _picture(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd"


def one_line(text: object) -> str:
    """``visible`` text on one line: runs of white space become one space."""
    return " ".join(visible(text).split())


def finite(value: object) -> float | None:
    """``value`` as a float when it is a finite number, else None (a hole in a ledger)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def figure(value: float, digits: int = 3) -> str:
    """A small figure with fixed digits: 1.412; one that ran away in short: 3.2e+08."""
    return f"{value:.{digits}f}" if abs(value) < 10_000 else f"{value:.1e}"


def whole(value: float) -> str:
    """An integer with its thousands apart: 12,345."""
    return f"{value:,.0f}"


def short(value: float, unit: str = "") -> str:
    """Three significant digits and a decimal prefix: 1.92M, 15.0 kB (``unit`` = "B")."""
    number, prefix = abs(value), ""
    for next_prefix in ("k", "M", "G", "T", "P"):
        # 999.5 rounds to four digits, so it belongs to the next prefix.
        if number < 999.5:
            break
        number, prefix = number / 1000, next_prefix
    digits = 0 if number >= 99.95 or (not prefix and number == int(number)) else 1
    digits = digits if number >= 9.995 or digits == 0 else 2
    sign = "-" if value < 0 else ""
    return f"{sign}{number:.{digits}f}{' ' if unit else ''}{prefix}{unit}"


def duration(seconds: float) -> str:
    """Two units at most: 0.4 s, 42 s, 2 min 5 s, 3 h 20 min, 4 d 1 h."""
    if seconds < 9.95:
        return f"{max(seconds, 0.0):.1f} s"
    total = round(seconds)
    for size, unit, smaller, smaller_unit in (
        (86_400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if total >= size:
            rest = total % size // smaller
            return f"{total // size} {unit}" + (f" {rest} {smaller_unit}" if rest else "")
    return f"{total} s"


def percent(share: float) -> str:
    """A share of one in per cent, whole: 48 %."""
    return f"{100 * share:.0f} %"
