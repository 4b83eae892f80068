"""How far the steps of a run stray when another machine's arithmetic takes them again.

    python benchmarks/verify_tolerance.py [--case NAME ...] [--way NAME ...] [--steps N] [--json]

`flyweight verify` compares bit for bit on the same kind of processor, and within a tolerance
elsewhere. Other processors are had here as other numbers of threads, and by keeping PyTorch (its
own kernels, oneDNN, MKL) and our kernels from the processor's newer instructions. Each small run
is made once, of 2 N steps with one thread and all instructions, and taken again in each of the
other ways: from its seed's weights for N steps, and from its checkpoint N for N more. Printed: the
largest relative differences of losses and gradient norms, and |ours - theirs| / |theirs| of the
worst tensor of a checkpoint (weights and optimiser state), within the first 1, 10, 100, ... steps.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from machine import header, lines

from flyweight.files.run import RunFolder
from flyweight.files.tensors import read_tensors
from flyweight.report.live import PlainView
from flyweight.train.loop import take_step
from flyweight.train.prepare import prepare
from flyweight.train.start import open_dataset

RESULTS = Path(__file__).resolve().parent / "results/verify_tolerance.json"
LIBRARY = Path(str(tempfile.__file__)).parent
TEXTS = [str(LIBRARY / name) for name in ("argparse.py", "tarfile.py", "typing.py", "doctest.py")]
QUICKSTART = {
    "model": {
        "use": "quickstart", "width": 96, "depth": 2,
        "attention": {"heads": 2}, "feedforward": {"hidden": 192},
        "ngrams": {"orders": [2, 3, 4], "rows": 4096, "dim": 16},
    },
    "train": {"context": 128, "batch_tokens": 1024},
}  # fmt: skip
TOKENS = {
    "model": {
        "width": 96, "depth": 3, "attention": {"heads": 4}, "feedforward": {"hidden": 256},
    },
    "text": {"tokenizer": {"kind": "bpe", "size": 512}},
    "train": {
        "context": 128, "batch_tokens": 1024,
        "optimizer": {"kind": "adamw", "weight_decay": 0.1}, "schedule": {"peak": 0.003},
    },
}  # fmt: skip
CASES = {
    "quickstart f32": (QUICKSTART, "f32"),
    "quickstart bf16": (QUICKSTART, "bf16"),
    "tokens adamw f32": (TOKENS, "f32"),
    "tokens adamw bf16": (TOKENS, "bf16"),
}
# All three of PyTorch's libraries at once.
TORCH_AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}  # fmt: skip
AVX2 = {**TORCH_AVX2, "FLYWEIGHT_ISA": "avx2"}
WAYS: dict[str, tuple[int, dict[str, str]]] = {
    "2 threads": (2, {}),
    "4 threads": (4, {}),
    "PyTorch in AVX2": (1, TORCH_AVX2),
    "oneDNN without AMX": (1, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}),
    "our kernels in AVX2": (1, {"FLYWEIGHT_ISA": "avx2"}),
    "all in AVX2": (1, AVX2),
    "all in AVX2, 2 threads": (2, AVX2),
    "no vectors": (
        1,
        {
            "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41",
            "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "FLYWEIGHT_ISA": "portable",
        },
    ),
}  # fmt: skip


def marks(steps: int) -> list[int]:
    """Where the table has a row: 1, 10, 100, ... and the last."""
    found = [1]
    while found[-1] * 10 < steps:
        found.append(found[-1] * 10)
    return [*found, steps]


def make(folder: Path, case: str, steps: int) -> Path:
    """The run, made through the command line; its folder."""
    tables, precision = CASES[case]
    at = sorted({begin + mark for begin in (0, steps) for mark in marks(steps)} | {steps})
    train = {
        **tables["train"], "steps": 2 * steps, "threads": 1, "precision": precision,
        "compile": "off", "sample_every": 10**6, "checkpoint": {"at": at},
    }  # fmt: skip
    from flyweight.spec import toml

    values = {**tables, "data": {"train": TEXTS}, "train": train}
    config, run = folder / f"{case}.toml", folder / case
    config.write_text(toml.dumps(values))
    command = [sys.executable, "-m", "flyweight", "train", str(config), "--out", str(run)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return run


def again(path: Path, begin: int, last: int, threads: int) -> list[dict[str, float]]:
    """The steps after ``begin`` up to ``last``, each with its differences from what is recorded."""
    run = RunFolder.open(path)
    session, state = prepare(run.spec(), open_dataset(run), PlainView(sys.stderr, quiet=True))
    torch.set_num_threads(threads)
    if begin:
        state.load(run.checkpoint_path(begin))
    state.model.train()
    ledger, found = run.read_ledger(), []
    while state.step < last:
        line, record = ledger[state.step], take_step(state, session)
        assert record["digest"] == line["digest"]
        each = {k: abs(record[k] / line[k] - 1) for k in ("loss", "gradient_norm")}
        if state.step in run.steps():
            each["tensors"] = max(
                _distance(tensors[key], theirs[key])
                for file, tensors in state.files().items()
                for theirs in [read_tensors(run.checkpoint_path(state.step) / file)]
                for key in theirs
            )
        found.append(each)
    return found


def _distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    norm = torch.linalg.vector_norm
    scale = norm(theirs.double())
    return float(norm(ours.double() - theirs.double()) / scale) if scale else 0.0


def rows_of(found: list[dict[str, float]], way: str, begin: int) -> list[dict[str, Any]]:
    """Rows of the table: this way's largest differences within so many steps of ``begin``."""
    keys = ("loss", "gradient_norm", "tensors")
    return [
        {
            "way": way, "from": begin, "steps": mark,
            **{key: max(each.get(key, 0.0) for each in found[:mark]) for key in keys},
        }
        for mark in marks(len(found))
    ]  # fmt: skip


