"""A small line chart in SVG: no JavaScript, no dependency, sharp at any width.

The plot stretches with the page while its text and strokes keep their size: curves lie in an
inner <svg> that is stretched (``preserveAspectRatio="none"``) with strokes that are not, ticks
and labels are placed at percentages. Colours are CSS variables, so light and dark are the page's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Literal

from flyweight.report.wording import visible, whole

SPAN = 1000.0  # width of the inner viewBox
POINTS = 2000  # a series longer than this is thinned
LIMIT = 1e100  # beyond it (or below its inverse, on a logarithm) differences overflow
BANDS = 60  # steps of the read-out under the pointer

CSS = """
.chart { margin: 0; min-width: 0; }
.chart figcaption { display: flex; flex-wrap: wrap; gap: .2rem 1rem; align-items: baseline; }
.chart .name { font-weight: 600; }
.chart .unit { color: var(--muted); font-size: .82rem; }
.chart .legend { display: flex; gap: .8rem; margin-left: auto; color: var(--muted);
  font-size: .78rem; }
.chart .legend i { display: inline-block; width: 1.1rem; height: 0; margin-right: .35rem;
  border-top: 2.5px solid; vertical-align: middle; border-radius: 2px; }
.chart .legend i.raw { border-top-width: 1.5px; opacity: .55; }
.chart .plot { padding: 1.5rem 6px 2.3rem 3rem; }
.chart.marked .plot { padding-right: 5.6rem; }
.chart svg { display: block; overflow: visible; width: 100%; }
.chart svg svg { overflow: visible; }
.chart text { font-size: 11px; fill: var(--muted); font-variant-numeric: tabular-nums; }
.chart .grid { stroke: var(--grid); stroke-width: 1; }
.chart .axis { stroke: var(--axis); stroke-width: 1; }
.chart .curve { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round;
  vector-effect: non-scaling-stroke; }
.chart .curve.raw { stroke-width: 1; opacity: .38; }
.chart .mark { stroke-width: 1.2; stroke-dasharray: 5 4; opacity: .85; }
.chart .leader { stroke-width: 1; opacity: .45; }
.chart .c0 { stroke: var(--c0); color: var(--c0); }
.chart .c1 { stroke: var(--c1); color: var(--c1); }
.chart .c2 { stroke: var(--c2); color: var(--c2); }
.chart .c3 { stroke: var(--c3); color: var(--c3); }
.chart .c4 { stroke: var(--c4); color: var(--c4); }
.chart text.c0, .chart text.c1, .chart text.c2, .chart text.c3, .chart text.c4 {
  stroke: none; fill: currentColor; font-weight: 600; }
.chart .band rect { fill: transparent; }
.chart .band line, .chart .band text { visibility: hidden; }
.chart .band line { stroke: var(--muted); stroke-width: 1; }
.chart .band text { fill: var(--ink); font-weight: 600; }
.chart .band:hover line, .chart .band:hover text { visibility: visible; }
@media (max-width: 640px) {
  .chart .second { display: none; }
  .chart .plot { padding-left: 2.6rem; }
  .chart.marked .plot { padding-right: 5.7rem; }
}
"""


@dataclass(frozen=True)
class Series:
    """One curve. ``y`` may hold NaN where nothing was measured: the curve has a gap there.

    ``color`` is one of the page's colours, 0 to 4; ``kind`` "raw" is drawn thin and pale.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: int = 0
    kind: Literal["line", "raw"] = "line"


