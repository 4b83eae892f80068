"""Prefill and decode on the CPU: our engine beside llama.cpp, round by round, as ratios.

    python benchmarks/cpu_inference.py [--cases 10m-q4_0,...] [--rounds N] [--threads N]
                                       [--llama PYTHON] [--quick] [--json]

Every case is a shape with random weights, exported once to GGUF: for llama.cpp expanded where
weights are shared, for us as it is. In each round, each contender in a process of its own and the
others waiting, a fresh text of 512 tokens is read and one token chosen (prefill), then 64 tokens
more (decode). Ratios are medians over rounds, of the same round's times; the bandwidth that the
machine reads at is measured beside every round. `peak` is the process's largest resident memory
above what it was before the model was loaded; `first` the time from nothing to the first token of
a prompt of eight.

llama.cpp comes as the package llama-cpp-python, built from source (minutes) into an environment of
its own below ~/.cache/flyweight-bench, or is taken from --llama. Where the processor has AMX it is
built without, for its AMX kernels crash.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from machine import header, lines
from own_python import CACHE, own_python, say

from flyweight.files.atomic import write_text
from flyweight.files.random_weights import RandomSource
from flyweight.files.to_gguf import export_gguf
from flyweight.measure.cost import read_bandwidth
from flyweight.spec.model import ModelSpec
from flyweight.text.gguf_tokens import placeholder
from flyweight.zoo import catalog

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results/cpu_inference.json"
# Not from pip's cache, which does not know with what options a wheel was built.
LLAMA = ["--no-cache-dir", "llama-cpp-python==0.3.36", "numpy"]
OURS, PEER = "flyweight", "llama.cpp"
PROMPT, TOKENS = 512, 64


class Case(NamedTuple):
    """``decode`` and ``prefill``: the goals, times llama.cpp; None where there is none.

    ``alone``: llama.cpp has nothing to compare (a file that is ours alone).
    """

    model: str
    type: str
    decode: float | None = None
    prefill: float | None = None
    alone: bool = False


# The 10M byte-level Llama of the comparison.
TEN = {
    "vocab_size": 258,
    "width": 320,
    "depth": 8,
    "context": 1024,
    "attention": {"heads": 5},
    "feedforward": {"hidden": 864},
    "tie_embeddings": False,
}
CASES = {
    "10m-q4_0": Case("10m", "q4_0", 2.5, 1.6),
    "350m-q4_0": Case("mobilellm-350m", "q4_0", 1.8, 2.1),
    "350m-q8_0": Case("mobilellm-350m", "q8_0", 1.4, 2.1),
    "350m-q4_k_m": Case("mobilellm-350m", "q4_k_m", 1.4, 2.1),
    "mobillama-q4_0": Case("mobillama-0.5b", "q4_0", 2.2, 2.1),
    "geb-q4_0": Case("geb-1.3b", "q4_0", 1.3, 2.1),
    "geb-bf16": Case("geb-1.3b", "bf16"),
    "geb-f32": Case("geb-1.3b", "f32"),
    "ls-350m-q4_0": Case("mobilellm-ls-350m", "q4_0", alone=True),
}


class Worker:
    """A contender with one model, in a process of its own."""

    def __init__(self, name: str, python: str, path: Path, threads: int) -> None:
        self.name = name
        program = HERE / "peers" / f"infer_{name.replace('.', '_')}.py"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent)])}
        self.process = subprocess.Popen(
            [python, str(program), str(path), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.loaded = self._answer()

    def round(self, prompt: list[int]) -> dict[str, float]:
        """Seconds of prefill and a token of decode."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"prompt": prompt, "tokens": TOKENS}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} died; what it said stands above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write("{}\n")
        self.process.stdin.flush()
        last = self._answer()
        self.process.wait()
        return last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--llama", help="a Python that has llama_cpp")
    parser.add_argument("--models", type=Path, default=CACHE / "models", help="made files")
    parser.add_argument("--quick", action="store_true", help="the smallest case, one round")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    wanted = ["10m-q4_0"] if arguments.quick else arguments.cases.split(",")
    unknown = [name for name in wanted if name not in CASES]
    if unknown or arguments.rounds < 1 or arguments.threads < 1:
        parser.error(f"--cases takes {', '.join(CASES)}; --rounds and --threads at least 1")
    llama = arguments.llama or environment()
    results: dict[str, Any] = {
        "machine": {**header(), "threads": arguments.threads},
        "cases": {},
    }
    for name in wanted:
        rounds = 1 if arguments.quick else arguments.rounds
        results["cases"][name] = measure(name, llama, rounds, arguments)
        arguments.results.parent.mkdir(parents=True, exist_ok=True)
        write_text(arguments.results, json.dumps(results, indent=1) + "\n")
    print(json.dumps(results) if arguments.json else "\n".join(table(results)))


