"""Tokens a second of one whole training step, against litgpt and transformers' Llama.

    python benchmarks/train_throughput.py [--rounds N] [--shapes 10m,50m] [--device cpu] [--json]
    python benchmarks/train_throughput.py --device cuda [--alone]

Everybody trains the same Llama-shaped model (RMSNorm with gains, RoPE, SwiGLU, untied head) on
the same batch: forward, backward, clipping, fused AdamW, matrix products in bfloat16. The peers
run in environments of their own, made on the first call under ~/.cache/flyweight-bench (or
FLYWEIGHT_BENCH_CACHE). Each contender is first tried in its variants: eager or torch.compile,
and for the peers bfloat16 weights or autocast over float32 ones (ours are always float32).
The variants near a contender's best go on to the rounds, in which one process computes at a
time and the order turns; a contender counts by its best variant. The share of the peak
counts the model's own operations alone: 6 per matrix weight and token, and the half of the
attention's scores that the causal mask leaves. Pin the threads with OMP_NUM_THREADS.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from machine import header, lines
from own_python import own_python, say

from flyweight.files.atomic import write_text

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "peers"))

from protocol import Shape, matrix_peak  # noqa: E402

RESULTS = HERE / "results/train_throughput.json"
OURS = "flyweight"
GOAL = 1.3
SHAPES = {
    "10m": Shape(4096, width=320, depth=6, heads=5, hidden=864, context=512, batch=16),
    "50m": Shape(32000, width=512, depth=6, heads=8, hidden=1376, context=512, batch=8),
    "125m": Shape(32000, width=768, depth=12, heads=12, hidden=2048, context=2048, batch=16),
    "350m": Shape(32000, width=1024, depth=24, heads=16, hidden=2816, context=2048, batch=8),
}
# What each device is measured with, and the share of its matrix peak that is aimed at.
USUAL = {"cpu": ["10m", "50m"], "cuda": ["125m", "350m"]}
SHARE_GOAL = {"cuda": 0.45}
PEERS = {"litgpt": ["litgpt==0.5.13"], "transformers": ["transformers==5.23.0"]}
PEER_VARIANTS = ["eager bf16-true", "eager bf16-mixed", "compile bf16-true", "compile bf16-mixed"]
VARIANTS = {OURS: ["eager", "compile"], **dict.fromkeys(PEERS, PEER_VARIANTS)}
# Variants this much slower than their contender's best are left out of the rounds.
NEAR = 1.1


class Worker:
    """A contender's variant in a process of its own; it computes only when asked."""

    def __init__(self, name: str, variant: str, python: str) -> None:
        self.name, self.variant = name, variant
        program = HERE / f"peers/train_{name}.py"
        self.process = subprocess.Popen(
            [python, str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "the process died"}
        return answer

    def close(self) -> None:
        self.process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--shapes", help="default: 10m,50m on a processor, 125m,350m on a card")
    parser.add_argument("--alone", action="store_true", help="without the peers")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", action="store_true", help="JSON instead of the table")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    wanted = arguments.shapes.split(",") if arguments.shapes else USUAL[arguments.device]
    unknown = [name for name in wanted if name not in SHAPES]
    if unknown or arguments.rounds < 1:
        parser.error(f"--shapes takes {', '.join(SHAPES)}; --rounds at least 1")
    peers = [] if arguments.alone else PEERS
    pythons = {OURS: sys.executable, **{name: environment(name) for name in peers}}
    machine = header(arguments.device)
    results: dict[str, Any] = {"machine": machine, "device": arguments.device, "shapes": {}}
    for name in wanted:
        measured = measure(SHAPES[name], name, pythons, arguments.rounds, arguments.device)
        results["shapes"][name] = measured
        arguments.results.parent.mkdir(parents=True, exist_ok=True)
        write_text(arguments.results, json.dumps(results, indent=1) + "\n")
    print(json.dumps(results) if arguments.json else "\n".join(table(results)))


def environment(name: str) -> str:
    """The peer's own interpreter, set up on the first call."""
    # torch first and pinned, so that no resolver draws in another build of it.
    torch_only = [f"torch=={torch.__version__.split('+')[0]}", "numpy"]
    index = os.environ.get("TORCH_INDEX_URL")
    first = [*(["--index-url", index] if index else []), *torch_only]
    return own_python(name, [first, [*torch_only[:1], *PEERS[name]]])


def measure(
    shape: Shape, label: str, pythons: dict[str, str], rounds: int, device: str
) -> dict[str, Any]:
    """Choose the variants, then the rounds. All figures of one shape."""
    tried = []
    for name, python in pythons.items():
        for variant in VARIANTS[name]:
            tried.append(attempt(shape, label, name, variant, python, device))
    finalists = [t for t in tried if "error" not in t and t["seconds"] <= NEAR * best_of(tried, t)]
    workers: list[Worker] = []
    runs: dict[str, list[dict[str, Any]]] = {}
    try:
        for entry in finalists:
            worker = Worker(entry["name"], entry["variant"], pythons[entry["name"]])
            workers.append(worker)
            built = worker.ask(
                do="build", shape=vars(shape), variant=entry["variant"], device=device, warm_up=3
            )
            if "error" in built:
                sys.exit(f"{worker.name} {worker.variant}: {built['error']}")
            runs[key(entry)] = []
        peaks = []
        for number in range(rounds):
            peaks.append(matrix_peak(torch.bfloat16, device, repeat=8))
            turn = number % len(workers)
            for worker in workers[turn:] + workers[:turn]:
                run = worker.ask(do="round", steps=1 if device == "cpu" else 20)
                if "error" in run:
                    sys.exit(f"{worker.name} {worker.variant}: {run['error']}")
                runs[f"{worker.name} {worker.variant}"].append(run)
            ours = min(r[-1]["seconds"] for k, r in runs.items() if k.startswith(OURS))
            say(f"{label}: round {number + 1} of {rounds}, ours {ours:.3f} s a step")
    finally:
        for worker in workers:
            worker.close()
    return summary(shape, tried, runs, peaks)


def attempt(
    shape: Shape, label: str, name: str, variant: str, python: str, device: str
) -> dict[str, Any]:
    """Build a variant and time three steps of it."""
    worker = Worker(name, variant, python)
    entry: dict[str, Any] = {"name": name, "variant": variant}
    try:
        request = {"shape": vars(shape), "variant": variant, "device": device}
        built = worker.ask(do="build", warm_up=2, **request)
        if "error" not in built:
            times = [worker.ask(do="round", steps=1) for _ in range(3)]
            entry |= {"start_seconds": round(built.pop("seconds"), 1), **built}
            entry["seconds"] = min(t["seconds"] for t in times)
            say(f"{label}: {name} {variant}: {entry['seconds']:.3f} s a step")
        else:
            entry["error"] = built["error"]
            say(f"{label}: {name} {variant}: {built['error']}")
    finally:
        worker.close()
    return entry


def best_of(tried: list[dict[str, Any]], entry: dict[str, Any]) -> float:
    mine = [t for t in tried if t["name"] == entry["name"] and "error" not in t]
    return float(min(t["seconds"] for t in mine))


def key(entry: dict[str, Any]) -> str:
    return f"{entry['name']} {entry['variant']}"


def operations(shape: Shape) -> float:
    """Floating-point operations of a step that the model itself asks for."""
    block = shape.width * (4 * shape.width + 3 * shape.hidden)
    weights = shape.depth * block + shape.vocab_size * shape.width
    scores = shape.depth * shape.width * (shape.context + 1)
    return 6.0 * (weights + scores) * shape.batch * shape.context


def summary(
    shape: Shape,
    tried: list[dict[str, Any]],
    runs: dict[str, list[dict[str, Any]]],
    peaks: list[float],
) -> dict[str, Any]:
    """Medians and ratios. A contender is its variant with the best median."""
    tokens, peak = shape.batch * shape.context, statistics.median(peaks)
    rows = []
    for name, found in runs.items():
        seconds = statistics.median(run["seconds"] for run in found)
        rows.append(
            {
                "contender": name.split()[0],
                "variant": name.partition(" ")[2],
                "seconds": seconds,
                "processor_seconds": statistics.median(r["processor_seconds"] for r in found),
                "tokens_per_second": tokens / seconds,
                "share_of_peak": operations(shape) / seconds / peak,
                "rounds": [round(run["seconds"], 4) for run in found],
            }
        )
    rows.sort(key=lambda row: row["seconds"])
    ours = next(row for row in rows if row["contender"] == OURS)
    for row in rows:
        pairs = zip(row["rounds"], ours["rounds"], strict=True)
        row["ours_times_faster"] = statistics.median(theirs / own for theirs, own in pairs)
    best = next((row for row in rows if row["contender"] != OURS), None)
    return {
        "shape": vars(shape),
        "tokens": tokens,
        "operations": operations(shape),
        "bf16_peak_gflops": [round(p / 1e9) for p in peaks],
        "tried": tried,
        "rows": rows,
        "ours_over_best_peer": best["ours_times_faster"] if best else None,
    }


def table(results: dict[str, Any]) -> list[str]:
    out = lines(results["machine"])
    for name, found in results["shapes"].items():
        shape = found["shape"]
        parameters = found["tried"][0].get("parameters", 0) / 1e6
        out += [
            "",
            f"{name}: {parameters:.1f}M parameters, width {shape['width']}, depth"
            f" {shape['depth']}, vocabulary {shape['vocab_size']}, {shape['batch']} x"
            f" {shape['context']} tokens a step; bf16 peak"
            f" {statistics.median(found['bf16_peak_gflops'])} GFLOP/s",
            f"{'':<34}{'tokens/s':>10}{'s/step':>9}{'cpu s':>9}{'of peak':>9}{'ours is':>10}",
        ]
        for row in found["rows"]:
            out.append(
                f"  {row['contender'] + ' ' + row['variant']:<32}"
                f"{row['tokens_per_second']:>10.0f}{row['seconds']:>9.3f}"
                f"{row['processor_seconds']:>9.3f}"
                f"{row['share_of_peak']:>9.1%}{row['ours_times_faster']:>9.2f}x"
            )
        ratio = found["ours_over_best_peer"]
        if ratio is not None:
            verdict = "reached" if ratio >= GOAL else "MISSED"
            out.append(f"  ours over the best peer: {ratio:.2f} (goal {GOAL}: {verdict})")
        if (aim := SHARE_GOAL.get(results["device"])) is not None:
            share = max(row["share_of_peak"] for row in found["rows"] if row["contender"] == OURS)
            verdict = "reached" if share >= aim else "MISSED"
            out.append(f"  ours of the card's matrix peak: {share:.1%} (goal {aim:.0%}: {verdict})")
        versions = {k: v for t in found["tried"] for k, v in t.get("versions", {}).items()}
        out.append("  " + ", ".join(f"{k} {v}" for k, v in versions.items()))
    return out


if __name__ == "__main__":
    main()
