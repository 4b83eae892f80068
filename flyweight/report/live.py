"""A run while it trains: a live panel for a terminal, plain lines for a pipe.

Training hands a view the ledger's records; a view never raises because of what it is shown.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TextIO

from flyweight.report.wording import (
    duration,
    figure,
    finite,
    one_line,
    percent,
    visible,
    whole,
)

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

REFRESHES_PER_SECOND = 4
HISTORY = 1024  # values that the curve of the live view keeps
SMOOTHING = 0.05  # weight of the newest step in the smoothed figures


class View(Protocol):
    """What training shows itself through. Use as a context manager: leaving it stops the view."""

    def start(self, total_steps: int, name: str) -> None: ...

    def step(self, record: Mapping[str, Any]) -> None:
        """One finished step: a line of the ledger, and ``eta_seconds`` where it is known."""

    def sample(self, step: int, prompt: str, text: str) -> None:
        """``text`` continues ``prompt``, as the model stood after ``step`` steps."""

    def notice(self, text: str) -> None: ...

    def stop(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def view_for(stream: TextIO | None = None, quiet: bool = False) -> View:
    """The view that suits ``stream`` (standard error by default): a panel only for a terminal.

    ``quiet`` leaves notices alone. A terminal that cannot move its cursor or show UTF-8 gets
    plain lines too.
    """
    stream = sys.stderr if stream is None else stream
    if quiet or not _is_terminal(stream):
        return PlainView(stream, quiet=quiet)
    from rich.console import Console

    console = Console(file=stream)
    if not console.is_terminal or console.is_dumb_terminal or console.legacy_windows:
        return PlainView(stream)
    if not console.encoding.lower().replace("-", "").startswith("utf8"):
        return PlainView(stream)
    return LiveView(console)


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError, OSError):  # closed, or no file at all
        return False


class _Context:
    """``with`` for the views."""

    def stop(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


class PlainView(_Context):
    """Plain lines without escape codes: about one for every 5 % of the run.

    Slow runs are heard every 10 s at first, then every fiftieth of the time they have taken.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._quiet = quiet
        self._clock = clock
        self._total = 0
        self._begun = self._shown_at = clock()
        self._shown_step = 0
        self._last: Mapping[str, Any] | None = None

    def start(self, total_steps: int, name: str) -> None:
        self._total = total_steps
        self._begun = self._shown_at = self._clock()
        if not self._quiet:
            self._write(f"{one_line(name)}: {whole(total_steps)} steps")

    def step(self, record: Mapping[str, Any]) -> None:
        if self._quiet:
            return
        first, self._last = self._last is None, record
        step, now = int(finite(record.get("step")) or 0), self._clock()
        patience = max(10.0, (now - self._begun) / 50)
        if (
            first
            or step >= self._total
            or step - self._shown_step >= self._total / 20
            or now - self._shown_at >= patience
        ):
            self._line()

    def _line(self) -> None:
        assert self._last is not None
        step = int(finite(self._last.get("step")) or 0)
        self._shown_step, self._shown_at = step, self._clock()
        done = f"step {step}/{self._total}"
        if self._total:
            done += f" ({percent(step / self._total)})"
        self._write("  ".join([done, *(f"{value} {name}" for name, value in _figures(self._last))]))

    def sample(self, step: int, prompt: str, text: str) -> None:
        if self._quiet:
            return
        lines = visible(f"{prompt}{text}").expandtabs(4).split("\n")
        self._write("\n".join([f"sample at step {step}:", *(f"  | {line}" for line in lines)]))

    def notice(self, text: str) -> None:
        self._write(visible(text))

    def stop(self) -> None:
        if self._last is not None and self._shown_step != self._last.get("step"):
            self._line()
        self._last = None

    def _write(self, text: str) -> None:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        safe = text.encode(encoding, "backslashreplace").decode(encoding)
        # A reader that went away is no reason to stop training.
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(safe + "\n")
            self._stream.flush()


