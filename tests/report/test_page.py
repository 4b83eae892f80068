"""The run's page: complete, self-contained, safe, and forgiving about what is not there yet."""

from __future__ import annotations

import json
import re
import struct
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flyweight.report.page import render, verdict, write_report
from flyweight.report.record import read_run
from flyweight.spec.errors import FlyweightError

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Outline(HTMLParser):
    """Elements with their text; fails on a tag that is closed out of turn."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, (tag, self.open)
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag][-1] += data


def page_of(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def test_the_page_says_what_the_run_did(make_run) -> None:
    run = make_run()
    page = page_of(run)
    outline = Outline(page)
    assert outline.texts["h1"] == ["fairy <tales>"]
    words = " ".join(outline.texts["body"])
    for expected in ("1.750", "1.75 bits per byte", "gzip -9", "bzip2 -9", "xz -9e", "1,234,567"):
        assert expected in words, expected
    for chart in ("Loss", "Learning rate", "Gradient norm", "Throughput", "matrix peak"):
        assert chart in words, chart
    assert outline.tags.count("figure") == 5
    assert "A Processor @ 3 GHz" in words
    assert "flyweight generate" in words
    assert f"'{run}'" in words  # the path has a space: quoted for the shell
    assert f"flyweight data inspect '{run}' --step 1" in words
    assert "flyweight resume" not in words  # it is finished


def test_the_page_asks_nothing_of_the_network(make_run) -> None:
    outline = Outline(page_of(make_run()))
    assert not {"script", "iframe", "object", "embed", "img", "base", "form"} & set(outline.tags)
    for name, value in outline.attributes:
        if name in ("href", "src", "srcset", "action", "data", "poster", "xlink:href"):
            assert value == "data:,", (name, value)
        assert not name.startswith("on"), (name, value)
    style = " ".join(outline.texts["style"])
    assert "@import" not in style and "url(" not in style and "//" not in style
    assert not [value for _, value in outline.attributes if "//" in value]


HOSTILE = [
    "</pre></script><script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    "{{ 7 * 7 }} {% raw %}",
    "\x1b[31mred\x1b[0m\x00\x07\x9b",
    "\u202etxt.exe \u2066",
    "\ud800 lone",
    "A" * 20_000,
    "<!-- ]]> &amp; &#0;",
]


def test_hostile_text_stays_text(make_run) -> None:
    samples = [{"step": i + 1, "prompt": t, "text": t} for i, t in enumerate(HOSTILE)]
    run = make_run(samples=samples)
    (run / "run.toml").write_text("name = '</title><script>'\n# </pre><script>\n")
    (run / "environment.json").write_text(json.dumps({"<b>": "<script>", "processor": "<i>"}))
    page = page_of(run)
    outline = Outline(page)
    assert not {"script", "img"} & set(outline.tags)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page)
    shown = "".join(outline.texts["pre"])
    assert "</pre></script><script>alert(1)</script>" in shown
    assert "{{ 7 * 7 }} {% raw %}" in shown
    assert "␛[31mred" in shown
    assert "A" * 20_000 in shown
    assert "<!-- ]]> &amp; &#0;" in shown


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.text(st.characters(exclude_categories=()), max_size=60))
def test_any_sample_gives_a_page_that_parses(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.toml").write_text("name = 'r'\n")
    line = {"step": 1, "prompt": text, "text": text}
    (tmp_path / "samples.jsonl").write_text(json.dumps(line))
    Outline(page_of(tmp_path))


def test_a_ledger_cut_off_by_a_crash_is_read_up_to_the_cut(make_run) -> None:
    run = make_run(steps=50)
    ledger = run / "ledger.jsonl"
    whole = ledger.read_bytes()
    ledger.write_bytes(whole[:-40])
    record = read_run(run)
    assert record.last_step == 49
    assert record.notes == ()
    assert "flyweight resume" in page_of(run)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(cut=st.floats(0, 1))
def test_a_run_folder_cut_anywhere_still_gives_a_page(make_run, tmp_path: Path, cut: float) -> None:
    run = tmp_path / "a run"
    if not run.exists():
        make_run(steps=12)
    names = ("run.toml", "ledger.jsonl", "samples.jsonl", "evaluation.json", "environment.json")
    contents = {name: (run / name).read_bytes() for name in names}
    try:
        for name, content in contents.items():
            (run / name).write_bytes(content[: int(cut * len(content))])
        Outline(page_of(run))
    finally:
        for name, content in contents.items():
            (run / name).write_bytes(content)


def test_a_broken_line_in_the_middle_is_told(make_run) -> None:
    run = make_run(steps=20)
    lines = (run / "ledger.jsonl").read_text().splitlines()
    lines[5] = lines[5][:30]
    (run / "ledger.jsonl").write_text("\n".join(lines) + "\n")
    assert "1 unreadable line of ledger.jsonl" in page_of(run)


def test_a_resumed_run_counts_each_step_once(make_run) -> None:
    run = make_run(steps=30)
    lines = (run / "ledger.jsonl").read_text().splitlines()
    again = [json.dumps({**json.loads(line), "loss": 9.0}) for line in lines[20:]]
    (run / "ledger.jsonl").write_text("\n".join(lines[:25] + again) + "\n")
    record = read_run(run)
    assert record.steps == [float(s) for s in range(1, 31)]
    assert record.column("loss")[20:] == [9.0] * 10


def test_a_run_that_just_began(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("name = 'young'\n[train]\nsteps = 9\n")
    outline = Outline(page_of(tmp_path))
    words = " ".join(outline.texts["body"])
    assert "only just begun" in words
    assert "No step is finished yet" in words
    assert "figure" not in outline.tags


def test_one_step_alone_draws_a_page(make_run) -> None:
    assert Outline(page_of(make_run(steps=1))).tags.count("figure") == 5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "x", True, 10**400, -1.0, 0])
def test_odd_figures_in_a_ledger(make_run, value: Any) -> None:
    run = make_run(steps=20)
    lines = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    for line in lines[10:]:
        for key in set(line) - {"step"}:
            line[key] = value
    (run / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = page_of(run)
    Outline(page)
    paths = re.findall(r' d="([^"]*)"', page)
    assert paths
    assert not [p for p in paths if re.search("nan|inf", p)]


@pytest.mark.parametrize(
    "evaluation",
    [
        [],
        {"held_out": None, "compressors": None},
        {"held_out": {}, "compressors": [{}]},
        {"held_out": {"bits_per_byte": 0.0}, "compressors": [{"name": 3, "bits_per_byte": 0.0}]},
        {"held_out": {"bits_per_byte": 1.5}, "model": 3},
    ],
)
def test_odd_evaluations(make_run, evaluation: Any) -> None:
    run = make_run(steps=5)
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    Outline(page_of(run))


def test_the_verdict_without_an_evaluation_is_about_training_text(make_run) -> None:
    run = make_run(steps=40)
    (run / "evaluation.json").unlink()
    line = verdict(read_run(run))
    assert "training text" in line and "40 of 40 steps" in line


def test_parameters_are_counted_from_the_weights(make_run) -> None:
    run = make_run(steps=5)
    (run / "evaluation.json").unlink()
    header = json.dumps(
        {
            "__metadata__": {"a": "b"},
            "x": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]},
            "y": {"dtype": "F32", "shape": [5], "data_offsets": [48, 68]},
        }
    ).encode()
    (run / "model").mkdir()
    weights = struct.pack("<Q", len(header)) + header + bytes(68)
    (run / "model" / "model.safetensors").write_bytes(weights)
    assert read_run(run).parameters == 17


def test_all_samples_are_on_the_page_some_of_them_folded(make_run) -> None:
    samples = [{"step": s, "prompt": "p", "text": f"sample-{s:03d}-"} for s in range(1, 41)]
    outline = Outline(page_of(make_run(samples=samples)))
    shown = "".join(outline.texts["pre"])
    assert all(f"sample-{s:03d}-" in shown for s in range(1, 41))
    folded = next(text for text in outline.texts["details"] if "more samples" in text)
    assert "32 more samples" in folded
    assert "sample-001-" not in folded and "sample-040-" not in folded


def test_the_page_is_replaced_whole_and_leaves_nothing_behind(make_run) -> None:
    run = make_run(steps=5)
    (run / "report.html").write_text("old")
    assert write_report(run) == run / "report.html"
    assert (run / "report.html").read_text(encoding="utf-8") != "old"
    assert not list(run.glob("*.tmp")) and not list(run.glob(".report*"))
    assert render(read_run(run)) == (run / "report.html").read_text(encoding="utf-8")


def test_a_page_that_cannot_be_written_leaves_the_old_one(make_run) -> None:
    run = make_run(steps=5)
    (run / "report.html").mkdir()  # cannot be replaced by a file
    with pytest.raises(FlyweightError, match=r"report\.html"):
        write_report(run)
    assert not list(run.glob(".report*"))


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FlyweightError, match="no run folder at"):
        write_report(tmp_path / "absent")
    with pytest.raises(FlyweightError, match=r"neither run\.toml"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_long_run_makes_a_small_page(make_run) -> None:
    page = page_of(make_run(steps=30_000))
    assert len(page) < 600_000
