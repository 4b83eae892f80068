"""Which input should quickstart read? Held-out bits per byte at equal wall time.

    python benchmarks/input_choice.py [--minutes 2] [--text PATH ...] [--only NAME,...] [--json]

Trains each contender through `flyweight train` on the same text, one after the other, and scores
all on the same fixed sample of the held-out documents.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import header, lines

STDLIB = Path(__file__).parents[2] / "shared/data/pretrain/python_stdlib.jsonl.zst"
TOKENS = ["text.tokenizer={kind='bpe',size=%d}", "train.context=512", "train.batch_tokens=4096"]
USE = "model.use=quickstart"
PLAIN = [USE, "model.input={kind='tokens'}", "train.context=512"]
CORE = [
    "model.width=192",
    "model.depth=3",
    "model.attention={heads=2,qk_norm=true}",
    "model.feedforward={kind='relu2',hidden=576}",
    "model.norm={kind='rms',eps=1e-6,gain=false}",
    "model.init={kind='zero-outputs'}",
]
SLOTS = "{kind='slots',slots=12,width=64,hidden=128,heads=2,front_depth=1,decoder_depth=2}"

CONTENDERS = {
    "patches, words (default)": [],
    "patches, words, wider core": [USE, "model.width=320", "model.feedforward.hidden=960"],
    "patches, words, deeper core": [USE, "model.depth=6"],
    "patches, 4 bytes": [USE, "model.input.patch=fixed", "model.input.size=4"],
    "patches, 6 bytes": [USE, "model.input.patch=fixed", "model.input.size=6"],
    "plain bytes, n-grams, matches": PLAIN,
    "plain bytes, no features": [*CORE, "train.context=512"],
    "BPE 2048, n-grams, matches": [TOKENS[0] % 2048, *TOKENS[1:]],
    "BPE 4096, n-grams, matches": [TOKENS[0] % 4096, *TOKENS[1:]],
    "BPE 2048 in byte slots": [
        "text.tokenizer={kind='bpe',size=2048,max_bytes=12}",
        *CORE,
        f"model.input={SLOTS}",
        "train.context=256",
        "train.batch_tokens=2048",
    ],
}


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", "flyweight", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def contend(name: str, settings: list[str], args: argparse.Namespace, folder: Path) -> dict:
    config = folder / "config.toml"
    config.write_text("[train]\nsample_every = 1000000000\n")
    out = folder / name.replace(" ", "-").replace(",", "")
    texts = json.dumps([str(Path(path).resolve()) for path in args.text])
    length = f"train.minutes={args.minutes}"
    result = json.loads(
        run("train", str(config), f"data.train={texts}", length, *settings,
            "--out", str(out), "--json")
    )  # fmt: skip
    scored = json.loads(run("eval", str(out), "--bytes", str(args.bytes), "--json"))
    ledger = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
    speed = sorted(line["bytes_per_second"] for line in ledger)[len(ledger) // 2]
    return {
        "name": name,
        "held_out": scored["held_out"]["bits_per_byte"],
        "parameters": scored["model"]["parameters"],
        "bytes_seen": result["bytes"],
        "bytes_per_second": speed,
        "compressors": scored["compressors"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--text", nargs="+", default=[str(STDLIB)])
    parser.add_argument("--bytes", type=int, default=300_000, help="held-out bytes to score")
    parser.add_argument("--only", help="comma-separated beginnings of names, `;` between them")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    only = args.only.split(";") if args.only else [""]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, settings in CONTENDERS.items():
            if any(name.startswith(start) for start in only):
                rows.append(contend(name, settings, args, Path(folder)))
                print(f"{name}: {rows[-1]['held_out']:.4f}", file=sys.stderr)
    if args.json:
        print(json.dumps({"machine": header(), "minutes": args.minutes, "rows": rows}))
        return
    print(*lines(header()), sep="\n")
    print(f"\n| {args.minutes:g} minutes | bits per byte | parameters | bytes seen | bytes/s |")
    print("|---|---:|---:|---:|---:|")
    for row in sorted(rows, key=lambda row: row["held_out"]):
        print(
            f"| {row['name']} | {row['held_out']:.4f} | {row['parameters'] / 1e6:.1f}M"
            f" | {row['bytes_seen'] / 1e6:.2f}M | {row['bytes_per_second']:,.0f} |"
        )
    for row in rows[0]["compressors"] if rows else []:
        print(f"| {row['name']} | {row['bits_per_byte']:.4f} | | | |")


if __name__ == "__main__":
    main()