def measure(runs: dict[str, Path], steps: int, way: str) -> dict[str, list[dict[str, Any]]]:
    """{case: its rows}, all of one way in one process of that kind."""
    threads, settings = WAYS[way]
    command = [sys.executable, __file__, "--again", str(threads), "--steps", str(steps)]
    done = subprocess.run(
        [*command, *map(str, runs.values())],
        env={**os.environ, "OMP_WAIT_POLICY": "passive", **settings},
        stdout=subprocess.PIPE, check=True, text=True,
    )  # fmt: skip
    return {
        case: [row for begin, found in zip((0, steps), both, strict=True)
               for row in rows_of(found, way, begin)]
        for case, both in zip(runs, json.loads(done.stdout), strict=True)
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--way", action="append", choices=WAYS)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--again", type=int, help=argparse.SUPPRESS)
    parser.add_argument("runs", nargs="*", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    steps = given.steps
    if given.again:
        both = [[again(run, n, n + steps, given.again) for n in (0, steps)] for run in given.runs]
        print(json.dumps(both))
        return
    results: dict[str, Any] = {"machine": header(), "cases": {}}
    with tempfile.TemporaryDirectory() as folder:
        runs = {case: make(Path(folder), case, steps) for case in given.case or CASES}
        found = [measure(runs, steps, way) for way in given.way or WAYS]
    for case in runs:
        rows = results["cases"][case] = [row for each in found for row in each[case]]
        if not given.json:
            print(
                f"\n{case}\n{'':<26}{'from':>6}{'steps':>7}{'loss':>10}{'norm':>10}{'tensors':>10}"
            )
            for row in rows:
                figures = (row["loss"], row["gradient_norm"], row["tensors"])
                shown = "".join(f"{figure:>10.1e}" for figure in figures)
                print(f"{row['way']:<26}{row['from']:>6}{row['steps']:>7}{shown}")
    print(json.dumps(results) if given.json else "\n" + "\n".join(lines(results["machine"])))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
