"""How far the steps of a run stray when another machine's arithmetic takes them again.

    python benchmarks/verify_tolerance.py [--case NAME ...] [--steps N] [--json]

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
        "use": "quickstart", "width": 128, "depth": 2,
        "attention": {"heads": 2}, "feedforward": {"hidden": 256},
        "ngrams": {"orders": [2, 3, 4], "rows": 4096, "dim": 16},
    },
    "train": {"context": 256, "batch_tokens": 2048},
}  # fmt: skip
TOKENS = {
    "model": {
        "width": 128, "depth": 3, "attention": {"heads": 4}, "feedforward": {"hidden": 320},
    },
    "text": {"tokenizer": {"kind": "bpe", "size": 1024}},
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
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "FLYWEIGHT_ISA": "avx2"}
# Intel's library counts AVX-512 and AVX2 alike unless it is told.
AVX2 = {**AVX2, "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
WAYS: dict[str, tuple[int, dict[str, str]]] = {
    "2 threads": (2, {}),
    "4 threads": (4, {}),
    "PyTorch's AVX2 kernels": (1, {"ATEN_CPU_CAPABILITY": "avx2"}),
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
    (folder / "case.toml").write_text(toml.dumps(values))
    command = [sys.executable, "-m", "flyweight", "train", "case.toml", "--out", "run"]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=sys.stderr)
    return folder / "run"


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


def measure(run: Path, steps: int, way: str) -> list[dict[str, Any]]:
    """Rows of the table: this way's largest differences within so many steps of each begin."""
    threads, settings = WAYS[way]
    rows = []
    for begin in (0, steps):
        command = [sys.executable, __file__, "--again", str(run), str(begin), str(begin + steps)]
        done = subprocess.run(
            [*command, str(threads)], env={**os.environ, **settings},
            stdout=subprocess.PIPE, check=True, text=True,
        )  # fmt: skip
        found = json.loads(done.stdout)
        for mark in marks(steps):
            keys = ("loss", "gradient_norm", "tensors")
            most = {k: max(each.get(k, 0.0) for each in found[:mark]) for k in keys}
            rows.append({"way": way, "from": begin, "steps": mark, **most})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--again", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.again:
        path, begin, last, threads = given.again
        print(json.dumps(again(Path(path), int(begin), int(last), int(threads))))
        return
    results: dict[str, Any] = {"machine": header(), "cases": {}}
    for case in given.case or CASES:
        with tempfile.TemporaryDirectory() as folder:
            run = make(Path(folder), case, given.steps)
            rows = [row for way in WAYS for row in measure(run, given.steps, way)]
        results["cases"][case] = rows
        if not given.json:
            print(
                f"\n{case}\n{'':<26}{'from':>6}{'steps':>7}{'loss':>10}{'norm':>10}{'tensors':>10}"
            )
            for row in rows:
                figures = (row["loss"], row["gradient_norm"], row["tensors"])
                shown = "".join(f"{figure:>10.1e}" for figure in figures)
                print(f"{row['way']:<26}{row['from']:>6}{row['steps']:>7}{shown}", flush=True)
    if given.json:
        print(json.dumps(results))
    else:
        print("\n" + "\n".join(lines(results["machine"])))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
