"""A run folder as training leaves it, over the interpreter's own text."""

from __future__ import annotations

import argparse
import bz2
import gzip
import json
import lzma
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MakeRun = Callable[..., Path]


def _ledger_lines(steps: int) -> list[dict[str, Any]]:
    """A falling loss with one spike, a warmup-stable-decay rate, a slow first step."""
    lines = []
    for step in range(1, steps + 1):
        share = step / steps
        bits = 1.4 + 6.5 * math.exp(-step / (0.03 * steps)) + 0.05 * math.sin(step)
        seconds = 0.2 + (1.5 if step == 1 else 0.01 * math.cos(step))
        lines.append(
            {
                "step": step,
                "tokens": step * 8192,
                "bytes": step * 8192,
                "loss": bits * math.log(2),
                "bits_per_byte": bits + (2.0 if step == steps // 2 else 0.0),
                "learning_rate": 0.02 * min(1.0, step / 20) * min(1.0, 2 * (1 - share)),
                "gradient_norm": 0.4 + 3 * math.exp(-9 * share),
                "seconds": seconds,
                "tokens_per_second": 8192 / seconds,
                "bytes_per_second": 8192 / seconds,
                "matrix_share": 0.09 / seconds,
                "digest": f"{step:016x}",
            }
        )
    return lines


@pytest.fixture(scope="session")
def ledger_lines() -> Callable[[int], list[dict[str, Any]]]:
    return _ledger_lines


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Write a complete run folder of ``steps`` steps; ``samples`` replace the ordinary ones."""

    def make(steps: int = 300, samples: list[dict[str, Any]] | None = None) -> Path:
        run = tmp_path / "a run"
        run.mkdir()
        text = Path(argparse.__file__).read_bytes()
        (run / "run.toml").write_text(
            f'name = "fairy <tales>"\nseed = 0\n\n[model]\nwidth = 256\ndepth = 4\n\n'
            f"[train]\nsteps = {steps}\n",
            encoding="utf-8",
        )
        (run / "environment.json").write_text(
            json.dumps({"processor": "A Processor @ 3 GHz", "threads": 2, "torch": "2.13.0"})
        )
        (run / "data.json").write_text(
            json.dumps({"fingerprint": "9f" * 32, "dataset": "../my data"})
        )
        with (run / "ledger.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in _ledger_lines(steps))
        if samples is None:
            words = text.decode()
            samples = [
                {"step": s, "prompt": "def ", "text": words[9 * s : 9 * s + 200], "seconds": s}
                for s in range(1, steps + 1, max(steps // 10, 1))
            ]
        with (run / "samples.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in samples)
        packed = {
            "gzip -9": len(gzip.compress(text, 9)),
            "bzip2 -9": len(bz2.compress(text, 9)),
            "xz -9e": len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)),
        }
        evaluation = {
            "held_out": {
                "bits_per_byte": 1.75,
                "bytes": len(text),
                "documents": 1,
                "sampled": True,
                "note": "1 of 12 files.",
            },
            "compressors": [
                {"name": name, "bits_per_byte": 8 * size / len(text), "bytes": size}
                for name, size in packed.items()
            ],
            "model": {"parameters": 1_234_567},
        }
        (run / "evaluation.json").write_text(json.dumps(evaluation))
        return run

    return make
