"""What a run saved, listed; and any of it that is there used as a MODEL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def test_every_checkpoint_is_listed_and_those_kept_are_models(run_copy: Path, command: Any) -> None:
    rows = command("checkpoints", "run", "--json").ok().json()
    assert [(row["step"], row["kept"]) for row in rows] == [(4, False), (8, True), (12, True)]
    ledger = [json.loads(line) for line in (run_copy / "ledger.jsonl").read_text().splitlines()]
    for row in rows:
        line = ledger[row["step"] - 1]
        assert {key: row[key] for key in ("tokens", "loss", "chain")} == {
            key: line[key] for key in ("tokens", "loss", "chain")
        }
    table = command("checkpoints", "run").ok()
    assert [line.split()[0] for line in table.out.splitlines()] == ["step", "4", "8", "12"]
    assert "removed" in table.out.splitlines()[1] and "2 of 3 kept" in table.err
    before = (run_copy / "evaluation.json").exists()
    older = command("eval", "run@8", "--json").ok().json()
    assert older["model"]["step"] == 8 and older["held_out"]["bits_per_byte"] > 0
    assert (run_copy / "evaluation.json").exists() == before, "that is the newest one's"
    newest = command("eval", "run/checkpoints/000012", "--json").ok().json()
    assert newest == json.loads((run_copy / "evaluation.json").read_text())
    command("eval", "run@4").failed("no checkpoint at step 4; it has: 8, 12")