def environment() -> str:
    """The interpreter that has llama.cpp, built on the first call."""
    return own_python("llama-cpp", [LLAMA], {"CMAKE_ARGS": without_amx()})


def without_amx() -> str:
    """llama.cpp's build options where the processor has AMX: all of its other sets.

    Version 0.3.36's AMX kernels end in a segmentation fault at the first prompt.
    """
    try:
        flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    except OSError:
        return ""
    if "amx_int8" not in flags:
        return ""
    sets = ("AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16")
    sets = ("SSE42", "AVX", "AVX2", "BMI2", "FMA", "F16C", *sets)
    return " ".join(["-DGGML_NATIVE=OFF", *(f"-DGGML_{name}=ON" for name in sets)])


def made(case: Case, folder: Path, expand: bool) -> Path:
    """The case's GGUF file, with random weights; made once."""
    spec = ModelSpec.parse(TEN) if case.model == "10m" else catalog.get(case.model).spec
    path = folder / f"{case.model}{'-expanded' if expand else ''}-{case.type}.gguf"
    if not path.exists():
        say(f"making {path.name}")
        folder.mkdir(parents=True, exist_ok=True)
        export_gguf(
            spec,
            RandomSource(spec),
            placeholder(spec.vocab_size),
            path,
            case.model,
            case.type,
            "",
            expand,
            None,
            lambda done, total: None,
        )
    return path


def is_shared(case: Case) -> bool:
    if case.model == "10m":
        return False
    share = catalog.get(case.model).spec.share
    return share.feedforward != "none" or share.block != "none"


def measure(name: str, llama: str, rounds: int, arguments: argparse.Namespace) -> dict[str, Any]:
    case = CASES[name]
    files = {OURS: made(case, arguments.models, False)}
    pythons = {OURS: sys.executable}
    if not case.alone:
        files[PEER] = made(case, arguments.models, True) if is_shared(case) else files[OURS]
        pythons[PEER] = llama
    workers = [Worker(n, pythons[n], files[n], arguments.threads) for n in files]
    found: dict[str, list[dict[str, float]]] = {worker.name: [] for worker in workers}
    bandwidth, seed = [], 1
    for number in range(rounds + 1):
        bandwidth.append(read_bandwidth(arguments.threads))
        turn = number % len(workers)
        for worker in workers[turn:] + workers[:turn]:
            # Text that nobody has seen, in ids that every vocabulary has.
            prompt = [3 + (i * 7919 * seed + i * i) % 250 for i in range(PROMPT)]
            seed += 1
            times = worker.round(prompt)
            if number > 0:  # the first one is for pages and clocks
                found[worker.name].append(times)
        say(f"{name}: round {number} of {rounds}")
    result: dict[str, Any] = {"bandwidth": [round(b / 1e9, 1) for b in bandwidth], "rows": {}}
    for worker in workers:
        closing, times = worker.close(), found[worker.name]
        result["rows"][worker.name] = {
            "file_mib": files[worker.name].stat().st_size / 2**20,
            "prefill": PROMPT / statistics.median(t["prefill"] for t in times),
            "decode": 1 / statistics.median(t["decode"] for t in times),
            "first_seconds": worker.loaded["seconds"],
            "peak_mib": closing["peak_mib"],
            "version": worker.loaded["version"],
            "rounds": times,
        }
    if not case.alone:
        for what in ("prefill", "decode"):
            pairs = zip(found[PEER], found[OURS], strict=True)
            result[what] = statistics.median(theirs[what] / own[what] for theirs, own in pairs)
    return result


def table(results: dict[str, Any]) -> list[str]:
    out = lines(results["machine"])
    for name, found in results["cases"].items():
        case = CASES[name]
        low, high = min(found["bandwidth"]), max(found["bandwidth"])
        out += [
            "",
            f"{name}: {case.model}, {case.type}; the machine reads {low:.1f} to {high:.1f} GB/s",
            f"{'':<12}{'prefill/s':>11}{'decode/s':>10}{'file MiB':>10}"
            f"{'peak MiB':>10}{'first s':>9}",
        ]
        for contender, row in found["rows"].items():
            out.append(
                f"  {contender:<10}{row['prefill']:>11.0f}{row['decode']:>10.1f}"
                f"{row['file_mib']:>10.1f}{row['peak_mib']:>10.1f}{row['first_seconds']:>9.2f}"
            )
        for what in ("decode", "prefill"):
            ratio, goal = found.get(what), getattr(case, what)
            if ratio is None:
                continue
            verdict = "" if goal is None else "reached" if ratio >= goal else "MISSED"
            aim = "" if goal is None else f" (goal {goal}: {verdict})"
            out.append(f"  {what}: {ratio:.2f} times llama.cpp{aim}")
    versions = {
        f"{contender} {row['version']}"
        for found in results["cases"].values()
        for contender, row in found["rows"].items()
    }
    return [*out, "", ", ".join(sorted(versions))]


if __name__ == "__main__":
    main()
