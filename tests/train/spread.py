"""Trains each of a list of cases in the processes of one job, for test_distributed.py.

    torchrun --nproc-per-node N spread.py CASES.json DATASET OUT

OUT/NUMBER.pt gets what the ledger says of every step, and all tensors whole.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from flyweight.data.shards import Dataset
from flyweight.report.live import PlainView
from flyweight.spec.run import RunSpec
from flyweight.train.compiled import compile_parts
from flyweight.train.loop import take_step
from flyweight.train.prepare import fresh_state, make_session
from flyweight.train.processes import ALONE, Processes, joined

STEPS = 4
# Rows that four and six processes share; clipped at every step.
TRAIN: dict[str, Any] = {
    "context": 32,
    "batch_tokens": 12 * 32,
    "steps": STEPS,
    "clip": 0.5,
    "schedule": {"peak": 0.005, "warmup": 1},
    "precision": "f32",
    "device": "cpu",
    "threads": 1,
}


def train(case: dict[str, Any], dataset: Path, processes: Processes = ALONE) -> dict[str, Any]:
    """The records, and the tensors (in the leader), after STEPS steps of ``case``."""
    settings = {**TRAIN, "optimizer": {"kind": case["optimizer"], "weight_decay": 0.01}}
    settings |= case.get("train", {})
    if case.get("micro"):
        settings["micro_batch_tokens"] = case["micro"]
    spread = {"shard": case["shard"], "tensor": case["tensor"]}
    values = {"model": case["model"], "train": settings, "distributed": spread}
    spec, opened = RunSpec.parse(values), Dataset.open(dataset)
    session = make_session(spec, opened, PlainView(sys.stderr, quiet=True), processes)
    state = fresh_state(spec, opened, session.device, session.processes)
    if case.get("compile"):
        assert compile_parts(state, session)
    state.model.train()
    steps = [take_step(state, session) for _ in range(STEPS)]
    tensors = {
        f"{file} {name}": tensor.clone()
        for file, found in state.files().items()
        for name, tensor in found.items()
    }
    return {"steps": steps, "tensors": tensors}


def main() -> None:
    cases, dataset, out = (Path(path) for path in sys.argv[1:])
    with joined() as processes:
        for number, case in enumerate(json.loads(cases.read_text())):
            found = train(case, dataset, processes)
            if processes.leader:
                torch.save(found, out / f"{number}.pt")


if __name__ == "__main__":
    main()
