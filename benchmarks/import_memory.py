"""What importing a checkpoint costs in memory: at most the file's own size and one tensor.

    python benchmarks/import_memory.py [--zoo minicpm-2.4b] [--shrink 1] [--json OUT]

Makes a checkpoint of a zoo model's shapes in its published names (bfloat16; the file is sparse, so
it takes no disk), imports it with `flyweight import` in a process of its own, and samples that
process's memory: anonymous (what it allocated) and file-backed (pages of the mapped checkpoint,
which the system takes back when it needs them). ``--shrink N`` divides the depth by N.

The imported model is written in full, so the disk needs room for it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from flyweight.files.names import choose, plan
from flyweight.spec import toml
from flyweight.spec.model import ModelSpec
from flyweight.text.bytes import ByteTokenizer
from flyweight.train.machine import environment
from flyweight.zoo import catalog
from flyweight.zoo.layout import of_family

DEFAULT = ("mobillama-0.5b", "minicpm-2.4b", "btlm-3b-8k", "phi-4-mini")
MIB = 1 << 20


def make(folder: Path, name: str, shrink: int) -> tuple[int, int, list[str]]:
    """A sparse checkpoint; returns its size, our largest tensor's (bytes), and import's flags."""
    entry = catalog.get(name)
    layout = of_family(entry.family)
    assert layout is not None, f"nothing of the family {entry.family} was published"
    values = entry.spec.values() | {"depth": max(1, entry.spec.depth // shrink)}
    spec = ModelSpec.parse(values)
    (folder / "spec.toml").write_text(toml.dumps({"family": entry.family, "model": spec.values()}))
    (folder / "tokenizer.json").write_text(ByteTokenizer().to_json())
    options = {option: next(iter(choices)) for option, choices in layout.options.items()}
    planned = plan(spec, layout, choose(layout, options))
    pieces = {p.name: p.shape for each in planned for copy in each.copies for p in copy}
    header: dict[str, Any] = {}
    at = 0
    for piece, shape in pieces.items():
        size = 2
        for length in shape:
            size *= length
        header[piece] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    largest = 0
    for each in planned:
        size = 2
        for length in each.shape:
            size *= length
        largest = max(largest, size)
    flags = ["--like", str(folder / "spec.toml")]
    flags += [f"--option={option}={choice}" for option, choice in options.items()]
    return at, largest, flags


def peaks(command: list[str]) -> tuple[int, int, float]:
    """The most anonymous and file-backed memory of a command's process, bytes, and seconds."""
    begin = time.perf_counter()
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    process, anonymous, mapped = psutil.Process(running.pid), 0, 0
    while running.poll() is None:
        try:
            now = process.memory_info()
        except psutil.NoSuchProcess:
            break
        anonymous = max(anonymous, now.rss - now.shared)
        mapped = max(mapped, now.shared)
        time.sleep(0.005)
    _, err = running.communicate()
    if running.returncode:
        raise SystemExit(err.decode())
    return anonymous, mapped, time.perf_counter() - begin


def measure(name: str, shrink: int, where: Path) -> dict[str, Any]:
    """One model's import: sizes and peaks in bytes."""
    with tempfile.TemporaryDirectory(dir=where) as temporary:
        folder = Path(temporary) / "theirs"
        folder.mkdir()
        size, largest, flags = make(folder, name, shrink)
        program = [sys.executable, "-m", "flyweight", "import", str(folder)]
        out = Path(temporary) / "ours"
        anonymous, mapped, seconds = peaks([*program, str(out), *flags])
        written = (out / "model.safetensors").stat().st_size
    return {
        "name": name,
        "checkpoint": size,
        "written": written,
        "largest": largest,
        "anonymous": anonymous,
        "mapped": mapped,
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--zoo", action="append", choices=catalog.names())
    parser.add_argument("--shrink", type=int, default=1)
    parser.add_argument("--where", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    # What a process holds that has imported torch and nothing else.
    bare, _, _ = peaks([sys.executable, "-c", "import torch, safetensors.torch"])
    facts = {key: value for key, value in environment().items() if value is not None}
    print("\n".join(f"{key}: {value}" for key, value in facts.items()))
    print(f"a process with torch alone: {bare / MIB:.0f} MiB anonymous\n")
    titles = ("MiB", "checkpoint", "written", "largest", "anonymous", "above torch", "mapped", "s")
    print("{:<18}{:>11}{:>10}{:>9}{:>11}{:>13}{:>9}{:>7}".format(*titles))
    rows = []
    for name in arguments.zoo or DEFAULT:
        row = measure(name, arguments.shrink, arguments.where) | {"torch": bare}
        rows.append(row)
        above = row["anonymous"] - bare
        cells = [row[key] for key in ("checkpoint", "written", "largest", "anonymous")]
        numbers = [value / MIB for value in (*cells, above, row["mapped"])]
        line = "{:>11.0f}{:>10.0f}{:>9.0f}{:>11.0f}{:>13.0f}{:>9.0f}".format(*numbers)
        print(f"{name:<18}{line}{row['seconds']:>7}", flush=True)
    if arguments.json:
        result = {"environment": facts, "shrink": arguments.shrink, "models": rows}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
