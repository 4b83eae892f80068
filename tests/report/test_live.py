"""The views: calm lines without escape codes, and a panel that any text and width leave whole."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from flyweight.report.live import LiveView, PlainView, View, view_for
from flyweight.report.wording import one_line

Lines = Callable[[int], list[dict[str, Any]]]

WEIRD = "\x1b[2J\x1b[31m[bold]x[/bold] [/nothing] \x00\x07\r\u202e\ud800 界界\t]" + "y" * 5000


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="session")
def plain(ledger_lines: Lines) -> Callable[..., str]:
    """What a PlainView prints of a run of ``steps`` steps that take ``seconds`` each."""

    def show(steps: int = 200, seconds: float = 0.0, **options: Any) -> str:
        out, clock = io.StringIO(), Clock()
        with PlainView(out, clock=clock, **options) as view:
            view.start(steps, "a run")
            for line in ledger_lines(steps):
                clock.now += seconds
                view.step({**line, "eta_seconds": steps - line["step"]})
                if line["step"] == steps // 2:
                    view.sample(line["step"], "def ", WEIRD)
            view.notice(f"note {WEIRD}")
        return out.getvalue()

    return show


def test_plain_lines_have_no_escape_codes(plain: Callable[..., str]) -> None:
    shown = plain()
    assert "\x1b" not in shown and "\r" not in shown and "\x00" not in shown
    assert "sample at step 100:" in shown
    assert "\n  | def " in shown
    shown.encode("utf-8")


def test_plain_lines_are_few_and_say_the_figures(plain: Callable[..., str]) -> None:
    lines = [line for line in plain().splitlines() if line.startswith("step ")]
    assert 20 <= len(lines) <= 23
    assert lines[0].startswith("step 1/200")
    assert lines[-1].startswith("step 200/200 (100 %)")
    for name in ("bits per byte", "nats per token", "tokens/s", "bytes/s", "matrix peak", "left"):
        assert name in lines[3], name


def test_a_slow_run_is_heard_every_ten_seconds_then_less_often(
    plain: Callable[..., str],
) -> None:
    lines = [line for line in plain(2000, seconds=1.0).splitlines() if line.startswith("step ")]
    early = [line for line in lines if int(line.split("/")[0][5:]) <= 301]
    assert 28 <= len(early) <= 33
    assert len(lines) < 160


def test_quiet_leaves_the_notices(plain: Callable[..., str]) -> None:
    assert [line[:5] for line in plain(quiet=True).split("\n") if line] == ["note "]


def test_a_run_stopped_between_two_lines_still_says_where(ledger_lines: Lines) -> None:
    out = io.StringIO()
    with pytest.raises(KeyboardInterrupt), PlainView(out) as view:
        view.start(1000, "r")
        for line in ledger_lines(1000)[:17]:
            view.step(line)
        raise KeyboardInterrupt
    assert out.getvalue().splitlines()[-1].startswith("step 17/1000")


def test_a_stream_that_went_away_does_not_stop_training(ledger_lines: Lines) -> None:
    out = io.StringIO()
    view = PlainView(out)
    view.start(10, "r")
    out.close()
    view.step(ledger_lines(10)[0])
    view.notice("unheard")
    view.stop()


def test_a_stream_without_utf8_gets_escapes() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    PlainView(stream).notice("naïve 界")
    assert raw.getvalue().decode("ascii").strip() == r"na\xefve \u754c"


def test_view_for_picks_by_what_the_stream_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    assert isinstance(view_for(io.StringIO()), PlainView)
    assert isinstance(view_for(Terminal()), LiveView)
    assert isinstance(view_for(Terminal(), quiet=True), PlainView)
    latin = Terminal()
    latin.encoding = "latin-1"  # type: ignore[misc]
    assert isinstance(view_for(latin), PlainView)
    closed = io.StringIO()
    closed.close()
    assert isinstance(view_for(closed), PlainView)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(view_for(Terminal()), PlainView)


def test_forced_colour_does_not_make_a_pipe_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert isinstance(view_for(io.StringIO()), PlainView)


def console(width: int, height: int = 30) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=True, width=width, height=height), out


@pytest.mark.parametrize("width", [40, 120])
def test_the_panel_in_a_terminal(ledger_lines: Lines, width: int) -> None:
    screen, out = console(width)
    before = sys.stdout, sys.stderr
    view: View = LiveView(screen)
    with view:
        view.start(300, "quickstart")
        for line in ledger_lines(300)[:150]:
            view.step({**line, "eta_seconds": 61.0})
        view.sample(140, "def read", "_line(self):\n    return 1")
        view.notice("a notice [not markup]")
    view.stop()  # twice does no harm
    assert (sys.stdout, sys.stderr) == before
    shown = out.getvalue()
    for expected in ("quickstart", "bits per byte", "tokens/s", "bytes/s", "of matrix peak"):
        assert expected in shown, expected
    assert "left" in shown and "sample at step 140" in shown and "_line(self):" in shown
    assert "a notice [not markup]" in shown
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l")  # the cursor is back


@settings(deadline=None, max_examples=120)
@given(
    width=st.integers(1, 200),
    height=st.integers(1, 60),
    prompt=st.text(st.characters(exclude_categories=()), max_size=40),
    text=st.one_of(st.just(WEIRD), st.text(st.characters(exclude_categories=()), max_size=80)),
    name=st.text(st.characters(exclude_categories=()), max_size=40),
    value=st.one_of(st.none(), st.floats(), st.integers(), st.text(max_size=3)),
    steps=st.integers(0, 40),
)
def test_no_text_figure_or_width_breaks_the_panel(
    ledger_lines: Lines,
    width: int,
    height: int,
    prompt: str,
    text: str,
    name: str,
    value: Any,
    steps: int,
) -> None:
    screen, out = console(width, height)
    view = LiveView(screen)
    view._name, view._total = one_line(name), steps  # as start() does, without its thread
    for line in ledger_lines(steps):
        view.step({**line, "bits_per_byte": value, "eta_seconds": value, "loss": value})
    view.sample(1, prompt, text)
    screen.print(view._render())
    plain_screen = Console(file=io.StringIO(), width=width, height=height)
    lines = plain_screen.render_lines(view._render(), pad=False)
    for line in lines:
        content = "".join(segment.text for segment in line)
        assert not any(ord(c) < 32 or c == "\x9b" for c in content.rstrip("\n"))
    out.getvalue().encode("utf-8")


def test_the_panel_fits_the_terminal(ledger_lines: Lines) -> None:
    for width in (30, 40, 63, 64, 80, 120):
        for height in (14, 16, 24, 50):
            screen, _ = console(width, height)
            view = LiveView(screen)
            view._total = 300
            for line in ledger_lines(300):
                view.step({**line, "eta_seconds": 5.0})
            view.sample(300, "def ", WEIRD * 3)
            lines = screen.render_lines(view._render(), pad=False)
            assert len(lines) <= height, (width, height)
            assert {sum(s.cell_length for s in line) for line in lines} == {width}


def test_a_million_steps_stay_small(ledger_lines: Lines) -> None:
    screen, _ = console(80)
    view = LiveView(screen)
    line = ledger_lines(1)[0]
    for step in range(30_000):
        view.step({**line, "step": step})
    assert len(view._curve._values) <= 1024
    assert view._curve._each * len(view._curve._values) <= 30_000


def test_the_panel_refreshes_by_itself(ledger_lines: Lines) -> None:
    screen, out = console(80)
    with LiveView(screen) as view:
        view.start(10, "r")
        view.step({**ledger_lines(10)[2], "eta_seconds": 3.0})
        deadline = time.monotonic() + 20
        while "3 of 10" not in out.getvalue() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert "3 of 10" in out.getvalue()
