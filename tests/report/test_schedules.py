"""A run's schedules on its page: planned for the whole run, done as far as it came."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flyweight.report.page import write_report
from flyweight.report.record import read_run
from flyweight.report.schedules import schedule_charts
from flyweight.spec import toml
from flyweight.spec.run import Train
from flyweight.train.schedule import Plan

MakeRun = Callable[..., Path]
TRAIN: dict[str, Any] = {
    "steps": 60,
    "context": 512,
    "batch_tokens": 4096,
    "schedule": {"kind": "wsd", "warmup": 6, "decay": 0.25, "shape": "1-sqrt", "peak": 0.01},
    "ramp": [
        {"context": 128, "until": 0.5},
        {"batch_tokens": 1024, "until": 0.25, "linear": True},
    ],
    "dropout": {"kind": "triangle", "rate": 0.2, "cycles": 2},
}


def furnished(run: Path, done: int, **data: Any) -> Path:
    """The run's configuration, and a ledger that followed it for ``done`` steps."""
    values = {"name": "run", "data": data, "train": TRAIN}
    (run / "run.toml").write_text(toml.dumps(values))
    plan, tokens, lines = Plan(Train.parse(TRAIN), switch="mix" in data), 0, []
    for step in range(done):
        moment = plan.at(step)
        tokens += moment.windows * 512
        line = {
            "step": step + 1, "tokens": tokens, "bits_per_byte": 2.0, "context": moment.context,
            "learning_rate": moment.rate, "dropout": moment.dropout, "mix": moment.mix,
        }  # fmt: skip
        lines.append(json.dumps(line) + "\n")
    (run / "ledger.jsonl").write_text("".join(lines))
    return run


def curves(chart: str) -> dict[str, int]:
    """How many points each line of a chart goes through."""
    found = re.findall(r'<path class="curve[^"]*" d="([^"]*)"><title>([^<]*)</title>', chart)
    return {name: len(re.findall("[ML]", path)) for path, name in found}


def test_all_schedules_are_drawn(make_run: MakeRun) -> None:
    run = furnished(make_run(), 40, mix={"decay": {"weights": {"tales": 1.0}}})
    drawn = list(schedule_charts(read_run(run)))
    names = [re.search('aria-label="([^"]*)"', chart).group(1) for chart in drawn]
    assert names == ["Learning rate", "Context", "Batch", "Dropout", "Data mix"]
    for chart in drawn:
        points = curves(chart)
        assert set(points) == {"planned", "so far"}
        assert points["planned"] > points["so far"] > 1
    assert "the decay" in drawn[4] and "the main one" in drawn[4]
    page = write_report(run).read_text()
    assert all(f'aria-label="{name}"' in page for name in names)


def test_what_never_changes_is_not_drawn(make_run: MakeRun) -> None:
    run = furnished(make_run(), 20)
    settings = {"name": "run", "train": {"steps": 60, "context": 512, "batch_tokens": 4096}}
    (run / "run.toml").write_text(toml.dumps(settings))
    lines = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    kept = {"step", "learning_rate", "bits_per_byte"}
    text = [json.dumps({k: v for k, v in line.items() if k in kept}) + "\n" for line in lines]
    (run / "ledger.jsonl").write_text("".join(text))
    assert len(list(schedule_charts(read_run(run)))) == 1


@pytest.mark.parametrize("broken", ["[train]\nsteps = 60\nramp = 7\n", "nothing", ""])
def test_an_unreadable_configuration_leaves_what_was_done(make_run: MakeRun, broken: str) -> None:
    run = furnished(make_run(), 40)
    (run / "run.toml").write_text(broken)
    drawn = list(schedule_charts(read_run(run)))
    assert len(drawn) == 4
    assert all(set(curves(chart)) == {"so far"} for chart in drawn)


def test_spikes_are_counted(make_run: MakeRun) -> None:
    run = furnished(make_run(), 40)
    lines = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    event = {"action": "replaced", "window": 80, "windows": 8, "loss": 9.0, "gradient_norm": 1.0}
    lines[10]["spikes"] = [event, {**event, "window": 88}]
    lines[20]["spikes"] = [{**event, "action": "taken"}]
    lines[30]["spikes"] = "nonsense"
    (run / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [step for step, _ in read_run(run).spikes] == [11, 11]
    page = write_report(run).read_text()
    assert "Spikes" in page and "2 batches left out" in page
