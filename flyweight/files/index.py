"""RUN/checkpoints.jsonl: a line for every checkpoint that was ever saved, kept or not."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from flyweight.files.atomic import write_text
from flyweight.files.run import STATE, RunFolder, json_lines, read_checkpoint_state

# Steps that a checkpoint's mean loss is taken over: one batch's loss says little of a model.
MEAN_OVER = 100


def entry(state: dict[str, Any], ledger: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A checkpoint's line: ``state`` is its state.json, ``ledger`` the lines up to its step, of
    which the last MEAN_OVER are enough.

    ``digest`` is over all of the checkpoint, for state.json holds the files' digests.
    """
    recent = ledger[-MEAN_OVER:]
    losses: dict[str, Any] = {}
    # The weights that a run starts from, as step 0, follow no step.
    if recent:
        last = recent[-1]
        assert last["step"] == state["step"], "the ledger ends where the checkpoint was made"
        losses = {
            "loss": last["loss"],
            "bits_per_byte": last["bits_per_byte"],
            "mean_loss": sum(line["loss"] for line in recent) / len(recent),
        }
    files = {name: digest for name, digest in state["sha256"].items() if name != STATE}
    return {
        "step": state["step"],
        "tokens": state["tokens"],
        "bytes": state["bytes"],
        **losses,
        "chain": state.get("chain"),
        "digest": state["sha256"][STATE],
        "sha256": files,
    }


def add_entry(run: RunFolder, line: dict[str, Any]) -> None:
    """Append a line, flushed to the disk."""
    with open(run.index, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def entries(run: RunFolder) -> list[dict[str, Any]]:
    """The lines by step. A checkpoint that the index lacks, for a crash came between the two, is
    described from its folder and the ledger."""
    found = {line["step"]: line for line in json_lines(run.index)}
    missing = [step for step in run.steps() if step not in found]
    if missing:
        ledger = run.read_ledger()
        for step in missing:
            state = read_checkpoint_state(run.checkpoint_path(step), check=False)
            found[step] = entry(state, [line for line in ledger if line["step"] <= step])
    return [found[step] for step in sorted(found)]


def mend(run: RunFolder, step: int) -> None:
    """Make the index whole up to ``step``, and drop what comes after: it will come again."""
    lines = [line for line in entries(run) if line["step"] <= step]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    if text != (run.index.read_text(encoding="utf-8") if run.index.exists() else ""):
        write_text(run.index, text)