@dataclass(frozen=True)
class Mark:
    """A level to compare with: a dashed horizontal line, named in the right margin."""

    name: str
    value: float
    color: int = 1


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    unit: str = "",
    x_name: str = "step",
    log: bool = False,
    marks: Sequence[Mark] = (),
    height: int = 220,
    show: Callable[[float], str] | None = None,
) -> str:
    """A <figure> with title, legend and chart, as escaped HTML. ``height`` of the plot in px.

    ``log`` makes the vertical axis logarithmic (without a positive value it stays linear); what
    an axis cannot bear is a gap: zero and less on a logarithm, values beyond LIMIT on any.
    ``show`` writes a value under the pointer. Series of more than POINTS points keep the least
    and the greatest of each bucket, so spikes stay.
    """
    show = show or (lambda value: f"{value:.4g}")
    measured = [v for s in series for v in s.y]
    log = log and any(_drawable(v, log=True) for v in measured)
    shown_marks = [m for m in marks if _drawable(m.value, log=log)]
    levels = [v for v in measured if _drawable(v, log=log)] + [m.value for m in shown_marks]
    scale = _Scale.fit(levels, height, log=log, ticks=height // 42)
    finite_x = [v for s in series for v in s.x if math.isfinite(v)]
    low, high = (min(finite_x), max(finite_x)) if finite_x else (0.0, 1.0)
    if low == high:
        low, high = low - 1, high + 1

    def across(x: float) -> float:
        return (x - low) / (high - low) * SPAN

    curves = "".join(
        f'<path class="curve {s.kind} c{s.color % 5}" d="{_path(s, across, scale)}">'
        f"<title>{_text(s.name)}</title></path>"
        for s in series
    )
    name = _text(title)
    parts = [
        f'<figure class="chart{" marked" if shown_marks else ""}"><figcaption>'
        f'<span class="name">{name}</span><span class="unit">{_text(unit)}</span>'
        f"{_legend(series)}</figcaption>"
        f'<div class="plot"><svg role="img" aria-label="{name}" height="{height}">',
        _grid(scale, height),
        _ticks_across(low, high, across, height, x_name),
        f'<svg width="100%" height="{height}" viewBox="0 0 {SPAN:g} {height}" '
        f'preserveAspectRatio="none">{curves}</svg>',
        _marks(shown_marks, scale, height, show),
        _bands(series, low, high, across, height, x_name, show),
        "</svg></div></figure>",
    ]
    return "".join(parts)


def thin(
    x: Sequence[float], y: Sequence[float], limit: int = POINTS
) -> tuple[list[float], list[float]]:
    """At most ``limit`` (>= 4) points in order: the least and greatest ``y`` of each bucket.

    The first and the last point stay, and so does a gap (NaN) wherever a bucket has one.
    """
    if len(x) <= limit:
        return list(x), list(y)
    # A bucket gives up to three points where it has a gap, and both ends come on top.
    buckets = (limit - 2) // 3 if any(not math.isfinite(v) for v in y) else (limit - 2) // 2
    buckets = max(buckets, 1)
    kept = {0, len(x) - 1}
    for bucket in range(buckets):
        begin, end = bucket * len(x) // buckets, (bucket + 1) * len(x) // buckets
        inside = [i for i in range(begin, end) if math.isfinite(y[i])]
        kept.update(inside and (min(inside, key=y.__getitem__), max(inside, key=y.__getitem__)))
        if len(inside) < end - begin:
            kept.add(next(i for i in range(begin, end) if not math.isfinite(y[i])))
    order = sorted(kept)[:limit] if limit >= 4 else sorted(kept)
    return [x[i] for i in order], [y[i] for i in order]


def smooth(y: Sequence[float], share: float = 0.015) -> list[float]:
    """A moving average, taken twice, over ``share`` of the series to either side each time.

    Gaps (NaN) are left out. The window is symmetric at the beginning, where curves are steep,
    and cut off at the end.
    """
    reach = max(1, round(len(y) * share)) if len(y) > 8 else 0
    return _average(_average(y, reach), reach)


def _average(y: Sequence[float], reach: int) -> list[float]:
    # Sums of integers (units of 2**-60) are exact: a spike of 1e20 leaves no rounding behind it.
    sums, counts = [0], [0]
    for value in y:
        good = abs(value) < LIMIT
        sums.append(sums[-1] + (int(math.ldexp(value, 60)) if good else 0))
        counts.append(counts[-1] + good)
    result = []
    for i in range(len(y)):
        near = min(reach, i)
        begin, end = i - near, min(len(y), i + near + 1)
        count = counts[end] - counts[begin]
        result.append((sums[end] - sums[begin]) / (count << 60) if count else math.nan)
    return result


def nice_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """About ``count`` round values (1, 2, 2.5 or 5 times a power of ten) within [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999), 10 * power)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    # Rounded to the step's own digits: 3 * 0.1 is not to read 0.30000000000000004.
    digits = max(0, 2 - math.floor(math.log10(step)))
    return [round(k * step, min(digits, 300)) for k in range(first, last + 1)]


def log_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """About ``count`` round values within [low, high] (both positive) for a logarithmic axis."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    best: list[float] = []
    for mantissas in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 6, 8)):
        ticks = [m * 10.0**d for d in decades for m in mantissas]
        ticks = [float(f"{t:.3g}") for t in ticks if low * 0.999 <= t <= high * 1.001]
        if len(ticks) > count + 1:
            if not best:
                best = ticks[:: math.ceil(len(ticks) / count)]
            break
        best = ticks
    return best if len(best) >= 3 else nice_ticks(low, high, count)


@dataclass(frozen=True)
class _Scale:
    """Values to pixels from the top of a plot that is ``height`` px high."""

    low: float
    high: float
    height: int
    log: bool
    ticks: list[float]

    @classmethod
    def fit(cls, values: Sequence[float], height: int, *, log: bool, ticks: int) -> _Scale:
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        if log:
            margin = max(high / low, 1.05) ** 0.04
            low, high = low / margin, high * margin
            return cls(low, high, height, True, log_ticks(low, high, ticks))
        # Anchored at zero unless the curve would become a flat line at the top.
        if 0 <= low < 0.6 * high or low == high >= 0:
            low = 0.0
        margin = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
        low, high = (low if low == 0 else low - margin), high + margin
        return cls(low, high, height, False, nice_ticks(low, high, ticks))

    def __call__(self, value: float) -> float:
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return (1 - share) * self.height


def _drawable(value: float, *, log: bool) -> bool:
    return abs(value) < LIMIT and (value > 1 / LIMIT or not log)


