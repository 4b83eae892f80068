"""Building datasets: speed beside the `tokenizers` library's own, and memory from 10 MB to 1 GB.

    python benchmarks/data_build.py [speed] [memory] [cleaning] [--sizes 10,100,1000]
        [--rounds 3] [--threads 1,2]

Speed: the same texts through `tokenizers`' encode_batch (and encode_batch_fast, which leaves out
the offsets) and through a build's packing: workers load the tokenizer, read the texts from the
disk, encode them and write the tokens; the shards are put together, hashed and synced; with the
same number of threads (the library's) or worker processes (ours). Memory: the greatest sum of
resident memory of the whole process tree of `flyweight data build`, shared pages counted in each
process, for corpora of growing size. Cleaning: the same with rules, near-duplicates and evaluation
text looked for.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from machine import header

from flyweight.data.clean import normalise
from flyweight.data.document import Skipped
from flyweight.data.sources import documents
from flyweight.files.atomic import write_text
from flyweight.text.load import load_tokenizer

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared/data"
RESULTS = HERE / "results/data_build.json"
TEXTS = [
    "fairytales_en.jsonl.zst",
    "novels_en.jsonl.zst",
    "peps.jsonl.zst",
    "python_stdlib.jsonl.zst",
    "factbook.jsonl.zst",
    "tinystories_ru.jsonl.zst",
]
PEER = """
import json, sys, time, tokenizers
made = tokenizers.Tokenizer.from_file(sys.argv[1])
texts = json.load(open(sys.argv[2]))
encode = getattr(made, sys.argv[3])
began = time.perf_counter()
encoded = encode(texts, add_special_tokens=False)
print(time.perf_counter() - began, sum(len(e.ids) for e in encoded))
"""
OURS = """
import json, sys, time
from pathlib import Path
from flyweight.data.build import build
from flyweight.spec.data import Data
from flyweight.spec.run import Tokenizer
began = []
def watch(stage, done, total):
    if stage == "encode" and not began:
        began.append(time.perf_counter())
data = Data(train=json.loads(sys.argv[2]), held_out=0, workers=int(sys.argv[4]))
made = build(data, Tokenizer(kind="file", path=sys.argv[1]), Path(sys.argv[3]), watch)
print(time.perf_counter() - began[0], made.train.tokens)
"""


def peer(folder: Path, method: str, threads: int) -> tuple[float, int]:
    """(seconds, tokens) of the library's own batch encoding."""
    command = [sys.executable, "-c", PEER, "tokenizer.json", "texts.json", method]
    environment = {**os.environ, "RAYON_NUM_THREADS": str(threads)}
    environment["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    out = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    seconds, tokens = out.stdout.split()
    return float(seconds), int(tokens)


def ours(folder: Path, paths: list[str], out: str, workers: int) -> tuple[float, int]:
    """(seconds, tokens) of a build's packing: from cleaned text on the disk to a dataset."""
    command = [sys.executable, "-c", OURS, "tokenizer.json", json.dumps(paths), out, str(workers)]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    seconds, tokens = done.stdout.split()
    return float(seconds), int(tokens)


def speed(folder: Path, rounds: int, counts: list[int]) -> dict[str, object]:
    paths = [str(SHARED / "pretrain" / name) for name in TEXTS]
    texts = [normalise(document.text) for document in documents(paths, Skipped())]
    size = sum(len(text.encode()) for text in texts)
    (folder / "texts.json").write_text(json.dumps(texts))
    load_tokenizer(SHARED / "tokenizer/gpt2").save(folder / "tokenizer.json")
    table: dict[str, object] = {"bytes": size}
    for threads in counts:
        found: dict[str, list[float]] = {"encode_batch": [], "encode_batch_fast": [], "ours": []}
        for number in range(rounds):
            for method in ("encode_batch", "encode_batch_fast"):
                found[method].append(peer(folder, method, threads)[0])
            found["ours"].append(ours(folder, paths, f"{threads}-{number}", threads)[0])
        rates = {name: size / min(seconds) / 1e6 for name, seconds in found.items()}
        table[f"{threads}"] = rates
        ratios = [rates["ours"] / rates[name] for name in ("encode_batch", "encode_batch_fast")]
        print(
            f"{threads} thread(s): "
            + ", ".join(f"{name} {rate:.2f} MB/s" for name, rate in rates.items())
            + f"; ours / encode_batch = {ratios[0]:.3f}, / encode_batch_fast = {ratios[1]:.3f}"
        )
    return table


def corpus(file: Path, megabytes: int) -> None:
    """JSON lines of about ``megabytes`` MB: lines of real tales in random order."""
    lines: list[str] = []
    for document in documents([str(SHARED / "pretrain" / TEXTS[0])], Skipped()):
        lines += [line for line in document.text.splitlines() if line]
    draw = random.Random(megabytes)
    size = 0
    with file.open("w") as out:
        while size < megabytes * 1_000_000:
            text = "\n".join(draw.choices(lines, k=draw.randint(2, 40)))
            size += out.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


EVERYTHING = f"""
[data.clean]
urls = {{}}
personal = {{}}
repeated = {{}}
length = {{ min_words = 5 }}
symbols = {{}}
repetition = {{}}
[data.decontaminate]
files = ["{SHARED / "eval" / "arc_easy.jsonl"}"]
[data.near_duplicates]
"""


def memory(folder: Path, sizes: list[int], tables: str = "") -> list[dict[str, float]]:
    rows = []
    for megabytes in sizes:
        file = folder / f"{megabytes}.jsonl"
        corpus(file, megabytes)
        config = folder / "c.toml"
        config.write_text(f'[data]\ntrain = ["{file}"]\nworkers = 2\n{tables}')
        out = folder / f"d{megabytes}{'-all' * bool(tables)}"
        command = [sys.executable, "-m", "flyweight", "data", "build", str(config), "--out", out]
        began, peak, each = time.perf_counter(), 0, 0
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as build:
            root = psutil.Process(build.pid)
            while build.poll() is None:
                try:
                    tree = [root, *root.children(recursive=True)]
                    resident = [process.memory_info().rss for process in tree]
                except psutil.Error:
                    continue
                peak, each = max(peak, sum(resident)), max(each, *resident)
                time.sleep(0.02)
        seconds = time.perf_counter() - began
        assert build.returncode == 0
        row = {"megabytes": megabytes, "tree_mib": peak / 2**20, "process_mib": each / 2**20}
        row["seconds"] = seconds
        print(
            f"{megabytes:5d} MB: peak of the tree {row['tree_mib']:.0f} MiB,"
            f" of one process {row['process_mib']:.0f} MiB, {seconds:.1f} s",
            flush=True,
        )
        rows.append(row)
        file.unlink()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", default=["speed", "memory", "cleaning"])
    parser.add_argument("--sizes", default="10,100,1000")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", default="1,2")
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.sizes.split(",")]
    threads = [int(count) for count in arguments.threads.split(",")]
    results: dict[str, object] = {"machine": header()}
    if RESULTS.exists():
        results = {**json.loads(RESULTS.read_text()), **results}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if "speed" in arguments.tables:
            results["speed"] = speed(folder, arguments.rounds, threads)
        if "memory" in arguments.tables:
            results["memory"] = memory(folder, sizes)
        if "cleaning" in arguments.tables:
            results["cleaning"] = memory(folder, sizes, EVERYTHING)
    RESULTS.parent.mkdir(exist_ok=True)
    write_text(RESULTS, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
