"""What a block of weights that is read twice in a row can gain: a bare reader, and nothing else.

    python benchmarks/second_use.py [--sizes 0.3,1,1.4,2.76,6.3] [--places 1,8,16] [--rounds N]
        [--json]

Two threads, each with its half of every block (MobileLLM-LS-350M's at Q4_0: 2.76 MB). "ratio" is
how many times as fast blocks that come twice are read as distinct ones: what decoding with shared
blocks can reach at most where reading weights is all that it does. "places": from how many a thread
reads in turn, 16 as decoding does.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from itertools import product
from pathlib import Path

from machine import header, lines

SOURCE = Path(__file__).with_suffix(".cpp")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="0.3,0.6,1,1.4,2.76,6.3", help="MB, comma-separated")
    parser.add_argument("--places", default="16", help="comma-separated")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "second_use"
        compiler = os.environ.get("CXX", "c++")
        options = ["-std=c++20", "-O3", "-march=native", "-pthread", "-Wno-psabi"]
        subprocess.run([compiler, *options, str(SOURCE), "-o", str(program)], check=True)
        sizes, places = arguments.sizes.split(","), arguments.places.split(",")
        for size, from_places in product(sizes, places):
            command = [str(program), size, str(arguments.rounds), from_places]
            done = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            distinct, twice, second = map(float, done.stdout.split())
            speeds = {"distinct": distinct, "twice": twice, "second": second}
            row = {"block_mb": float(size), "places": int(from_places), **speeds}
            found.append({**row, "ratio": twice / distinct})
    if arguments.json:
        print(json.dumps({"machine": header(), "rows": found}))
        return
    print("\n".join(lines(header())))
    names = ("MB a core", "places", "distinct", "twice", "second use", "ratio")
    print(" ".join(f"{name:>10}" for name in names) + "  (GB/s)")
    for row in found:
        speeds = [row[name] / 1e9 for name in ("distinct", "twice", "second")]
        values = (row["block_mb"], row["places"], *speeds, row["ratio"])
        print(" ".join(f"{value:10.4g}" for value in values))


if __name__ == "__main__":
    main()
