"""What each process of a job holds, beside the formulas of ZeRO (arXiv:1910.02054).

    python benchmarks/sharding_memory.py [--processes 1,2,4] [--json]

A Llama-shaped model trains two steps of two micro-batches with AdamW in float32, once for every
level of distributed.shard, on gloo. In the second step, between the two micro-batches, every tensor
that the process holds is counted, each memory once: parameters, gradients and the optimiser's state
then exist all at once, and activations do not.

For P parameters of 4 bytes and N processes a process holds

    none          4 P + 4 P + 8 P            parameters, gradients, two moments
    optimizer     4 P + 4 P + (4 P + 8 P)/N  the optimiser's part: its parameters and the moments
    gradients     4 P + (4 P + 4 P + 8 P)/N
    parameters    (4 P + 4 P + 8 P)/N

which are ZeRO's with a float32 copy beside a float32 model (FSDP2 keeps each process's part of the
parameters apart from the whole ones; in "parameters" the part is all there is).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from machine import lines

from flyweight.files.atomic import write_text
from flyweight.model.decoder import Decoder
from flyweight.model.init import init_weights
from flyweight.spec.model import ModelSpec
from flyweight.spec.run import Distributed
from flyweight.spec.run import Optimizer as OptimizerSpec
from flyweight.train.layout import HERE, Layout
from flyweight.train.machine import environment
from flyweight.train.objective import next_token_loss
from flyweight.train.optimizer import Optimizer
from flyweight.train.processes import Processes, joined

RESULTS = Path(__file__).resolve().parent / "results/sharding_memory.json"
LEVELS = ("none", "optimizer", "gradients", "parameters")
CONTEXT = 64
SPEC = ModelSpec.parse(
    {
        "vocab_size": 8000,
        "width": 384,
        "depth": 8,
        "context": CONTEXT,
        "attention": {"heads": 6},
        "feedforward": {"hidden": 1024},
    }
)
GOAL = 0.05


def formula(level: str, parameters: int, processes: int) -> float:
    """Bytes of a process, as above."""
    if processes == 1 or level == "none":
        return 16.0 * parameters
    whole = {"optimizer": 8, "gradients": 4, "parameters": 0}[level]
    parts = {"optimizer": 12, "gradients": 16, "parameters": 16}[level]
    return parameters * (whole + parts / processes)


def held() -> int:
    """Bytes of all tensors that are alive in this process, each memory counted once."""
    gc.collect()
    found: dict[int, int] = {}
    # By type: isinstance wakes what torch.distributed keeps for old programs, and its warnings.
    kinds = torch.Tensor, torch.nn.Parameter
    for thing in gc.get_objects():
        if type(thing) not in kinds:
            continue  # a spread tensor's own part is an ordinary tensor
        for tensor in (thing, thing.grad if thing.is_leaf else None):
            if type(tensor) not in kinds:
                continue
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def measure(level: str, processes: Processes) -> int:
    torch.set_num_threads(1)
    before = held()
    model = Decoder(SPEC)
    init_weights(model, 0)
    layout: Layout = HERE
    if processes.size > 1:
        from flyweight.train.distributed import Sharded

        layout = Sharded(model, Distributed.parse({"shard": level}), processes.arranged(1, "cpu"))
    optimizer = Optimizer(OptimizerSpec.parse({"kind": "adamw"}), model, layout)
    generator = torch.Generator().manual_seed(processes.rank)
    bytes_held = 0
    for step in range(2):
        for last in (False, True):
            layout.accumulate(last)
            tokens = torch.randint(SPEC.vocab_size, (1, CONTEXT + 1), generator=generator)
            loss = next_token_loss(
                model, tokens[:, :-1], tokens[:, 1:], None, torch.float32, 2 * CONTEXT
            )
            loss.backward()
            del loss, tokens
            if step == 1 and not last:
                bytes_held = held() - before
        optimizer.apply(1e-3, 1.0, optimizer.gather())
    return bytes_held


def work(level: str, out: Path) -> None:
    """One process of a job: its bytes into ``out``."""
    with joined() as processes:
        (out / f"{processes.rank}.json").write_text(json.dumps(measure(level, processes)))


def run(processes: int, level: str) -> list[int]:
    """The bytes of each process."""
    with tempfile.TemporaryDirectory() as out:
        several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        command = [sys.executable, *([*several, str(processes)] if processes > 1 else [])]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(
            [*command, __file__, "--work", level, out], check=True, env=environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE if processes > 1 else None,
        )  # fmt: skip
        return [json.loads((Path(out) / f"{r}.json").read_text()) for r in range(processes)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", default="1,2,4")
    parser.add_argument("--json", action="store_true", help="JSON instead of the table")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work[0], Path(arguments.work[1]))
        return
    parameters = sum(p.numel() for p in Decoder(SPEC).parameters())
    rows = []
    for processes in (int(n) for n in arguments.processes.split(",")):
        for level in LEVELS if processes > 1 else LEVELS[:1]:
            found, wanted = run(processes, level), formula(level, parameters, processes)
            worst = max(found, key=lambda held: abs(held / wanted - 1))
            rows.append(
                {
                    "processes": processes,
                    "shard": level,
                    "formula_mib": wanted / 2**20,
                    "measured_mib": [held / 2**20 for held in found],
                    "worst": worst / wanted - 1,
                }
            )
    results: dict[str, Any] = {"machine": environment(), "parameters": parameters, "rows": rows}
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    write_text(arguments.results, json.dumps(results, indent=1) + "\n")
    print(json.dumps(results) if arguments.json else "\n".join(table(results)))


def table(results: dict[str, Any]) -> list[str]:
    out = [*lines(results["machine"]), ""]
    out.append(f"{results['parameters'] / 1e6:.1f}M parameters, float32, AdamW; MiB a process")
    out.append(f"{'processes':>9} {'shard':<12}{'formula':>9}{'least':>9}{'most':>9}{'off':>8}")
    for row in results["rows"]:
        found = row["measured_mib"]
        verdict = "" if abs(row["worst"]) <= GOAL else "  MISSED"
        out.append(
            f"{row['processes']:>9} {row['shard']:<12}{row['formula_mib']:>9.1f}"
            f"{min(found):>9.1f}{max(found):>9.1f}{row['worst']:>+8.1%}{verdict}"
        )
    return out


if __name__ == "__main__":
    main()