def _figures(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of what a plain line says about a step."""
    shown: list[tuple[str, Callable[[float], str], str]] = [
        ("bits_per_byte", figure, "bits per byte"),
        ("loss", figure, "nats per token"),
        ("tokens_per_second", whole, "tokens/s"),
        ("bytes_per_second", whole, "bytes/s"),
        ("matrix_share", percent, "of matrix peak"),
        ("eta_seconds", duration, "left"),
    ]
    found = ((name, write, finite(record.get(key))) for key, write, name in shown)
    return [(name, write(value)) for name, write, value in found if value is not None]


class LiveView(_Context):
    """A panel in the terminal, redrawn a few times a second by a thread of its own.

    ``step`` only stores, so that what is shown costs training nothing per step.
    """

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console

        self._console = Console(stderr=True) if console is None else console
        self._live: Live | None = None
        self._name, self._total = "run", 0
        self._record: Mapping[str, Any] = {}
        self._record_at = 0.0
        self._smooth: dict[str, float] = {}
        self._curve = _Curve(HISTORY)
        self._sample: tuple[int, str, str] | None = None

    def start(self, total_steps: int, name: str) -> None:
        from rich.live import Live

        self._name, self._total = one_line(name), total_steps
        if self._live is not None:
            return
        self._live = Live(
            get_renderable=self._render,
            console=self._console,
            refresh_per_second=REFRESHES_PER_SECOND,
            vertical_overflow="crop",
            # Warnings appear above the panel; standard output stays the result's when piped.
            redirect_stdout=_is_terminal(sys.stdout),
            redirect_stderr=self._console.file is sys.stderr,
        )
        with contextlib.suppress(OSError, ValueError):
            self._live.start()

    def step(self, record: Mapping[str, Any]) -> None:
        self._record, self._record_at = record, time.monotonic()
        for key in ("bits_per_byte", "tokens_per_second", "bytes_per_second", "matrix_share"):
            value = finite(record.get(key))
            if value is not None:
                old = self._smooth.get(key, value)
                self._smooth[key] = old + SMOOTHING * (value - old)
        value = finite(record.get("bits_per_byte"))
        if value is not None:
            self._curve.add(min(value, 1e6))

    def sample(self, step: int, prompt: str, text: str) -> None:
        self._sample = (step, prompt, text)

    def notice(self, text: str) -> None:
        from rich.text import Text

        with contextlib.suppress(OSError, ValueError):
            self._console.print(Text(visible(text)))

    def stop(self) -> None:
        """Draw the last state, give the terminal back. May be called twice."""
        live, self._live = self._live, None
        if live is not None:
            with contextlib.suppress(OSError, ValueError):
                live.stop()

    def _render(self) -> RenderableType:
        from rich import box
        from rich.console import Group
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        width, height = self._console.size
        inside = max(width - 4, 1)
        rows = self._rows()
        step = int(finite(self._record.get("step")) or 0)
        body: list[RenderableType] = [self._progress(step, inside)]
        plot_rows = 3 if width < 64 else len(rows)
        # Borders, progress, figures, and the curve where it stands below them.
        used = 4 + len(rows) + (plot_rows if width < 64 else 0)
        figures = Table.grid(padding=(0, 2, 0, 0))
        figures.add_column(style="dim", no_wrap=True)
        figures.add_column(no_wrap=True, justify="right")
        for name, value in rows:
            figures.add_row(name, value)
        if width < 64:
            body.append(figures)
            if height > used:
                body.extend(self._curve.draw(inside, plot_rows))
        else:
            taken = 2 + max(len(n) for n, _ in rows) + 2 + max(len(v) for _, v in rows) + 2
            beside = Table.grid(expand=True)
            beside.add_column(width=taken)
            beside.add_column(ratio=1)
            beside.add_row(figures, Group(*self._curve.draw(max(inside - taken, 8), plot_rows)))
            body += [Text(""), beside]
            used += 1
        room = min(height - used - 3, 6)
        if self._sample is not None and room >= 1:
            at, prompt, text = self._sample
            title = Text(f"sample at step {whole(at)}", style="dim")
            body += [Text(""), title, *_excerpt(prompt, text, inside, room)]
        title = Text(self._name, style="bold", no_wrap=True)
        title.truncate(max(inside - 2, 1), overflow="ellipsis")
        return Panel(Group(*body), box=box.ROUNDED, title=title, title_align="left", padding=(0, 1))

    def _rows(self) -> list[tuple[str, str]]:
        def shown(key: str, write: Callable[[float], str], table: Mapping[str, Any]) -> str:
            value = finite(table.get(key))
            return "·" if value is None else write(value)

        rows = [
            ("bits per byte", shown("bits_per_byte", figure, self._smooth)),
            ("loss", shown("loss", figure, self._record)),
            ("learning rate", shown("learning_rate", lambda v: f"{v:.3g}", self._record)),
            ("tokens/s", shown("tokens_per_second", whole, self._smooth)),
            ("bytes/s", shown("bytes_per_second", whole, self._smooth)),
        ]
        if "matrix_share" in self._smooth:
            rows.append(("of matrix peak", shown("matrix_share", percent, self._smooth)))
        return rows

    def _progress(self, step: int, inside: int) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        eta = finite(self._record.get("eta_seconds"))
        left = "starting" if not step else ""
        if step and step >= self._total:
            left = "done"
        elif eta is not None:
            # The clock goes on between two records.
            left = duration(eta - (time.monotonic() - self._record_at)) + " left"
        steps = f"{whole(step)} of {whole(self._total)}"
        if inside < len(left) + len(steps) + 16:
            steps = percent(step / self._total) if self._total else whole(step)
        row = Table.grid(padding=(0, 2, 0, 0), expand=True)
        row.add_column(ratio=1)
        row.add_column(no_wrap=True)
        row.add_column(no_wrap=True, justify="right")
        bar = ProgressBar(total=max(self._total, 1), completed=step, complete_style="cyan")
        row.add_row(bar, Text(steps), Text(left, style="bold"))
        return row


class _Curve:
    """A run's values at a bounded length: when full, neighbours are averaged in pairs."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: list[float] = []
        self._each = 1  # steps that one kept value stands for
        self._sum, self._count = 0.0, 0

    def add(self, value: float) -> None:
        self._sum, self._count = self._sum + value, self._count + 1
        if self._count < self._each:
            return
        self._values.append(self._sum / self._count)
        self._sum, self._count = 0.0, 0
        if len(self._values) >= self._limit:
            pairs = zip(self._values[::2], self._values[1::2], strict=True)
            # One assignment: the thread that draws sees the old list or the new one.
            self._values = [(a + b) / 2 for a, b in pairs]
            self._each *= 2

    def draw(self, width: int, rows: int) -> list[RenderableType]:
        """The curve as ``rows`` lines of block characters, logarithmic, with its two ends named."""
        from rich.text import Text

        values = [v for v in list(self._values) if v > 0]
        if not values:
            return [Text("") for _ in range(rows)]
        top, bottom = f"{figure(max(values), 2)} ", f"{figure(min(values), 2)} "
        margin = max(len(top), len(bottom))
        wide = min(max(width - margin, 1), len(values))
        edges = [k * len(values) // wide for k in range(wide + 1)]
        means = [math.log(sum(values[a:b]) / (b - a)) for a, b in itertools.pairwise(edges)]
        # A column for every value at first; later as wide as there is room.
        stretch = max(width - margin, 1)
        means = [means[k * len(means) // stretch] for k in range(stretch)]
        low, high = min(means), max(means)
        span = (high - low) or 1.0
        heights = [1 + round((m - low) / span * (rows * 8 - 1)) for m in means]
        lines: list[RenderableType] = []
        for row in range(rows):
            base = (rows - 1 - row) * 8
            cells = "".join(" ▁▂▃▄▅▆▇█"[min(max(h - base, 0), 8)] for h in heights)
            label = top if row == 0 else bottom if row == rows - 1 else ""
            lines.append(Text.assemble((label.rjust(margin), "dim"), (cells, "cyan"), no_wrap=True))
        return lines


def _excerpt(prompt: str, text: str, width: int, rows: int) -> list[RenderableType]:
    """The first ``rows`` screen lines of a sample, the prompt in another colour."""
    from rich.text import Text

    # Long before the panel is full; a sample may be very long and is drawn again and again.
    prompt = visible(prompt[:2000]).expandtabs(4)
    text = visible(text[: width * rows * 2]).expandtabs(4)
    lines: list[RenderableType] = []
    for line in Text.assemble((prompt, "bold cyan"), text).split("\n", allow_blank=True):
        line.truncate(width, overflow="ellipsis")
        line.no_wrap = True
        lines.append(line)
    return lines[:rows]
