"""What damaged data do to a run, and what is left of it behind a guard.

    python benchmarks/spikes.py [--steps N] [--json]

A byte model of 2 blocks of 128 reads fairy tales (shared/data/pretrain/fairytales_en.jsonl.zst).
Three bursts of its batches are noise, the last shortly before the end, where the rate decays. The
same run is made of clean data, and of damaged data bare, replacing the batches that spike, and
skipping eight at a time. The figure is the loss on 20 batches of the same text that no run reads.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import header

from flyweight.data.batches import Batch, Batches
from flyweight.data.build import build
from flyweight.data.shards import Dataset
from flyweight.model.decoder import Decoder
from flyweight.model.init import init_weights
from flyweight.spec.model import ModelSpec
from flyweight.spec.run import Data, Tokenizer, Train
from flyweight.text.tokenizer import byte_lengths
from flyweight.train.loop import take_step
from flyweight.train.objective import next_token_loss
from flyweight.train.optimizer import Optimizer
from flyweight.train.session import Session
from flyweight.train.state import TrainState

HERE = Path(__file__).resolve().parent
TEXT = HERE.parents[1] / "shared/data/pretrain/fairytales_en.jsonl.zst"
RESULTS = HERE / "results/spikes.json"
CONTEXT, ROWS = 128, 8
MODEL = {
    "vocab_size": 258,
    "width": 128,
    "depth": 2,
    "context": CONTEXT,
    "attention": {"heads": 4},
    "feedforward": {"hidden": 384},
}


class Damaged(Batches):
    """The dataset with noise in place of the windows of some batches."""

    damaged: frozenset[int] = frozenset()

    def take(
        self, first: int, count: int, rows: slice | None = None, context: int | None = None
    ) -> Batch:
        batch = super().take(first, count, rows, context)
        for row in range(len(batch.tokens_BT)):
            if (first + row) // ROWS in self.damaged:
                noise = np.random.default_rng(first + row).integers(0, 256, self.context + 1)
                batch.tokens_BT[row], batch.targets_BT[row] = noise[:-1], noise[1:]
        return batch


class Silent:
    def start(self, total_steps: int, name: str) -> None: ...
    def step(self, record: dict[str, Any]) -> None: ...
    def sample(self, step: int, prompt: str, text: str) -> None: ...
    def notice(self, text: str) -> None: ...
    def stop(self) -> None: ...


def run(
    dataset: Dataset, steps: int, damaged: frozenset[int], spikes: dict[str, Any] | None
) -> dict[str, float]:
    """Train once; the held-back loss in bits per byte, and how many batches were left out."""
    schedule = {"kind": "wsd", "peak": 0.005, "warmup": 20, "decay": 0.3}
    optimizer = {"kind": "adamw", "embedding_rate": 1.0, "vector_rate": 1.0}
    values: dict[str, Any] = {
        "context": CONTEXT,
        "batch_tokens": CONTEXT * ROWS,
        "schedule": schedule,
    }
    values["optimizer"] = optimizer
    train = Train.parse({**values, "steps": steps, **({"spikes": spikes} if spikes else {})})
    batches = Damaged(dataset, CONTEXT, CONTEXT * ROWS, 0)
    batches.damaged = damaged
    lengths = byte_lengths(dataset.tokenizer)
    session = Session(train, batches, lengths, torch.float32, "cpu", Silent())
    model = Decoder(ModelSpec.parse(MODEL))
    init_weights(model, 0)
    state = TrainState(model, Optimizer(train.optimizer, model))
    left_out = 0
    while state.step < steps:
        events = take_step(state, session).get("spikes", [])
        left_out += sum(event["windows"] for event in events) // ROWS
    total = 0.0
    for step in range(2 * steps, 2 * steps + 20):
        batch = batches.batch(step)
        tokens, targets = torch.from_numpy(batch.tokens_BT), torch.from_numpy(batch.targets_BT)
        with torch.no_grad():
            total += float(next_token_loss(model, tokens, targets, None, torch.float32))
    return {
        "bits_per_byte": total / (20 * CONTEXT * ROWS) / math.log(2),
        "left_out": left_out,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    steps: int = asked.steps
    bursts = ((0.4, 4), (0.7, 4), (0.94, 8))
    damaged = frozenset(int(at * steps) + i for at, count in bursts for i in range(count))
    ways: dict[str, tuple[frozenset[int], dict[str, Any] | None]] = {
        "clean": (frozenset(), {"tries": 8}),
        "damaged, bare": (damaged, None),
        "damaged, replaced": (damaged, {"tries": 8}),
        "damaged, skipped": (damaged, {"tries": 8, "skip": 8}),
    }
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as made:
        data = Data.parse({"train": [str(TEXT)]})
        dataset = build(data, Tokenizer(), Path(made) / "dataset")
        print(f"{steps} steps, {len(damaged)} damaged batches", flush=True)
        print("| | bits per byte | of the clean one | batches left out |\n|---|---:|---:|---:|")
        for name, (which, spikes) in ways.items():
            found[name] = run(dataset, steps, which, spikes)
            bits, share = found[name]["bits_per_byte"], found["clean"]["bits_per_byte"]
            left_out = found[name]["left_out"]
            print(f"| {name} | {bits:.4f} | {bits / share - 1:+.2%} | {left_out} |", flush=True)
    result = {"machine": header(), "steps": steps, "runs": found}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    if asked.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
