"""Prefill and decode on the CPU: our engine beside llama.cpp, round by round, with goals.

    python benchmarks/cpu_inference.py [--cases 10m-q4_0,...] [--rounds N] [--threads N]
                                       [--llama PYTHON] [--openvino PYTHON] [--onnx PYTHON]
                                       [--quick] [--json]

Every case (inference_cases.py) is a shape with random weights, exported once to GGUF: for llama.cpp
expanded where weights are shared, for us as it is. In each round, each contender in a process of
its own and the others waiting, fresh texts of 512 tokens are read and one token chosen (prefill),
then 64 tokens more (decode), again and again for half a second at least. Ratios are medians over
rounds, of the same round's medians; the bandwidth that the machine reads at is measured beside
every round. Both keep keys and values as they do by themselves: in F16 (ours in F32 where the
weights are).

`peak` is the process's largest resident memory above what it was before the model was loaded;
`first` the seconds from starting a process (Python and its imports count) to the first token of a
prompt of eight, the median of nine starts in turns, the file in the system's cache. `memory`, of
every case, is the peak over what it may be: 1.15 times the file, the cache, and 40 MB. "one thread
that only reads" is its share of what all threads read, measured beside each round.

llama.cpp comes as the package llama-cpp-python, built from source (minutes) into an environment of
its own below ~/.cache/flyweight-bench, or is taken from --llama. Where the processor has AMX it is
built without, for its AMX kernels crash. --openvino names a Python that has openvino-genai, which
reads our GGUF files of Llama's shape by itself; --onnx one that has onnxruntime-genai and what its
builder of models asks for (onnx, onnx-ir, torch, transformers), which makes 4-bit models from our
exports in Hugging Face's format and runs beside Q4_0 where it knows the shape. Neither has goals.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from inference_cases import CASES, OURS, Case, expected_gain, file_of, onnx_of, size_of
from machine import header, lines
from own_python import CACHE, own_python, say

from flyweight.engine.processor import read_bandwidth
from flyweight.files.atomic import write_text

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results/cpu_inference.json"
# Not from pip's cache, which does not know with what options a wheel was built.
LLAMA = ["--no-cache-dir", "llama-cpp-python==0.3.36", "numpy"]
PEER, OPENVINO, ONNX = "llama.cpp", "openvino", "onnx"
STARTS = 9
# Seconds of a contender's turn at least, and of rest before it: what the one before left spinning
# comes to a halt.
TURN, REST = 0.5, 0.1
# What a model's memory may be beyond its tensors and its cache.
ALLOWED, BESIDE = 1.15, 40e6
# Figures that are to be small.
AT_MOST = ("peak", "memory")


class Worker:
    """A contender with one model, in a process of its own."""

    def __init__(self, name: str, program: str, python: str, path: Path, threads: int) -> None:
        self.name, self.path = name, path
        self._command = [python, str(HERE / "peers" / f"infer_{program}.py"), str(path)]
        self._command.append(str(threads))
        self.rounds: list[dict[str, float]] = []
        self.start()

    def start(self) -> None:
        begin = time.perf_counter()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent)])}
        # As after an installation, which compiles what it installs: nothing is compiled at a start.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        self.process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.loaded = self._answer()
        self.first_seconds = time.perf_counter() - begin

    def round(self, seed: int, case: Case) -> dict[str, float]:
        """Median seconds of prefill and of a token of decode."""
        request = {"seed": seed, "prompt": case.prompt, "tokens": case.tokens, "seconds": TURN}
        return self._ask(request)

    def close(self) -> dict[str, Any]:
        last = self._ask({})
        self.process.wait()
        return last

    def values(self, what: str) -> list[float]:
        return [times[what] for times in self.rounds]

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} died; what it said stands above")
        answer: dict[str, Any] = json.loads(line)
        return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--llama", help="a Python that has llama_cpp")
    parser.add_argument("--openvino", help="a Python that has openvino_genai")
    parser.add_argument(
        "--onnx", help="a Python that has onnxruntime_genai and its builder's needs"
    )
    parser.add_argument("--models", type=Path, default=CACHE / "models", help="made files")
    parser.add_argument("--quick", action="store_true", help="the smallest case, one round")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    wanted = ["10m-q4_0"] if arguments.quick else arguments.cases.split(",")
    unknown = [name for name in wanted if name not in CASES]
    if unknown or arguments.rounds < 1 or arguments.threads < 1:
        parser.error(f"--cases takes {', '.join(CASES)}; --rounds and --threads at least 1")
    rounds = 1 if arguments.quick else arguments.rounds
    results: dict[str, Any] = {
        "machine": {**header(), "threads": arguments.threads},
        "cases": {},
    }
    for name in wanted:
        results["cases"][name] = measure(name, rounds, arguments)
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


def contenders(case: Case, arguments: argparse.Namespace) -> list[Worker]:
    """Ours first."""
    folder, threads = arguments.models, arguments.threads
    path = file_of(case.model, case.type, folder)

    def own(name: str, path: Path, threads: int = threads) -> Worker:
        return Worker(name, "flyweight", sys.executable, path, threads)

    workers = [own(OURS, path)]
    if case.peer:
        expanded = file_of(case.model, case.type, folder, expand=True)
        llama = arguments.llama or environment()
        workers.append(Worker(PEER, "llama_cpp", llama, expanded, threads))
        if arguments.openvino:
            workers.append(Worker(OPENVINO, "openvino", arguments.openvino, expanded, threads))
        if arguments.onnx and case.type == "q4_0":
            made = onnx_of(case.model, folder, arguments.onnx)
            if made is not None:
                workers.append(Worker(ONNX, "onnx", arguments.onnx, made, threads))
    if "one thread" in case.goals:
        workers.append(own("one thread", path, 1))
    if "distinct" in case.goals:
        workers.append(own("distinct", file_of(f"{case.model}-distinct", case.type, folder)))
    if "pooled" in case.goals:
        workers.append(own("plain", file_of("plain", case.type, folder)))
    return workers


def measure(name: str, rounds: int, arguments: argparse.Namespace) -> dict[str, Any]:
    case = CASES[name]
    workers = contenders(case, arguments)
    firsts: dict[str, list[float]] = {worker.name: [] for worker in workers}
    for _ in range(STARTS if "first" in case.goals else 0):
        for worker in workers:
            worker.close()
            worker.start()
            firsts[worker.name].append(worker.first_seconds)
    bandwidth: list[float] = []
    alone: list[float] = []
    for number in range(rounds + 1):
        read = read_bandwidth(arguments.threads)
        one = read_bandwidth(1) if "one thread" in case.goals else None
        assert read is not None
        turn = number % len(workers)
        for worker in workers[turn:] + workers[:turn]:
            time.sleep(REST)
            times = worker.round(1000 * number, case)
            if number > 0:  # the first one is for pages and clocks
                worker.rounds.append(times)
        if number > 0:
            bandwidth.append(read)
            if one is not None:
                alone.append(one / read)
        say(f"{name}: round {number} of {rounds}")
    rows: dict[str, dict[str, Any]] = {}
    for worker in workers:
        rows[worker.name] = {
            "file_mib": size_of(worker.path) / 2**20,
            "prefill": case.prompt / statistics.median(worker.values("prefill")),
            "decode": 1 / statistics.median(worker.values("decode")),
            "first_seconds": statistics.median(firsts[worker.name] or [worker.first_seconds]),
            "version": worker.loaded["version"],
            **worker.close(),
            "rounds": worker.rounds,
        }
    found = figures(case, workers, rows, bandwidth, arguments.models)
    if alone:
        found["one thread that only reads"] = statistics.median(alone)
    return {
        "bandwidth": [round(b / 1e9, 1) for b in bandwidth],
        "rows": rows,
        "figures": {figure: judged(case, figure, value) for figure, value in found.items()},
    }


def figures(
    case: Case,
    workers: list[Worker],
    rows: dict[str, dict[str, Any]],
    bandwidth: list[float],
    folder: Path,
) -> dict[str, float]:
    ours, own = workers[0], rows[OURS]

    def times_faster(what: str, than: Worker) -> float:
        pairs = zip(ours.values(what), than.values(what), strict=True)
        return statistics.median(other / mine for mine, other in pairs)

    found = {}
    for other in workers[1:]:
        row = rows[other.name]
        decode = times_faster("decode", other)
        if other.name == PEER:
            found |= {"decode": decode, "prefill": times_faster("prefill", other)}
            found["first"] = row["first_seconds"] / own["first_seconds"]
            found["peak"] = own["peak_mib"] / row["peak_mib"]
        elif other.name in (OPENVINO, ONNX):
            found[f"decode, {other.name}"] = decode
            found[f"prefill, {other.name}"] = times_faster("prefill", other)
        elif other.name == "plain":
            size, expected = expected_gain(case.type, folder)
            found |= {"times plain bytes": decode, "patch size": size, "expected": expected}
            found["pooled"] = decode / expected
        else:
            found[other.name] = 1 / decode if other.name == "one thread" else decode
    if own["read_bytes"]:
        found["limit"] = statistics.median(
            own["read_bytes"] / (seconds * read)
            for seconds, read in zip(ours.values("decode"), bandwidth, strict=True)
        )
    allowed = ALLOWED * own["file_mib"] * 2**20 + own["cache_bytes"] + BESIDE
    return {**found, "memory": own["peak_mib"] * 2**20 / allowed}


def judged(case: Case, figure: str, value: float) -> dict[str, Any]:
    goal = 1.0 if figure == "memory" else case.goals.get(figure) or None
    reached = None
    if goal is not None:
        reached = value <= goal if figure in AT_MOST else value >= goal
    return {"value": value, "goal": goal, "reached": reached}


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
        for figure, judgement in found["figures"].items():
            goal, verdict = judgement["goal"], "reached" if judgement["reached"] else "MISSED"
            way = "at most" if figure in AT_MOST else "at least"
            aim = "" if goal is None else f" ({way} {goal}: {verdict})"
            out.append(f"  {figure}: {judgement['value']:.2f}{aim}")
    versions = {
        row["version"]
        for found in results["cases"].values()
        for contender, row in found["rows"].items()
    }
    return [*out, "", ", ".join(sorted(versions))]


if __name__ == "__main__":
    main()
