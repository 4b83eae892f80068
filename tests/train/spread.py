"""Trains each of a list of cases in the processes of one job, for test_distributed.py.

    torchrun --nproc-per-node N spread.py CASES.json DATASET OUT

OUT/NUMBER.pt gets the losses and norms of every step, and all tensors whole.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from flyweight.data.batches import Batches
from flyweight.data.shards import Dataset
from flyweight.model.decoder import Decoder
from flyweight.model.init import init_weights
from flyweight.report.live import PlainView
from flyweight.spec.model import ModelSpec
from flyweight.spec.run import Distributed, Train
from flyweight.spec.run import Optimizer as OptimizerSpec
from flyweight.text.tokenizer import byte_lengths
from flyweight.train.compiled import parts_to_compile
from flyweight.train.distributed import Sharded
from flyweight.train.layout import HERE, Layout
from flyweight.train.loop import take_step
from flyweight.train.optimizer import Optimizer
from flyweight.train.processes import ALONE, Processes, joined
from flyweight.train.session import Session
from flyweight.train.state import TrainState

STEPS = 4


def train(case: dict[str, Any], dataset: Path, processes: Processes = ALONE) -> dict[str, Any]:
    """Losses, norms, and tensors (in the leader) after STEPS steps of ``case``."""
    torch.set_num_threads(1)
    model = Decoder(ModelSpec.parse(case["model"]))
    init_weights(model, 0)
    layout: Layout = HERE
    if processes.size > 1:
        processes = processes.arranged(case["tensor"], "cpu")
        spread = Distributed(shard=case["shard"], tensor=case["tensor"])
        layout = Sharded(model, spread, processes)
    spec = OptimizerSpec.parse({"kind": case["optimizer"], "weight_decay": 0.01})
    state = TrainState(model, Optimizer(spec, model, layout))
    # Rows that four and six processes share; clipped at every step.
    settings = {"context": 32, "batch_tokens": 12 * 32, "steps": STEPS, "clip": 0.5}
    settings |= {"schedule": {"peak": case.get("peak", 0.005), "warmup": 1}}
    if case.get("micro"):
        settings["micro_batch_tokens"] = case["micro"]
    parsed, opened = Train.parse(settings), Dataset.open(dataset)
    session = Session(
        parsed,
        Batches(opened, 32, parsed.batch_tokens, 5),
        byte_lengths(opened.tokenizer),
        torch.float32,
        "cpu",
        PlainView(sys.stderr, quiet=True),
        processes=processes,
    )
    if case.get("compile"):
        for part in parts_to_compile(model):
            part.compile()
    model.train()
    steps = [take_step(state, session) for _ in range(STEPS)]
    tensors = {f"model {n}": t.clone() for n, t in layout.weights(model).items()}
    tensors |= {f"optimizer {n}": t.clone() for n, t in state.optimizer.tensors().items()}
    figures = [(s["loss"], s["gradient_norm"], s["digest"]) for s in steps]
    return {"steps": figures, "tensors": tensors}


def main() -> None:
    cases, dataset, out = (Path(path) for path in sys.argv[1:])
    with joined() as processes:
        for number, case in enumerate(json.loads(cases.read_text())):
            found = train(case, dataset, processes)
            if processes.leader:
                torch.save(found, out / f"{number}.pt")


if __name__ == "__main__":
    main()
