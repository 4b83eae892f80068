"""Other data from the step at which the rate begins its decay (MiniCPM), and what `inspect` shows
of a run whose steps are not all alike."""

from __future__ import annotations

import heapq
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

CONFIG = """
[model]
width = 32
depth = 1
attention = { heads = 2 }
feedforward = { hidden = 32 }
[data.sources.code]
paths = ["texts"]
[data.sources.talk]
paths = ["talk"]
[data.mix]
weights = { code = 1.0, talk = 0.0 }
decay = { weights = { code = 0.5, talk = 0.5 } }
[train]
context = 64
batch_tokens = 512
steps = 12
threads = 1
precision = "f32"
schedule = { warmup = 2, decay = 0.25 }
ramp = [{ batch_tokens = 128, until = 0.5 }]
spikes = { window = 8, threshold = 0.01, tries = 1 }
"""


def batch_of(program: Any, step: int) -> list[list[dict[str, Any]]]:
    said = program("data", "inspect", "run", "--step", str(step), "--json").ok()
    rows: list[list[dict[str, Any]]] = json.loads(said.out)["rows"]
    return rows


def test_the_decay_reads_its_own_mix(program: Any) -> None:
    talk = program.folder / "talk"
    talk.mkdir()
    for module in (statistics, heapq):
        shutil.copy(str(module.__file__), talk / f"talk_{module.__name__}.txt")
    (program.folder / "switch.toml").write_text(CONFIG)
    program("train", "switch.toml", "--out", "run").ok()
    run: Path = program.folder / "run"
    lines = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    assert [line["mix"] for line in lines] == ["main"] * 9 + ["decay"] * 3
    moved = [line["step"] for line in lines if "spikes" in line]
    assert moved, "some steps took other windows than planned"
    read: dict[str, set[str]] = {"main": set(), "decay": set()}
    for step in {1, 8, *moved[:1], 11, 12}:
        line, rows = lines[step - 1], batch_of(program, step)
        assert len(rows) == (2 if step <= 6 else 8)
        read[line["mix"]] |= {Path(part["name"]).name for row in rows for part in row}
        if step == moved[0]:
            # Behind what the ramp alone comes to.
            assert line["window"] > 2 * (min(step, 7) - 1) + 8 * max(0, step - 7)
    assert not any(name.startswith("talk_") for name in read["main"])
    assert any(name.startswith("talk_") for name in read["decay"])
    assert not all(name.startswith("talk_") for name in read["decay"])
    program("verify", "run").ok()
    page = (run / "report.html").read_text()
    assert "Data mix" in page and "Batch" in page


def test_a_decay_mix_needs_a_decay(program: Any) -> None:
    (program.folder / "switch.toml").write_text(CONFIG)
    refused = program("train", "switch.toml", "train.schedule.kind=cosine")
    refused.failed("data.mix.decay", "cosine")
