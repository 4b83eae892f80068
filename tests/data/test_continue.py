"""A build is the same to the byte whoever does it, and however often it was killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flyweight.cli.main import main
from flyweight.data import plan
from flyweight.data.shards import Dataset, is_dataset

# Small parts, so that a small corpus has many; for the worker processes too.
SMALL = """
import runpy, sys
from flyweight.data import plan
plan.UNIT_BYTES = 40_000
plan.PART_BYTES = 20_000
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


def write_corpus(folder: Path) -> Path:
    """Some 600 KB in a few sources and formats, with copies."""
    words = random.Random(5)
    texts = [
        " ".join(words.choice(["ship", "sea", "été", "日本", "of", "a", "the"]) for _ in range(80))
        for _ in range(1200)
    ]
    (folder / "books").mkdir()
    for n in range(40):
        (folder / "books" / f"{n}.md").write_text("\n".join(texts[n * 10 : n * 10 + 10]))
    lines = [json.dumps({"text": text}) for text in [*texts[400:], *texts[600:700]]]
    (folder / "web.jsonl").write_text("\n".join(lines))
    (folder / "c.toml").write_text(
        '[data]\n[data.sources.books]\npaths = ["books"]\n'
        '[data.sources.web]\npaths = ["web.jsonl"]\n'
        "[text]\ntokenizer = { kind = 'bpe', size = 300 }\n"
    )
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus's dataset, built by one process without a break."""
    folder = write_corpus(tmp_path_factory.mktemp("whole"))
    build = command(folder, "--out", str(folder / "d"), "data.workers=1")
    # Nothing of the machine's customs is in it.
    odd = {**os.environ, "PYTHONHASHSEED": "7", "LC_ALL": "tr_TR.UTF-8", "TZ": "Asia/Kathmandu"}
    subprocess.run(build, check=True, env=odd)
    return folder / "d"


def command(folder: Path, *more: str) -> list[str]:
    build = ["data", "build", str(folder / "c.toml"), *more]
    return [sys.executable, "-c", SMALL, "flyweight", *build]


def same(one: Path, other: Path) -> None:
    files = sorted(path.name for path in one.iterdir())
    assert files == sorted(path.name for path in other.iterdir())
    for name in files:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_any_number_of_workers_makes_the_same(corpus: Path, whole: Path) -> None:
    # The same files, put there in another order.
    again = sorted((corpus / "books").iterdir(), key=lambda file: file.read_bytes())
    for file in again:
        text = file.read_bytes()
        file.unlink()
        file.write_bytes(text)
    out = corpus / "three" / "d"
    subprocess.run(command(corpus, "--out", str(out), "data.workers=3"), check=True)
    same(whole, out)


def test_a_killed_build_goes_on(corpus: Path, whole: Path) -> None:
    moments = random.Random(11)
    out = corpus / "killed" / "d"
    kills = 0
    while not is_dataset(out):
        with subprocess.Popen(command(corpus, "--out", str(out), "data.workers=2")) as build:
            try:
                # At first while Python starts, later anywhere in the work.
                build.wait(moments.uniform(0.3, 1.0 + 0.5 * kills))
            except subprocess.TimeoutExpired:
                build.send_signal(signal.SIGKILL)
                kills += 1
        if not is_dataset(out):
            assert not out.exists()
    assert kills
    same(whole, out)
    assert not out.with_name("d.partial").exists()


def children(build: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(build.pid).children(recursive=True)


def test_a_killed_worker_ends_the_build_which_then_goes_on(corpus: Path, whole: Path) -> None:
    out = corpus / "killed" / "d"
    build = command(corpus, "--out", str(out), "data.workers=2")
    with subprocess.Popen(build, stderr=subprocess.PIPE) as broken:
        while not (workers := children(broken)):
            time.sleep(0.01)
        workers[0].kill()
        assert broken.stderr is not None
        said = broken.stderr.read().decode()
    assert broken.returncode == 1
    assert "a worker ended while it did " in said
    assert "run the command again to go on" in said
    psutil.wait_procs(workers, timeout=10)
    assert not any(worker.is_running() for worker in workers)
    assert not out.exists()
    subprocess.run(build, check=True)
    same(whole, out)


def test_an_interrupted_build_says_how_to_go_on(corpus: Path) -> None:
    out = corpus / "d"
    build = command(corpus, "--out", str(out), "data.workers=2")
    with subprocess.Popen(build, stderr=subprocess.PIPE) as stopped:
        while not (workers := children(stopped)):
            time.sleep(0.01)
        stopped.send_signal(signal.SIGINT)
        assert stopped.stderr is not None
        said = stopped.stderr.read().decode()
    assert stopped.returncode == 130
    assert "interrupted; what is done is kept: run the command again" in said
    psutil.wait_procs(workers, timeout=10)
    assert not any(worker.is_running() for worker in workers)
    assert not out.exists()
    again = subprocess.run([*build, "data.held_out=0.3"], capture_output=True, check=False)
    assert b"unfinished build of something else (its configuration is another)" in again.stderr
    assert not out.exists()


def test_two_builds_at_once_do_not_mix(corpus: Path) -> None:
    out = corpus / "d"
    with subprocess.Popen(command(corpus, "--out", str(out))) as first:
        while not out.with_name("d.partial").exists():
            time.sleep(0.01)
        # Stopped, it still holds the place.
        first.send_signal(signal.SIGSTOP)
        second = subprocess.run(
            command(corpus, "--out", str(out)), capture_output=True, text=True, check=False
        )
        first.send_signal(signal.SIGCONT)
    assert second.returncode == 1
    assert "another build is at work" in second.stderr
    assert first.returncode == 0
    assert Dataset.open(out, check="full").record["cleaned"]["documents"] == 940


def test_an_unfinished_build_of_other_input_is_not_gone_on_with(
    corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "UNIT_BYTES", 40_000)
    monkeypatch.setattr(plan, "PART_BYTES", 20_000)
    build = ["data", "build", str(corpus / "c.toml"), "--out", str(corpus / "d")]
    build.append("text.tokenizer=bytes")
    lines = (corpus / "web.jsonl").read_text().splitlines()
    (corpus / "web.jsonl").write_text("\n".join([*lines, "no JSON"]))
    assert main(build) == 1
    assert "line 901: not valid JSON" in capsys.readouterr().err
    assert not (corpus / "d").exists()
    # The line is mended; the files that were read before are as they were.
    time.sleep(0.01)
    (corpus / "web.jsonl").write_text("\n".join(lines))
    assert main(build) == 1
    said = capsys.readouterr().err
    assert "unfinished build of something else (changed since" in said
    assert "web.jsonl" in said
    assert main([*build, "--restart"]) == 0
    os.rename(corpus / "d", corpus / "mended")
    assert main(build) == 0
    same(corpus / "mended", corpus / "d")


def test_a_dry_run_reports_and_leaves_nothing(
    corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(corpus.iterdir())
    build = ["data", "build", str(corpus / "c.toml"), "--out", str(corpus / "d"), "--dry-run"]
    assert main([*build, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["sources"]["books"]["documents"] == 40
    assert report["sources"]["web"]["documents"] == 900
    assert report["sources"]["web"]["kept"] == 800
    assert report["sources"]["web"]["dropped"]["duplicates"] == 100
    assert main(build) == 0
    assert "| web | 900 |" in capsys.readouterr().out
    assert sorted(corpus.iterdir()) == before
    monkeypatch.chdir(corpus)
    assert main(["data", "build", "c.toml", "--dry-run"]) == 0
    assert sorted(corpus.iterdir()) == before, "nor the folder for datasets"
