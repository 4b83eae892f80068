"""torch.compile through the front door: it works where it can, and says so where it cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = """
[model]
width = 32
depth = 2
attention = { heads = 2 }
feedforward = { hidden = 64 }
[train]
context = 64
batch_tokens = 256
steps = 4
threads = 1
precision = "f32"
"""


def train(folder: Path, compiling: str, **environment: str) -> tuple[list[float], str]:
    text = folder / "text"
    text.mkdir(exist_ok=True)
    for name in ("argparse", "ast", "string"):
        source = Path(os.__file__).with_name(f"{name}.py")
        (text / source.name).write_bytes(source.read_bytes())
    config = folder / "run.toml"
    config.write_text(CONFIG + f'compile = "{compiling}"\n[data]\ntrain = ["text"]\n')
    out = folder / f"out-{compiling}"
    command = [sys.executable, "-m", "flyweight", "train", str(config), "--out", str(out)]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    lines = (out / "ledger.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines], done.stderr


def test_without_a_compiler_the_run_goes_on_and_says_so(tmp_path: Path) -> None:
    plain, _ = train(tmp_path, "off")
    losses, said = train(
        tmp_path, "on", CXX=str(tmp_path / "none"), TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache")
    )
    assert "torch.compile failed" in said
    assert losses == plain


@pytest.mark.slow
def test_compiled_and_eager_agree(tmp_path: Path) -> None:
    plain, _ = train(tmp_path, "off")
    losses, said = train(tmp_path, "on", TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
    assert "torch.compile failed" not in said
    assert losses == pytest.approx(plain, rel=1e-5)
