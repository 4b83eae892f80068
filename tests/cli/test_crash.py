"""Killed at chosen system calls and random instants, and on a full disk: nothing saved is lost.

The calls are met surely, not by luck: a small library (crash_at.c) is laid between the trainer and
the system, which dies at the n-th call that changes the run's folder, in the middle of a write
where it is one, or lets the disk run full. `make test` does a few, `make test-crash` all.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from flyweight.files.index import entries
from flyweight.files.run import RunFolder, read_checkpoint_state
from flyweight.load import load
from flyweight.train.ledger import TIMES

CC = next((found for name in ("cc", "gcc", "clang", "c++") if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or CC is None,
    reason="needs Linux's LD_PRELOAD and a C compiler",
)
STEPS = 24
SETTINGS = [
    f"train.steps={STEPS}", "train.sample_every=6",
    "train.checkpoint={every=2, powers=3, keep=2, keep_every=8, keep_best=1}",
]  # fmt: skip


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("crash") / "crash_at.so"
    source = Path(__file__).with_name("crash_at.c")
    assert CC is not None
    subprocess.run([CC, "-shared", "-fPIC", "-O1", "-o", made, source, "-ldl"], check=True)
    return made


@dataclass
class Trainer:
    """Trains, resumes and dies in ``run``, beside ``whole``, the same run undisturbed.

    ``calls``: a letter for each call by which the undisturbed run changed its folder: w(rite),
    s(ync), r(ename), m(kdir), u(nlink), d (rmdir), l(ink).
    """

    program: Any
    library: Path
    kind: str
    calls: str = ""
    said: str = ""

    @property
    def run(self) -> Path:
        return Path(self.program.folder) / "run"

    @property
    def whole(self) -> Path:
        return Path(self.program.folder) / "whole"

    def train(self, folder: Path, limit: int | None = None, **how: Any) -> Any:
        """Begin to `train`, or to `resume` where the run was begun. ``how``: CRASH_AT and so on."""
        words = ["train", f"{self.kind}.toml", *SETTINGS, "--out", folder.name]
        if (folder / "run.toml").exists():
            words = ["resume", folder.name]
        elif folder.exists() and any(folder.iterdir()):
            self.program(*words).failed("empty it", "--out")
            shutil.rmtree(folder)
        environment = {
            **self.program.environment, "LD_PRELOAD": str(self.library),
            "CRASH_FOLDER": str(folder), **{key: str(value) for key, value in how.items()},
        }  # fmt: skip
        arguments = [sys.executable, "-m", "flyweight", *words]
        if limit is not None:
            arguments = ["prlimit", f"--fsize={limit}", *arguments]
        return subprocess.Popen(
            arguments, cwd=folder.parent, env=environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip

    def end(self, process: Any) -> int:
        """Its exit code; what it said is in ``said``."""
        self.said = process.communicate()[1].decode()
        assert "Traceback" not in self.said, self.said
        return int(process.returncode)

    def check(self) -> None:
        """The newest complete checkpoint loads, and is the undisturbed run's to the last bit."""
        run, whole = RunFolder(self.run), RunFolder(self.whole)
        if not (self.run / "run.toml").exists() or not run.steps():
            return
        step = run.steps()[-1]
        state = read_checkpoint_state(run.checkpoint_path(step))
        lines = {line["step"]: line for line in entries(whole)}
        assert state["sha256"]["state.json"] == lines[step]["digest"]
        assert load(f"{run.path}@{step}", engine="torch").logprobs("def read_")
        assert ledger(run)[:step] == ledger(whole)[:step]

    def finish(self) -> None:
        """Go on undisturbed: the record is that of the undisturbed run, whatever came before."""
        assert self.end(self.train(self.run)) == 0, self.said
        self.check()
        run, whole = RunFolder(self.run), RunFolder(self.whole)
        assert ledger(run) == ledger(whole)
        assert samples(run) == samples(whole)
        assert run.index.read_bytes() == whole.index.read_bytes()
        assert run.steps() == whole.steps()
        for step in run.steps():
            for file in whole.checkpoint_path(step).iterdir():
                assert (run.checkpoint_path(step) / file.name).read_bytes() == file.read_bytes()
        for file in whole.model.iterdir():
            assert (run.model / file.name).read_bytes() == file.read_bytes()
        assert not [path for path in self.run.rglob("*") if path.name.endswith(".tmp")]


def ledger(run: RunFolder) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMES} for line in run.read_ledger()]


def samples(run: RunFolder) -> list[dict[str, Any]]:
    return [{**json.loads(line), "seconds": 0} for line in run.samples.read_text().splitlines()]


