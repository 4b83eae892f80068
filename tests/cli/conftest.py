"""The program as a user runs it: real processes, on small models and the interpreter's own text."""

from __future__ import annotations

import bisect
import heapq
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

STEPS = 12
_TRAIN = """
[data]
train = ["texts"]
[train]
context = 64
batch_tokens = 512
steps = 12
threads = 1
precision = "f32"
schedule = { warmup = 2 }
checkpoint = { every = 4 }
sample_every = 1000
"""
_BODY = """
norm = { kind = "rms", eps = 1e-6, gain = false }
attention = { heads = 2, qk_norm = true }
feedforward = { kind = "relu2", hidden = 32 }
"""
CONFIGS = {
    # A token model with all the ordinary parts, on AdamW.
    "bpe": f"""
[model]
width = 32
depth = 2
attention = {{ heads = 2 }}
feedforward = {{ hidden = 32 }}
tie_embeddings = true
[text]
tokenizer = {{ kind = "bpe", size = 300 }}
{_TRAIN}
optimizer = {{ kind = "adamw", weight_decay = 0.1 }}
""",
    "bytes": f"""
[model]
use = "quickstart"
width = 32
depth = 1
{_BODY}
input = {{ kind = "tokens" }}
ngrams = {{ orders = [2, 3], rows = 64, dim = 8, dropout = 0.3 }}
matches = {{ lengths = [3, 5] }}
{_TRAIN}
""",
    # A byte model trained with everything that docs/training.md has.
    "recipes": f"""
[model]
width = 32
depth = 2
ahead = 2
attention = {{ heads = 2, scale = "1/d" }}
feedforward = {{ hidden = 32 }}
mup = {{ base_width = 16, embedding = 4.0, residual = 1.4 }}
{_TRAIN.replace("schedule = { warmup = 2 }", "")}
optimizer = {{ kind = "adamw", embedding_rate = 1.0, vector_rate = 1.0 }}
schedule = {{ warmup = 2, shape = "1-sqrt" }}
ramp = [{{ context = 32, until = 0.3 }}, {{ batch_tokens = 128, until = 0.7, linear = true }}]
dropout = {{ kind = "linear", start = 0.2, rate = 0.1 }}
spikes = {{ window = 8, threshold = 0.01, tries = 2 }}
embedding_gradient = 0.5
[train.objective]
z_loss = 1e-4
label_smoothing = 0.1
spans = {{ share = 0.5, most = 4 }}
prefix = 0.3
""",
    "patches": f"""
[model]
use = "quickstart"
width = 32
depth = 1
{_BODY}
input = {{ kind = "patches", size = 8, width = 32, decoder_depth = 1, hidden = 32 }}
ngrams = {{ orders = [2, 3], rows = 64, dim = 8, dropout = 0.3 }}
matches = {{ lengths = [3, 5] }}
{_TRAIN}
""",
}


@dataclass
class Program:
    """Runs the program in ``folder``, where texts/ and KIND.toml are; ``done`` is what a command
    comes to."""

    folder: Path
    done: Callable[[int, str, str], Any]
    environment: dict[str, str] = field(
        default_factory=lambda: {
            **os.environ, "OMP_NUM_THREADS": "1", "FLYWEIGHT_DEBUG": "0", "COLUMNS": "100",
        }
    )  # fmt: skip

    def start(self, *arguments: str | bytes, **settings: Any) -> subprocess.Popen[bytes]:
        """Begin a command and return its process."""
        return self.python("-m", "flyweight", *arguments, **settings)

    def python(self, *arguments: str | bytes, **settings: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self.environment,
            stdin=settings.pop("stdin", subprocess.DEVNULL),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **settings,
        )

    def shell(self, script: str) -> Any:
        """A shell's script, in which "$0" is the interpreter."""
        arguments = ["sh", "-c", script, sys.executable]
        run = subprocess.run(
            arguments, cwd=self.folder, env=self.environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        return self.done(run.returncode, run.stdout, run.stderr)

    def __call__(self, *arguments: str | bytes, input: bytes | None = None) -> Any:
        """A command in a process of its own, to its end."""
        stdin = subprocess.DEVNULL if input is None else subprocess.PIPE
        return self.end(self.start(*arguments, stdin=stdin), input)

    def end(self, process: subprocess.Popen[bytes], input: bytes | None = None) -> Any:
        out, err = process.communicate(input)
        return self.done(process.returncode, out.decode(), err.decode())


def _furnish(folder: Path, done: Callable[..., Any]) -> Program:
    (folder / "texts").mkdir()
    for module in (bisect, heapq, shutil, textwrap):
        shutil.copy(str(module.__file__), folder / "texts")
    for name, config in CONFIGS.items():
        (folder / f"{name}.toml").write_text(config)
    return Program(folder, done)


@pytest.fixture(scope="session")
def furnish(done: Callable[..., Any]) -> Callable[[Path], Program]:
    """Texts and configurations put into a folder, and the program to be run there."""
    return lambda folder: _furnish(folder, done)


@pytest.fixture
def program(tmp_path: Path, done: Callable[..., Any]) -> Program:
    return _furnish(tmp_path, done)


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, done: Callable[..., Any]
) -> Callable[[str], Path]:
    """The folder of an undisturbed run of STEPS steps of this kind; not to be changed."""
    program = _furnish(tmp_path_factory.mktemp("finished"), done)

    def run(kind: str) -> Path:
        path = program.folder / "runs" / kind
        if not path.exists():
            program("train", f"{kind}.toml").ok()
        return path

    return run


@pytest.fixture
def run_copy(finished: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a finished run, to be damaged."""
    shutil.copytree(finished("patches"), tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(name="run")
def finished_bytes(finished: Callable[[str], Path], tmp_path: Path) -> Path:
    """A finished run of a byte model, to be changed at will."""
    shutil.copytree(finished("bytes"), tmp_path / "run")
    return tmp_path / "run"
