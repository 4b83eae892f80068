"""`flyweight data inspect RUN --find`: the steps of a run that read a passage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_a_step_that_shows_a_passage_is_found_by_it(
    finished: Callable[[str], Path], command: Any, tmp_path: Path, kind: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished(kind), run)
    step = command("data", "inspect", "run", "--step", "5", "--json").ok().json()
    for number, row in enumerate(step["rows"]):
        text = row[-1]["text"][:30]
        found = command("data", "inspect", "run", "--find", text, "--json").ok().json()
        assert found["steps"] == 12
        there = [each for each in found["readings"] if (each["step"], each["row"]) == (5, number)]
        names = {found["occurrences"][each["occurrence"]]["name"] for each in there}
        assert row[-1]["name"] in names
    # Only what the run has come to was read.
    lines = (run / "ledger.jsonl").read_text().splitlines(keepends=True)
    (run / "ledger.jsonl").write_text("".join(lines[:4]))
    earlier = command("data", "inspect", "run", "--find", text, "--json").ok().json()
    assert earlier["steps"] == 4
    assert earlier["readings"] == [each for each in found["readings"] if each["step"] <= 4]
    # A window that was skipped was not read, and what came after it came later.
    line = json.loads(lines[3])
    lines[3] = json.dumps({**line, "window": line["window"] + 8}) + "\n"
    (run / "ledger.jsonl").write_text("".join(lines[:4]))
    moved = command("data", "inspect", "run", "--find", text, "--json").ok().json()
    skipped = [each["row"] for each in moved["readings"] if each["step"] == 4]
    assert skipped == [each["row"] for each in found["readings"] if each["step"] == 5]
    command("data", "inspect", "run", "--find", "a", "--seed", "3").failed("order of its own")
