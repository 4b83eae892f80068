"""Held-out bits per byte after minutes of training: ours, a plain byte GPT's, the compressors'.

    python benchmarks/quality_per_minute.py [--minutes 2,10,30] [--peers all|none|N]
                                            [--repeats N] [--resume] [--quick] [--json]

The text is the Python standard library (shared/data/pretrain/python_stdlib.jsonl.zst) less one
file in ten by the stable hash of `flyweight.data.split`; those are held out, and every byte of
them is scored, each document from its own beginning, in windows that overlap by half.

Ours goes through the front door: `flyweight train` with its default model, then
`flyweight.load(RUN).logprobs`. The peer is peers/bare_gpt.py at each setting of a grid; its best
one counts, chosen on the held-out bytes themselves, which favours the peer. Peers and ours take
turns, each in a process of its own with two threads. The budget is wall time from the moment
that the data is there to the last step: start-up and calibration count, scoring does not.

Every finished run is in the results file at once; --resume goes on after an interruption.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machine import header, lines
from marks import marks

from flyweight.data.build import build
from flyweight.data.document import Document
from flyweight.files.atomic import write_text
from flyweight.spec.run import Data, Tokenizer

HERE = Path(__file__).resolve().parent
TEXT = HERE.parents[1] / "shared/data/pretrain/python_stdlib.jsonl.zst"
RESULTS = HERE / "results/quality_per_minute.json"
HELD_OUT = 0.1
OURS = "flyweight"
# A run whose training took this much longer than its budget is no measurement.
TOLERANCE = 1.02


@dataclass(frozen=True)
class Peer:
    """A setting of peers/bare_gpt.py: ``rows`` windows of ``context`` bytes a step."""

    width: int
    depth: int
    context: int
    rows: int
    lr: float

    @property
    def name(self) -> str:
        return f"GPT {self.width}x{self.depth}, {self.rows}x{self.context}, lr {self.lr:g}"

    def flags(self) -> list[str]:
        return [part for key, value in asdict(self).items() for part in (f"--{key}", str(value))]


# For two minutes: around the best of shorter trials (docs/lab-notes.md), each thing varied.
SMALL = [
    Peer(128, 4, 256, 16, 4e-3),
    Peer(128, 4, 256, 32, 4e-3),
    Peer(192, 4, 256, 8, 3e-3),
    Peer(192, 4, 256, 16, 3e-3),
    Peer(128, 4, 128, 16, 3e-3),
    Peer(96, 4, 256, 16, 6e-3),
    Peer(256, 4, 256, 8, 2e-3),
    Peer(128, 4, 256, 4, 2e-3),
]
# For ten: these, and the two best of the short grid.
LARGE = [
    Peer(192, 4, 128, 16, 2e-3),
    Peer(128, 6, 128, 16, 3e-3),
    Peer(192, 4, 256, 8, 2e-3),
    Peer(256, 4, 128, 16, 1.5e-3),
]
QUICK = [Peer(128, 2, 128, 8, 3e-3), Peer(128, 4, 128, 8, 3e-3)]

# minutes: {against: the most that ours may be of it}
GOALS: dict[float, dict[str, float]] = {
    2: {"peer": 0.75, "xz -9e": 1.0},
    10: {"peer": 0.80, "xz -9e": 0.82},
    30: {"xz with dictionary": 1.0},
}


def main() -> None:
    arguments = parse()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments, Path(folder))
        try:
            for minutes in arguments.minutes:
                bench.measure(minutes)
        finally:
            print(*bench.table(), sep="\n", file=sys.stderr if arguments.json else sys.stdout)
        if arguments.json:
            print(json.dumps(bench.results, indent=1))


def parse() -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", default="2,10,30", help="budgets, comma-separated")
    parser.add_argument(
        "--peers",
        default="all",
        help="all of the grid, none, or its first N; above 20 minutes there is no grid",
    )
    parser.add_argument("--repeats", type=int, default=1, help="of ours and of the best peer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--text", default=str(TEXT), help="the documents, as data.train takes them")
    parser.add_argument("--results", type=Path, help="the file that keeps every finished run")
    parser.add_argument("--keep", type=Path, help="keep our run folders below this folder")
    parser.add_argument("--resume", action="store_true", help="go on with the results file")
    parser.add_argument("--quick", action="store_true", help="seconds, to see that all works")
    parser.add_argument("--json", action="store_true", help="print all results as JSON")
    arguments = parser.parse_args()
    try:
        arguments.minutes = sorted(float(part) for part in arguments.minutes.split(","))
    except ValueError:
        parser.error(f"--minutes {arguments.minutes}: numbers with commas between are wanted")
    if arguments.peers not in ("all", "none") and not arguments.peers.isdecimal():
        parser.error(f"--peers {arguments.peers}: all, none or a number is wanted")
    if not Path(arguments.text).exists():
        parser.error(f"no text at {arguments.text}; name some with --text")
    if arguments.quick:
        arguments.minutes = [0.2]
    if arguments.results is None:
        stem = RESULTS.stem + ("-quick" if arguments.quick else "")
        arguments.results = RESULTS.with_stem(stem)
    return arguments


class Bench:
    """The data, the marks, and the runs done so far."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments, self.folder = arguments, folder
        data = Data(train=[arguments.text], held_out=HELD_OUT)
        dataset = build(data, Tokenizer(), folder / "text")
        train, held_out = (
            [Document(name, text.decode(), "") for name, text in part.texts(dataset.tokenizer)]
            for part in (dataset.train, dataset.held_out)
        )
        self.held_out = held_out
        np.savez(folder / "data.npz", train=stream(train), held_out=stream(held_out))
        pairs = [(document.name, document.text) for document in held_out]
        (folder / "held_out.json").write_text(json.dumps(pairs), encoding="utf-8")
        train_bytes, held_out_bytes = joined(train), joined(held_out)
        text = {
            "train_documents": len(train),
            "train_bytes": len(train_bytes),
            "held_out_documents": len(held_out),
            "held_out_bytes": len(held_out_bytes),
            "sha256": hashlib.sha256(train_bytes + held_out_bytes).hexdigest(),
        }
        self.results = self._begin(text)
        if "marks" not in self.results:
            say("compressing, for the fixed marks")
            self.results["marks"] = marks(train_bytes, held_out_bytes)
            self._save()

    def _begin(self, text: dict[str, Any]) -> dict[str, Any]:
        """The results file's content with --resume, else new results; the old file is kept."""
        file: Path = self.arguments.results
        if self.arguments.resume and file.exists():
            results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            if results["text"]["sha256"] != text["sha256"]:
                sys.exit(f"{file} measured another text; leave --resume out to begin anew")
            here = {**header(), "threads": self.arguments.threads}
            for key in ("processor", "cores", "torch", "threads"):
                if results["machine"][key] != here[key]:
                    was = results["machine"][key]
                    sys.exit(
                        f"{file} was measured with {key} = {was}, here it is {here[key]};"
                        " leave --resume out to begin anew"
                    )
            return results
        if file.exists():
            file.replace(file.with_suffix(".previous.json"))
        return {
            "machine": {**header(), "threads": self.arguments.threads},
            "text": text,
            "runs": [],
        }

    def _save(self) -> None:
        self.arguments.results.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.arguments.results, json.dumps(self.results, indent=1) + "\n")

    # -- the runs

    def measure(self, minutes: float) -> None:
        """The grid with ours in its middle, then the repeats: the best peer and ours in turn."""
        grid = self.grid(minutes)
        middle = len(grid) // 2
        for peer in grid[:middle]:
            self.once(minutes, peer, 1)
        self.once(minutes, None, 1)
        for peer in grid[middle:]:
            self.once(minutes, peer, 1)
        for count in range(2, self.arguments.repeats + 1):
            best = self.best(minutes)
            if best is not None:
                self.once(minutes, Peer(**best["settings"]), count)
            self.once(minutes, None, count)

    def grid(self, minutes: float) -> list[Peer]:
        if self.arguments.quick:
            full = QUICK
        elif minutes > 20:
            full = []  # the goals there are the fixed marks
        elif minutes > 5:
            ranked = sorted(self.peers(2), key=lambda run: run["bits_per_byte"])
            names = {run["contender"]: Peer(**run["settings"]) for run in ranked}
            full = [*[*names.values(), *SMALL[:2]][:2], *LARGE]
        else:
            full = SMALL
        wanted = self.arguments.peers
        return full if wanted == "all" else full[: 0 if wanted == "none" else int(wanted)]

    def once(self, minutes: float, peer: Peer | None, count: int) -> None:
        """Run a contender until it has ``count`` results for the budget, and save them."""
        name = peer.name if peer else OURS
        if len(self.runs(minutes, name)) >= count:
            return
        say(f"{minutes:g} minutes: {name}")
        result = self.run_peer(peer, minutes, count) if peer else self.run_ours(minutes, count)
        settings = asdict(peer) if peer else {}
        run = {"minutes": minutes, "contender": name, "settings": settings, **result}
        self.results["runs"].append(run)
        self._save()
        say(f"  {run['bits_per_byte']:.4f} bits per byte, {run['bytes_per_second']:,} bytes/s")

    def run_peer(self, peer: Peer, minutes: float, seed: int) -> dict[str, Any]:
        program = HERE / "peers/bare_gpt.py"
        result: dict[str, Any] = json.loads(
            self.child(
                str(program), "--data", str(self.folder / "data.npz"), "--minutes", str(minutes),
                "--seed", str(seed), "--threads", str(self.arguments.threads), *peer.flags(),
            )
        )  # fmt: skip
        return result

    def run_ours(self, minutes: float, seed: int) -> dict[str, Any]:
        keep: Path = self.arguments.keep or self.folder
        keep.mkdir(parents=True, exist_ok=True)
        out = Path(tempfile.mkdtemp(prefix=f"{minutes:g}-minutes-", dir=keep)) / "run"
        config = out.with_suffix(".toml")
        values = {
            "data.train": [str(Path(self.arguments.text).resolve())],
            "data.held_out": HELD_OUT,
            "train.minutes": minutes,
            "train.threads": self.arguments.threads,
            # Like the peer, ours neither writes samples nor saves on the way.
            "train.sample_every": 10**9,
            "train.checkpoint.every": 10**9,
        }
        head = f'name = "quality-per-minute"\nseed = {seed}\n'
        body = "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
        config.write_text(head + body, encoding="utf-8")
        self.child("-m", "flyweight", "train", str(config), "--out", str(out), "--json")
        self.same_split(out)
        ledger = (out / "ledger.jsonl").read_text(encoding="utf-8").splitlines()
        last = json.loads(ledger[-1])
        # From the data's being there to the last step: calibration and all else counts.
        began = (out / "dataset/dataset.json").stat().st_mtime
        seconds = (out / "ledger.jsonl").stat().st_mtime - began
        scored = json.loads(
            self.child(
                str(HERE / "score_run.py"), str(out), str(self.folder / "held_out.json"),
                str(self.arguments.threads),
            )
        )  # fmt: skip
        return {
            "steps": last["step"],
            "seconds": round(seconds, 2),
            "bytes_seen": last["bytes"],
            "bytes_per_second": round(last["bytes"] / seconds),
            "training_bits_per_byte": round(last["bits_per_byte"], 4),
            **scored,
        }

    def child(self, *command: str) -> str:
        """A process with the benchmark's threads; its standard output."""
        threads = str(self.arguments.threads)
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        done = subprocess.run(
            [sys.executable, *command], env=environment, stdout=subprocess.PIPE, text=True
        )
        if done.returncode:
            sys.exit(
                f"{' '.join(command)}\nended with exit code {done.returncode};"
                " what was finished before is kept: mend it and go on with --resume"
            )
        return done.stdout

    def same_split(self, out: Path) -> None:
        """Our run must have held out what is scored here."""
        rows = (out / "dataset/documents.jsonl").read_text(encoding="utf-8").splitlines()
        documents = [json.loads(row) for row in rows]
        held = {row["name"] for row in documents if row["split"] == "held_out"}
        if held != {document.name for document in self.held_out}:
            raise AssertionError("the run held out other documents than those scored")

    # -- what came of them

    def runs(self, minutes: float, name: str) -> list[dict[str, Any]]:
        """The contender's runs with this budget."""
        found = self.results["runs"]
        return [r for r in found if r["minutes"] == minutes and r["contender"] == name]

    def peers(self, minutes: float) -> list[dict[str, Any]]:
        found = self.results["runs"]
        return [r for r in found if r["minutes"] == minutes and r["contender"] != OURS]

    def best(self, minutes: float) -> dict[str, Any] | None:
        """The peer's best run with this budget."""
        return min(self.peers(minutes), key=lambda run: run["bits_per_byte"], default=None)

    def median(self, minutes: float, name: str) -> float | None:
        values = [run["bits_per_byte"] for run in self.runs(minutes, name)]
        return statistics.median(values) if values else None

    def verdicts(self, minutes: float) -> Iterator[str]:
        ours = self.median(minutes, OURS)
        if ours is None:
            return
        against = {name: mark["bits_per_byte"] for name, mark in self.results["marks"].items()}
        best = self.best(minutes)
        peer = self.median(minutes, best["contender"]) if best else None
        if peer is not None:
            against["peer"] = peer
        goals = GOALS.get(minutes, {})
        for name in ("peer", "xz -9e", "xz with dictionary"):
            if name not in against:
                if name in goals:
                    yield f"  of the best {name}: not measured (goal at most {goals[name]:.2f})"
                continue
            ratio = ours / against[name]
            line = f"  of {'the best ' if name == 'peer' else ''}{name}: {ratio:.3f}"
            if name in goals:
                reached = ratio < 1 if goals[name] == 1 else ratio <= goals[name]
                sign = "below" if goals[name] == 1 else "at most"
                line += f" (goal {sign} {goals[name]:.2f}: {'reached' if reached else 'MISSED'})"
            yield line
        for run in self.runs(minutes, OURS):
            if run["seconds"] > TOLERANCE * 60 * minutes:
                yield (
                    f"  NOT AT EQUAL TIME: ours trained for {run['seconds']:.1f} s"
                    f" of {60 * minutes:g}"
                )

    def table(self) -> Iterator[str]:
        yield from lines(self.results["machine"])
        text = self.results["text"]
        yield (
            f"{text['train_bytes']:,} bytes to train on; bits per byte on all of the"
            f" {text['held_out_bytes']:,} held-out ones ({text['held_out_documents']} documents)"
        )
        yield ""
        yield f"{'':<34}{'bits/byte':>10}{'parameters':>12}{'seen, MB':>10}{'seconds':>9}"
        for minutes in sorted({run["minutes"] for run in self.results["runs"]}):
            yield f"{minutes:g} minutes"
            here = [run for run in self.results["runs"] if run["minutes"] == minutes]
            for run in sorted(here, key=lambda run: run["bits_per_byte"]):
                yield (
                    f"  {run['contender']:<32}{run['bits_per_byte']:>10.4f}"
                    f"{run['parameters'] / 1e6:>11.1f}M{run['bytes_seen'] / 1e6:>10.2f}"
                    f"{run['seconds']:>9.1f}"
                )
            yield from (f"  ours {line.strip()}" for line in self.verdicts(minutes))
        yield "fixed marks on the held-out bytes, joined into one file"
        for name, mark in self.results.get("marks", {}).items():
            yield f"  {name:<32}{mark['bits_per_byte']:>10.4f}  ({mark['bytes']:,} bytes)"


def joined(documents: list[Document]) -> bytes:
    return b"".join(document.text.encode() for document in documents)


def stream(documents: list[Document]) -> np.ndarray:
    """The bytes of all documents, uint16, each followed by 256."""
    parts = []
    for document in documents:
        parts += [np.frombuffer(document.text.encode(), dtype=np.uint8).astype(np.uint16), [256]]
    return np.concatenate(parts).astype(np.uint16)


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
