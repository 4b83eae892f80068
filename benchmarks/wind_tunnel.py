"""A wind tunnel: does the learning rate found on narrow models serve one of 8 times the width?

    python benchmarks/wind_tunnel.py [--widths 32,64,128,256] [--rates 0.0025,...] [--steps N]
                                     [--kinds mup,standard] [--text PATH] [--json]

MiniCPM's (arXiv:2404.06395) and BTLM's (arXiv:2309.11568) way: `flyweight train` runs every rate
on every width, all else equal, on fairy tales (shared/data/pretrain/fairytales_en.jsonl.zst) read
as bytes, for less than one epoch; a run's figure is its mean training loss over the last quarter
of its steps, in bits per byte. `[model] mup` scales initialisation, multipliers and rates with
the width; the standard parametrisation does not. A rate holds if the widest's best is within one
step of the grid of the narrowest's.
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

from machine import header

HERE = Path(__file__).resolve().parent
TEXT = HERE.parents[1] / "shared/data/pretrain/fairytales_en.jsonl.zst"
RESULTS = HERE / "results/wind_tunnel.json"
RATES = "0.00125,0.0025,0.005,0.01,0.02,0.04,0.08"
CONFIG = """
name = "wind-tunnel"
[model]
depth = 2
attention = { heads = 4, scale = "1/d" }
[text]
tokenizer = "bytes"
[train]
context = 128
batch_tokens = 1024
compile = "off"
threads = 1
precision = "f32"
optimizer = { kind = "adamw", embedding_rate = 1.0, vector_rate = 1.0 }
schedule = { kind = "wsd", warmup = 20, decay = 0.2 }
"""
PARAMETRISATIONS = {
    "mup": "model.mup={ base_width = 32, std = 0.1, embedding = 5.0, logits = 1.0 }",
    "standard": "model.init={ kind = 'normal', std = 0.02 }",
}


def train(folder: Path, data: Path, kind: str, width: int, rate: float, steps: int) -> float:
    """Bits per byte over the last quarter of a run's steps; infinite where it broke off."""
    out = folder / f"{kind}-{width}-{rate:g}"
    settings = [
        f"model.width={width}",
        f"model.feedforward.hidden={3 * width}",
        PARAMETRISATIONS[kind],
        f"data.train=['{data}']",
        f"train.steps={steps}",
        f"train.schedule.peak={rate}",
        f"train.checkpoint.every={steps}",
        f"train.sample_every={steps + 1}",
    ]
    config = folder / "run.toml"
    config.write_text(CONFIG)
    command = [sys.executable, "-m", "flyweight", "train", str(config), "--out", str(out)]
    done = subprocess.run([*command, *settings], capture_output=True, text=True, check=False)
    if done.returncode and "nothing was updated" not in done.stderr:
        raise SystemExit(done.stderr)
    if done.returncode:
        return float("inf")
    lines = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
    return statistics.mean(line["bits_per_byte"] for line in lines[-steps // 4 :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", default="32,64,128,256")
    parser.add_argument("--rates", default=RATES)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--kinds", default="mup,standard")
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    widths = [int(width) for width in asked.widths.split(",")]
    rates = [float(rate) for rate in asked.rates.split(",")]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    tables: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "data.toml").write_text(f"[data]\ntrain = ['{asked.text.resolve()}']\n")
        build = ["data", "build", str(folder / "data.toml"), "--out", str(folder / "dataset")]
        subprocess.run([sys.executable, "-m", "flyweight", *build], check=True, capture_output=True)
        for kind in asked.kinds.split(","):
            print(f"\n{kind}: bits per byte by width and rate", flush=True)
            print("| width | " + " | ".join(f"{rate:g}" for rate in rates) + " | best |")
            print("|---:" * (len(rates) + 2) + "|", flush=True)
            tables[kind] = {}
            for width in widths:
                found = []
                for rate in rates:
                    found.append(train(folder, folder / "dataset", kind, width, rate, asked.steps))
                tables[kind][str(width)] = found
                best = rates[found.index(min(found))]
                cells = " | ".join(f"{bits:.3f}" for bits in found)
                print(f"| {width} | {cells} | {best:g} |", flush=True)
            ends = (tables[kind][str(width)] for width in (widths[0], widths[-1]))
            narrow, wide = (found.index(min(found)) for found in ends)
            word = "holds" if abs(narrow - wide) <= 1 else "does not hold"
            print(f"the best rate {word} from {widths[0]} to {widths[-1]}", flush=True)
    result = {"machine": header(), "steps": asked.steps, "rates": rates, "tables": tables}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    if asked.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
