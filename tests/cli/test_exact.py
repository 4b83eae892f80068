"""A run that was killed, stopped or done again ends equal to the last bit."""

from __future__ import annotations

import json
import math
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TIMES = {"seconds", "tokens_per_second", "bytes_per_second", "peak_memory"}
STEPS = 12
KINDS = ["bpe", "bytes", "patches", "recipes"]
Finished = Callable[[str], Path]


def ledger(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    assert all(line.keys() >= TIMES for line in lines)
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def assert_equal(run: Path, reference: Path, steps: int = STEPS) -> None:
    """Same ledger but for the times, same weights and optimiser state to the byte."""
    assert ledger(run) == ledger(reference)
    assert [line["step"] for line in ledger(run)] == list(range(1, steps + 1))
    for name in ("model.safetensors", "optimizer.safetensors"):
        ours, theirs = (path / "checkpoints" / f"{steps:06d}" / name for path in (run, reference))
        assert ours.read_bytes() == theirs.read_bytes(), name
    weights = run / "model" / "model.safetensors"
    assert weights.read_bytes() == (reference / "model" / "model.safetensors").read_bytes()
    assert not [path for path in run.rglob("*") if path.name.endswith(".tmp")]


def lines_in(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_after(process: Any, run: Path, step: int, delay: float) -> bool:
    """``kill -9`` some time after the ledger's line of ``step``; whether it was still alive."""
    while process.poll() is None:
        if lines_in(run / "ledger.jsonl") >= step and (run / "run.toml").exists():
            break
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_resumed_equals_undisturbed(program: Any, finished: Finished, kind: str) -> None:
    killed_and_resumed(program, finished, kind, seed=KINDS.index(kind), kills=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", KINDS)
def test_killed_many_times_equals_undisturbed(
    program: Any, finished: Finished, kind: str, seed: int
) -> None:
    killed_and_resumed(program, finished, kind, seed=100 + seed, kills=3)


def killed_and_resumed(program: Any, finished: Finished, kind: str, seed: int, kills: int) -> None:
    rng = random.Random(seed)
    run = program.folder / "run"
    every = rng.choice([1, 1, 2, 3])
    settings = [f"train.checkpoint.every={every}", f"train.sample_every={rng.choice([7, 1000])}"]
    process = program.start("train", f"{kind}.toml", *settings, "--out", "run")
    step = 0
    for number in range(kills):
        step = rng.randint(step, STEPS - 1 - kills + number)
        delay = rng.uniform(0, 0.05)
        print(f"{kind}, seed {seed}: every {every}, kill {delay:.4f} s after step {step}")
        assert kill_after(process, run, step, delay) or lines_in(run / "ledger.jsonl") == STEPS
        process = program.start("resume", "run")
    program.end(process).ok()
    assert_equal(run, finished(kind))


# Counts the calls by which files become whole, and dies without a word before the one given.
CRASH = """
import os, signal, sys
from flyweight.cli import main
left = int(sys.argv.pop(1))
def armed(call):
    def counted(*arguments, **settings):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **settings)
    return counted
for name in ("fsync", "replace", "rename", "mkdir", "unlink", "link", "rmdir"):
    setattr(os, name, armed(getattr(os, name)))
code = main.main()
print(left, file=sys.stderr)
sys.exit(code)
"""


def crashed_and_resumed(program: Any, kind: str, call: int) -> bool:
    """Crash a run of 3 steps before file operation ``call``, then finish it."""
    arguments = ["train", f"{kind}.toml", "train.steps=3", "train.checkpoint.every=1"]
    whole, run = program.folder / "whole", program.folder / "run"
    if not whole.exists():
        program(*arguments, "--out", "whole").ok()
    process = program.python("-c", CRASH, str(call), *arguments, "--out", "run")
    died = program.end(process).code == -signal.SIGKILL
    print(f"{kind}: crash before file operation {call}: {died}")
    if not (run / "run.toml").exists():
        # Not begun: nothing to go on with, and both ways out are said.
        program("resume", "run").failed("run")
        if run.exists() and any(run.iterdir()):
            program(*arguments, "--out", "run").failed("empty it", "--out")
        return died
    program("resume", "run").ok()
    assert_equal(run, whole, steps=3)
    return died


@pytest.mark.slow
def test_a_crash_before_any_file_operation_loses_nothing(program: Any) -> None:
    call = 0
    while crashed_and_resumed(program, "patches", call):
        shutil.rmtree(program.folder / "run", ignore_errors=True)
        call += 1
    assert call > 40


def test_resuming_before_the_first_checkpoint_starts_at_step_0(
    program: Any, finished: Finished
) -> None:
    run = program.folder / "run"
    process = program.start("train", "bytes.toml", "train.checkpoint.every=100", "--out", "run")
    assert kill_after(process, run, 2, 0)
    assert not list((run / "checkpoints").glob("0*"))
    program("resume", "run").ok()
    assert_equal(run, finished("bytes"))


def test_resuming_a_complete_run_changes_nothing(program: Any, run_copy: Path) -> None:
    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()}

    program("report", "run").ok()  # the page names the folder, which is a copy
    before = content()
    done = program("resume", "run", "--json").ok()
    assert "is complete: 12 steps" in done.err
    assert done.json()["step"] == STEPS
    assert content() == before


@pytest.mark.parametrize("kind", ["bpe", "patches"])
def test_accumulation_is_the_same_within_rounding(
    program: Any, finished: Finished, kind: str
) -> None:
    settings = ["train.micro_batch_tokens=64", "train.steps=12"]
    program("train", f"{kind}.toml", *settings, "--out", "micro").ok()
    micro, whole = ledger(program.folder / "micro"), ledger(finished(kind))
    assert [line["digest"] for line in micro] == [line["digest"] for line in whole]
    assert all(
        math.isclose(a["loss"], b["loss"], rel_tol=2e-4) for a, b in zip(micro, whole, strict=True)
    )
    assert micro[0]["loss"] == pytest.approx(whole[0]["loss"], rel=1e-6)


def interrupt(process: Any, run: Path, step: int, sent: int = signal.SIGINT) -> None:
    while process.poll() is None and lines_in(run / "ledger.jsonl") < step:
        time.sleep(0.001)
    process.send_signal(sent)


def test_ctrl_c_saves_and_says_how_to_go_on(program: Any, finished: Finished) -> None:
    run = program.folder / "run"
    process = program.start("train", "patches.toml", "--out", "run", "--json")
    interrupt(process, run, 2)
    done = program.end(process)
    assert (done.code, done.out) == (130, "")
    assert "Traceback" not in done.err and "error" not in done.err
    assert done.err.count("flyweight resume run") == 1
    saved = lines_in(run / "ledger.jsonl")
    assert f"stopped after step {saved} of 12, which is saved" in done.err
    assert (run / "checkpoints" / f"{saved:06d}" / "state.json").exists()
    assert (run / "model" / "model.safetensors").exists()
    program("resume", "run").ok()
    assert_equal(run, finished("patches"))


def test_two_ctrl_c_stop_at_once(program: Any) -> None:
    run = program.folder / "run"
    # Long steps, so that the second comes before the first was answered.
    settings = ["train.batch_tokens=65536", "train.checkpoint.every=1000"]
    process = program.start("train", "bytes.toml", *settings, "--out", "run")
    while process.poll() is None and lines_in(run / "ledger.jsonl") < 1:
        time.sleep(0.001)
    # Well into the second step: the first may still be asking whether it shall stop.
    time.sleep(0.1)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    done = program.end(process)
    assert done.code == 130
    assert "Traceback" not in done.err
    assert not list((run / "checkpoints").glob("0*"))


def test_two_processes_do_not_train_one_run(program: Any, finished: Finished) -> None:
    pytest.importorskip("fcntl", reason="this system has no such locks")
    run = program.folder / "run"
    process = program.start("train", "bytes.toml", "--out", "run")
    # Stopped in the middle, so that it is still there while the other asks.
    interrupt(process, run, 1, signal.SIGSTOP)
    files = sorted(run.rglob("*"))
    program("resume", "run").failed("another process is training run", "stop it first")
    assert sorted(run.rglob("*")) == files
    process.kill()
    program.end(process)
    program("resume", "run").ok()
    assert_equal(run, finished("bytes"))


def test_a_budget_of_minutes_becomes_steps_and_run_toml_does_it_again(program: Any) -> None:
    config = program.folder / "budget.toml"
    text = (program.folder / "bpe.toml").read_text()
    config.write_text(text.replace("steps = 12", "minutes = 0.05").replace('"f32"', '"auto"'))
    done = program("train", "budget.toml", "--json").ok()
    first = program.folder / "runs" / "budget"
    assert done.json()["run"] == "runs/budget"
    steps = lines_in(first / "ledger.jsonl")
    said = (first / "run.toml").read_text()
    assert f"\nsteps = {steps}\n" in said and "minutes =" not in said
    # Elsewhere, from run.toml alone.
    again = program.folder / "elsewhere"
    program("train", "runs/budget/run.toml", "--out", "elsewhere").ok()
    assert_equal(again, first, steps)
    assert (again / "run.toml").read_text() == said
    shutil.rmtree(again / "checkpoints")
    program("resume", "elsewhere").ok()
    assert_equal(again, first, steps)