@pytest.fixture(scope="module")
def made(
    request: pytest.FixtureRequest,
    furnish: Any,
    tmp_path_factory: pytest.TempPathFactory,
    library: Path,
) -> Trainer:
    """The undisturbed run; a module's tests share it. By default of Muon with sparse n-gram
    tables, as quickstart's, with the engine's kernels; thinned by every rule."""
    program = furnish(tmp_path_factory.mktemp("crashes"))
    trainer = Trainer(program, library, getattr(request, "param", "bytes"))
    noted = program.folder / "calls"
    assert trainer.end(trainer.train(trainer.whole, CRASH_COUNT=noted)) == 0, trainer.said
    trainer.calls = noted.read_text()
    steps = RunFolder(trainer.whole).steps()
    assert steps[-2:] == [22, 24] and set(steps) >= {8, 16} and len(steps) <= 5, (
        "newest, every eighth and the best"
    )
    assert [line["step"] for line in samples(RunFolder(trainer.whole))] == [6, 12, 18, 24]
    return trainer


@pytest.fixture
def trainer(made: Trainer) -> Trainer:
    shutil.rmtree(made.run, ignore_errors=True)
    return made


def killed_at(trainer: Trainer, call: int) -> int:
    """Train until the ``call``-th call, or to the end where there are fewer; the exit code."""
    code = trainer.end(trainer.train(trainer.run, CRASH_AT=call))
    print(f"killed at call {call} of {len(trainer.calls)}: {code}")
    assert code in (0, -signal.SIGKILL), trainer.said
    trainer.check()
    return code


def places(calls: str, kind: str) -> list[int]:
    return [place for place, letter in enumerate(calls) if letter == kind]


def test_killed_within_a_checkpoint_s_write_rename_and_removal(trainer: Trainer) -> None:
    middle = len(trainer.calls) // 2
    for kind in "wru":
        # The first one half-way through the run; a run that goes on has fewer calls before it.
        killed_at(trainer, next(p for p in places(trainer.calls, kind) if p >= middle))
        middle //= 3
    trainer.finish()


def full(trainer: Trainer, **how: Any) -> None:
    code = trainer.end(trainer.train(trainer.run, **how))
    print(f"a full disk, {how}: {code}")
    if code:
        # One message, which says what is to be done.
        assert code == 1, trainer.said
        errors = [line for line in trainer.said.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, trainer.said
        full = "No space left on device", "no space left", "File too large"
        assert any(words in errors[0] for words in full), trainer.said
    trainer.check()


def test_a_full_disk_loses_nothing(trainer: Trainer) -> None:
    sizes = [path.stat().st_size for path in trainer.whole.rglob("*") if path.is_file()]
    full(trainer, CRASH_BYTES=sum(sizes) * 2 // 3)
    full(trainer, limit=max(sizes) - 1)
    trainer.finish()


# muP, schedules, ramps, spikes, dropout and spans under AdamW; patches of bytes.
OTHERS = pytest.mark.parametrize("made", ["recipes", "patches"], indirect=True)


@pytest.mark.crash
@pytest.mark.parametrize("seed", range(10))
def test_killed_at_fifty_random_calls(trainer: Trainer, seed: int) -> None:
    killed_at_random_calls(trainer, seed)


@pytest.mark.crash
@OTHERS
@pytest.mark.parametrize("seed", [10, 11])
def test_other_recipes_killed_at_random_calls(trainer: Trainer, seed: int) -> None:
    killed_at_random_calls(trainer, seed)


def killed_at_random_calls(trainer: Trainer, seed: int) -> None:
    """Five times, never so late that the run would end before the last of them."""
    rng = random.Random(seed)
    for _ in range(5):
        assert killed_at(trainer, rng.randrange(len(trainer.calls) // 6)) == -signal.SIGKILL
    trainer.finish()


@pytest.mark.crash
@pytest.mark.parametrize("seed", range(5))
def test_killed_at_random_instants(trainer: Trainer, seed: int) -> None:
    killed_at_random_instants(trainer, seed)


@pytest.mark.crash
@OTHERS
@pytest.mark.parametrize("seed", [10])
def test_other_recipes_killed_at_random_instants(trainer: Trainer, seed: int) -> None:
    killed_at_random_instants(trainer, seed)


def killed_at_random_instants(trainer: Trainer, seed: int) -> None:
    rng = random.Random(100 + seed)
    for _ in range(5):
        process = trainer.train(trainer.run)
        ledger, begun = trainer.run / "ledger.jsonl", 0
        while process.poll() is None and not begun:
            begun = ledger.stat().st_mtime_ns if ledger.exists() else 0
            time.sleep(0.001)
        delay = rng.uniform(0, 0.5)
        time.sleep(delay)
        process.kill()
        code = trainer.end(process)
        print(f"killed {delay:.4f} s after the ledger was there: {code}")
        trainer.check()
    trainer.finish()


@pytest.mark.crash
@pytest.mark.parametrize("seed", range(4))
def test_the_disk_runs_full_at_random(trainer: Trainer, seed: int) -> None:
    rng = random.Random(200 + seed)
    sizes = [path.stat().st_size for path in trainer.whole.rglob("*") if path.is_file()]
    for _ in range(3):
        full(trainer, CRASH_BYTES=rng.randrange(sum(sizes) * 2))
        full(trainer, limit=rng.randrange(1, max(sizes)))
    trainer.finish()
