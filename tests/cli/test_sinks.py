"""Sinks, read back from their files, hold the ledger's values, each step once."""

from __future__ import annotations

import importlib.util
import json
import shutil
import signal
import sqlite3
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

Values = list[tuple[int, dict[str, float]]]


def tensorboard(folder: Path) -> Values:
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    files = list(folder.glob("events.*"))
    assert len(files) == 1
    events = [Event.FromString(raw) for raw in RawEventFileLoader(str(files[0])).Load()]
    return [(e.step, {v.tag: v.simple_value for v in e.summary.value}) for e in events[1:]]


def trackio(folder: Path) -> Values:
    rows = sqlite3.connect(folder / "flyweight.db").execute("select step, metrics from metrics")
    return sorted((step, json.loads(metrics)) for step, metrics in rows)


def wandb(folder: Path) -> Values:
    from wandb.proto.wandb_internal_pb2 import Record

    files = list(folder.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 1
    found = []
    for raw in leveldb_log(files[0].read_bytes()):
        history = Record.FromString(raw).history
        if history.item:
            items = {(i.key or i.nested_key[0]): json.loads(i.value_json) for i in history.item}
            named = {key: value for key, value in items.items() if not key.startswith("_")}
            found.append((items["_step"], named))
    return found


def leveldb_log(content: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log of 32 KiB blocks, after seven bytes."""
    at, parts = 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # too little for a head: the next block
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last of its parts
            yield parts
            parts = b""


READERS = {"tensorboard": tensorboard, "trackio": trackio, "wandb": wandb}


def ledger(run: Path) -> Values:
    lines = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    keys = lines[0].keys() - {"step", "chain", "digest"}
    return [(line["step"], {key: line[key] for key in keys}) for line in lines]


def assert_same(found: Values, expected: Values, single: bool) -> None:
    """The same steps, in order, and the same figures; TensorBoard's are of single precision."""
    assert [step for step, _ in found] == [step for step, _ in expected]
    for (_, ours), (_, theirs) in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert ours[key] == (np.float32(value) if single else value), key


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("trackio", "wandb")]


@pytest.mark.parametrize("name", ["tensorboard", *SLOW])
def test_a_ledger_is_replayed_into_a_sink(
    run_copy: Path, program: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """In a process each, as Trackio can write into one folder only."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed (pip install flyweight[sinks])")
    # Nothing leaves the machine, whatever the environment has a library do.
    for way in ("TRACKIO_SERVER_URL", "TRACKIO_SPACE_ID"):
        monkeypatch.setitem(program.environment, way, "http://localhost:1/nowhere")
    monkeypatch.setitem(program.environment, "WANDB_MODE", "online")
    for _ in range(2):  # anew each time, not added to
        done = program("report", "run", "--sink", name).ok()
        assert f"run/sinks/{name}" in done.out
        assert_same(
            READERS[name](run_copy / "sinks" / name), ledger(run_copy), single=name == "tensorboard"
        )


def test_a_killed_run_has_each_step_once(program: Any) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    run = program.folder / "run"
    process = program.start("train", "bytes.toml", 'train.sinks=["tensorboard"]', "--out", "run")
    while process.poll() is None and not lines_in(run / "ledger.jsonl") >= 6:
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    program("resume", "run").ok()
    assert_same(tensorboard(run / "sinks" / "tensorboard"), ledger(run), single=True)


def lines_in(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_failing_sink_is_said_once_and_ends_nothing(program: Any, command: Any) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    run = program.folder / "run"
    command("train", "bytes.toml", 'train.sinks=["tensorboard"]', "--out", "run").ok()
    shutil.rmtree(run / "checkpoints" / "000012")
    shutil.rmtree(run / "sinks")
    (run / "sinks").write_text("a file where the folder should be")
    command("report", "run", "--sink", "tensorboard").failed("the sink tensorboard failed")
    done = command("resume", "run").ok()
    assert done.err.count("the sink tensorboard failed and is left alone") == 1
    assert [step for step, _ in ledger(run)] == list(range(1, 13))


def test_a_sink_that_is_none_or_not_installed_is_refused(run_copy: Path, command: Any) -> None:
    command("train", "run/run.toml", 'train.sinks=["tensorbord"]').failed("tensorboard")
    command("report", "run", "--sink", "mlflow").failed("mlflow", "tensorboard, wandb, trackio")
