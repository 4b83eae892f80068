"""Seconds to have the vocabulary of a GGUF file ready: ours beside llama.cpp's.

    python benchmarks/tokenizer_load.py [FILE.gguf ...] [--rounds N] [--llama PYTHON] [--json]

Each contender is a process of its own that loads each file N times; the medians are compared.
Without files, the vocabularies of shared/data (../shared/data/tokenizer) are taken. llama.cpp comes
as in cpu_inference.py.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from cpu_inference import environment
from machine import header, lines

HERE = Path(__file__).resolve().parent
DATA = HERE.parent.parent / "shared/data/tokenizer"
NAMES = ("ggml-vocab-gpt-2", "ggml-vocab-falcon", "ggml-vocab-phi-3")
OURS = """
import flyweight, flyweight.text.subword, flyweight.text.piece_tokenizer
load = flyweight.load_tokenizer
"""
LLAMA = """
import ctypes, llama_cpp as api
quiet = api.llama_log_callback(lambda level, text, data: None)
api.llama_log_set(quiet, ctypes.c_void_p(0))
api.llama_backend_init()
settings = api.llama_model_default_params()
settings.vocab_only = True
def load(path):
    assert api.llama_model_load_from_file(path.encode(), settings)
"""
TIMED = """
import json, sys, time
def seconds(path):
    begin = time.perf_counter()
    load(path)
    return time.perf_counter() - begin
print(json.dumps({path: [seconds(path) for _ in range(int(sys.argv[1]))] for path in sys.argv[2:]}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--llama", help="a Python that has llama_cpp")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = arguments.files or unpacked(Path(folder))
        llama = arguments.llama or environment()
        contenders = {"flyweight": (sys.executable, OURS), "llama.cpp": (llama, LLAMA)}
        # Twice each, in turns: the machine's speed changes.
        found: dict[str, dict[str, list[float]]] = {name: {} for name in contenders}
        for _ in range(2):
            for name, (python, code) in contenders.items():
                for path, times in timed(python, code, arguments.rounds, files).items():
                    found[name].setdefault(Path(path).name, []).extend(times)
    medians = {n: {f: statistics.median(t) for f, t in each.items()} for n, each in found.items()}
    if arguments.json:
        print(json.dumps({"machine": header(), "seconds": medians}))
        return
    print("\n".join(lines(header())))
    print(f"\n{'seconds':<26}{'flyweight':>11}{'llama.cpp':>11}{'ratio':>8}")
    for file, ours in medians["flyweight"].items():
        theirs = medians["llama.cpp"][file]
        print(f"{file:<26}{ours:>11.3f}{theirs:>11.3f}{ours / theirs:>8.2f}")


def timed(python: str, code: str, rounds: int, files: list[Path]) -> dict[str, list[float]]:
    variables = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    command = [python, "-W", "ignore", "-c", code + TIMED, str(rounds), *map(str, files)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=variables)
    times: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return times


def unpacked(folder: Path) -> list[Path]:
    import zstandard

    files = []
    for name in NAMES:
        packed = DATA / f"{name}.gguf.zst"
        if not packed.is_file():
            sys.exit(f"{packed} is not there; name GGUF files to load")
        data = zstandard.ZstdDecompressor().decompressobj().decompress(packed.read_bytes())
        files.append(folder / f"{name}.gguf")
        files[-1].write_bytes(data)
    return files


if __name__ == "__main__":
    main()
