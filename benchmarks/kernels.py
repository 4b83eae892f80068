"""The engine's kernels alone, one thread: decode in GB/s against a plain read, prefill in GOPS.

    python benchmarks/kernels.py [--isa avx512] [--formats q4_0,q8_0] [--json kernels.json]

Decode is one token against a matrix that lies in L2 and one larger than the caches; prefill is 512
tokens. Every figure is the median of several rounds, whose parts alternate; the read is of as many
bytes as the matrix has.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from flyweight.engine._native import kernels  # type: ignore[import-not-found]

FORMATS = {
    "f32": 0, "f16": 1, "bf16": 30, "q8_0": 8, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7,
    "iq4_nl": 20, "q4_k": 12, "q5_k": 13, "q6_k": 14,
}  # fmt: skip
COLS = 2048


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def seconds(run: Callable[[], Any], at_least: float) -> float:
    """Seconds of one call, from as many as `at_least` seconds take."""
    run()
    begin, calls = time.perf_counter(), 0
    while True:
        run()
        calls += 1
        taken = time.perf_counter() - begin
        if taken > at_least:
            return taken / calls


class Matrix:
    """Random rows of a format, packed, and inputs for them."""

    def __init__(self, isa: str, name: str, megabytes: float, tokens: int) -> None:
        self.isa, self.format = isa, FORMATS[name]
        panel = kernels.panel_bytes(isa, self.format, COLS)
        self.rows = 16 * max(1, round(megabytes * 2**20 / panel))
        width = COLS // kernels.block_size(self.format) * kernels.block_bytes(self.format)
        rng = np.random.default_rng(0)
        if name in ("f32", "f16", "bf16"):
            numbers = rng.standard_normal((64, COLS)).astype(np.float16 if name == "f16" else "f4")
            words = numbers.view(np.uint8).reshape(64, COLS, -1)
            some = np.ascontiguousarray(words[:, :, -(width // COLS) :]).reshape(64, width)
        else:
            # Bytes whose pairs are ordinary float16 numbers: scales wherever they lie.
            some = rng.integers(4, 120, (64, width), dtype=np.uint8)
        data = np.tile(some, (self.rows // 64 + 1, 1))[: self.rows]
        self.panels = kernels.pack(isa, self.format, self.rows, COLS, data.reshape(-1))
        self.bytes = np.asarray(self.panels).size
        x = rng.standard_normal((tokens, COLS)).astype(np.float32)
        self.inputs = kernels.prepare(isa, self.format, x)

    def product(self, repeats: int = 1) -> None:
        kernels.product(
            self.isa, self.format, COLS, self.panels, 0, self.rows, self.inputs, repeats
        )


def decode(isa: str, name: str, megabytes: float, rounds: int) -> tuple[float, float]:
    """GB/s of the product and of a plain read of the same bytes."""
    matrix = Matrix(isa, name, megabytes, 1)
    repeats = max(1, int(2e7 / matrix.bytes))
    product, read = [], []
    for _ in range(rounds):
        taken = seconds(lambda: matrix.product(repeats), 0.02) / repeats
        product.append(matrix.bytes / taken / 1e9)
        taken = seconds(lambda: kernels.read(matrix.panels, repeats), 0.02) / repeats
        read.append(matrix.bytes / taken / 1e9)
    return statistics.median(product), statistics.median(read)


def prefill(isa: str, name: str, tokens: int, rounds: int) -> float:
    """Billions of multiplications and additions a second."""
    matrix = Matrix(isa, name, 0.25, tokens)
    work = 2.0 * matrix.rows * COLS * tokens
    return statistics.median(work / seconds(matrix.product, 0.02) / 1e9 for _ in range(rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--isa", default="", help="one instruction set; else all of them")
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    sets = [args.isa] if args.isa else kernels.instruction_sets()
    peak = {isa: kernels.peak(isa) for isa in sets}
    print(f"{processor()}; numpy {np.__version__}; one thread; {args.tokens} tokens of prefill")
    print("peak, GOPS: " + ", ".join(f"{isa} {peak[isa]:.0f}" for isa in sets))
    print(f"{'set':9} {'format':7} {'L2 GB/s':>8} {'read':>6} {'DRAM GB/s':>10} {'read':>6} "
          f"{'prefill GOPS':>13}")  # fmt: skip
    results = []
    for isa in sets:
        for name in args.formats.split(","):
            near, near_read = decode(isa, name, 0.5, args.rounds)
            far, far_read = decode(isa, name, 256, args.rounds)
            gops = prefill(isa, name, args.tokens, args.rounds)
            print(f"{isa:9} {name:7} {near:8.1f} {near_read:6.1f} {far:10.1f} {far_read:6.1f} "
                  f"{gops:13.0f}", flush=True)  # fmt: skip
            results.append(
                {
                    "isa": isa, "format": name, "l2_gbs": near, "l2_read_gbs": near_read,
                    "dram_gbs": far, "dram_read_gbs": far_read, "prefill_gops": gops,
                }
            )  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps({"processor": processor(), "peak": peak, "rows": results}))


if __name__ == "__main__":
    main()