def _path(series: Series, across: Callable[[float], float], scale: _Scale) -> str:
    x, y = thin(series.x, series.y)
    pieces: list[str] = []
    pen_down = False
    for i, (at, value) in enumerate(zip(x, y, strict=True)):
        if not _drawable(value, log=scale.log) or not math.isfinite(at):
            pen_down = False
            continue
        point = f"{across(at):.1f} {scale(value):.1f}"
        pieces.append(("L" if pen_down else "M") + point)
        alone = not pen_down and (i + 1 == len(y) or not _drawable(y[i + 1], log=scale.log))
        if alone:  # a point between two gaps: a stroke of no length shows as a dot
            pieces.append("h0")
        pen_down = True
    return "".join(pieces)


def _grid(scale: _Scale, height: int) -> str:
    lines = []
    for tick in scale.ticks:
        y = scale(tick)
        lines.append(
            f'<line class="grid" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="-8" y="{y + 3.5:.1f}" text-anchor="end">{_tick(tick)}</text>'
        )
    return "".join(lines) + f'<line class="axis" x1="0" x2="100%" y1="{height}" y2="{height}"/>'


def _ticks_across(
    low: float, high: float, across: Callable[[float], float], height: int, name: str
) -> str:
    parts = []
    for i, tick in enumerate(nice_ticks(low, high, 8)):
        x = across(tick) / SPAN * 100
        # Every other label makes room on a phone.
        kind = ' class="second"' if i % 2 else ""
        parts.append(
            f'<g{kind}><line class="axis" x1="{x:.2f}%" x2="{x:.2f}%" y1="{height}" '
            f'y2="{height + 4}"/><text x="{x:.2f}%" y="{height + 17}" text-anchor="middle">'
            f"{_tick(tick)}</text></g>"
        )
    parts.append(f'<text x="50%" y="{height + 33}" text-anchor="middle">{_text(name)}</text>')
    return "".join(parts)


def _marks(marks: Sequence[Mark], scale: _Scale, height: int, show: Callable[[float], str]) -> str:
    """The marks, with their names moved apart where levels lie close together."""
    gap = 14.0
    ordered = sorted(marks, key=lambda m: scale(m.value))
    places: list[float] = []
    for mark in ordered:
        y = scale(mark.value)
        places.append(max(y, places[-1] + gap) if places else y)
    # Too low at the bottom: push back up, the last first.
    for i in range(len(places) - 1, -1, -1):
        ceiling = height - 2.0 if i + 1 == len(places) else places[i + 1] - gap
        places[i] = min(places[i], ceiling)
    parts = []
    for mark, place in zip(ordered, places, strict=True):
        y, color = scale(mark.value), f"c{mark.color % 5}"
        label = f"{_text(mark.name)} {_text(show(mark.value))}"
        parts.append(
            f'<line class="mark {color}" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}">'
            f"<title>{label}</title></line>"
            f'<svg x="100%"><path class="leader {color}" fill="none" '
            f'd="M0 {y:.1f}h3L8 {place:.1f}h3"/>'
            f'<text class="{color}" x="14" y="{place + 3.5:.1f}">{label}</text></svg>'
        )
    return "".join(parts)


def _bands(
    series: Sequence[Series],
    low: float,
    high: float,
    across: Callable[[float], float],
    height: int,
    x_name: str,
    show: Callable[[float], str],
) -> str:
    """Invisible columns; the one under the pointer shows a hairline and the values there."""
    points = max((s.x for s in series), key=len, default=())
    if not points:
        return ""
    count = min(BANDS, len(points))
    chosen = [points[(2 * k + 1) * len(points) // (2 * count)] for k in range(count)]
    tables = [(s, dict(zip(s.x, s.y, strict=True))) for s in series]
    edges = [0.0, *(across((a + b) / 2) for a, b in pairwise(chosen)), SPAN]
    parts = []
    for x, (left, right) in zip(chosen, pairwise(edges), strict=True):
        values = [
            (s.name, table[x]) for s, table in tables if x in table and math.isfinite(table[x])
        ]
        words = ", ".join(f"{n} {show(v)}" for n, v in values) or "nothing measured"
        label = _text(f"{x_name} {whole(x)}: {words}")
        at = across(x) / SPAN * 100
        parts.append(
            f'<g class="band"><rect x="{left / 10:.2f}%" width="{(right - left) / 10:.2f}%" '
            f'y="0" height="{height}"/><line x1="{at:.2f}%" x2="{at:.2f}%" y1="0" '
            f'y2="{height}"/><text x="100%" y="-8" text-anchor="end">{label}</text>'
            f"<title>{label}</title></g>"
        )
    return "".join(parts)


def _legend(series: Sequence[Series]) -> str:
    if len(series) < 2:
        return ""
    items = (f'<span><i class="{s.kind} c{s.color % 5}"></i>{_text(s.name)}</span>' for s in series)
    return f'<span class="legend">{"".join(items)}</span>'


def _tick(value: float) -> str:
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(size, 1e4):
            return f"{value / size:g}{prefix}"
    return whole(value) if abs(value) >= 1000 else f"{value:g}"


def _text(text: object) -> str:
    return escape(visible(text))
