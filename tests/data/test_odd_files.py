"""Folders that hold what no folder of texts should: it is passed over and counted."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flyweight.cli.main import main
from flyweight.data.shards import Dataset


def build(folder: Path, *more: str) -> int:
    config = folder / "c.toml"
    config.write_text('[data]\ntrain = ["texts"]\nheld_out = 0\non_error = "skip"\n')
    return main(["data", "build", str(config), "--out", str(folder / "d"), *more])


def texts_of(folder: Path) -> dict[str, str]:
    dataset = Dataset.open(folder / "d", check="full")
    return {name: text.decode() for name, text in dataset.train.texts(dataset.tokenizer)}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "good.txt").write_text("good")
    return tmp_path / "texts"


def test_pipes_and_devices_are_not_read(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(texts / "pipe.jsonl")
    (texts / "to-pipe.txt").symlink_to("pipe.jsonl")
    (texts / "zeros.txt").symlink_to("/dev/zero")
    (texts / "broken").symlink_to("nowhere")
    assert build(texts.parent) == 0
    said = capsys.readouterr().err
    assert "skipped 3: no regular file (pipe.jsonl, to-pipe.txt, zeros.txt)" in said
    assert "skipped 1: unreadable, no such file or directory (broken)" in said
    assert texts_of(texts.parent) == {"good.txt": "good"}
    assert build(texts.parent, "data.train=['texts/zeros.txt']", "--restart", "--dry-run") == 1
    assert "no text in texts/zeros.txt (1 file: 1 no regular file)" in capsys.readouterr().err


def test_names_may_hold_anything(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (b"a\nb.txt", b"caf\xe9.txt", b"|`.txt", b"\xff/\xfe.md"):
        path = texts / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"in {name!r}")
    ids = [{"id": "half \ud83d", "text": "a row"}, {"id": "", "text": "no id"}]
    (texts / "rows.jsonl").write_text("\n".join(map(json.dumps, ids)))
    (texts / os.fsdecode(b"\xe9.png")).write_bytes(b"\0\1\2")
    assert build(texts.parent) == 0
    assert texts_of(texts.parent) == {
        "a\nb.txt": "in b'a\\nb.txt'",
        "caf\\udce9.txt": "in b'caf\\xe9.txt'",
        "|`.txt": "in b'|`.txt'",
        "\\udcff/\\udcfe.md": "in b'\\xff/\\xfe.md'",
        "half \\ud83d": "a row",
        "rows.jsonl:2": "no id",
        "good.txt": "good",
    }
    assert "binary (\\udce9.png)" in capsys.readouterr().err
    # A path that the user names, and the dataset's own.
    config = str(texts.parent / "c.toml")
    out, path = str(texts.parent / "d\udcff"), "texts/caf\udce9.txt"
    command = ["data", "build", config, "--out", out, f"data.train=['{path}']", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "flyweight", *command], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout)["sources"]) == ["texts/caf\\udce9.txt"]


def test_empty_files_give_nothing_and_zeros_are_bounded(
    texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for suffix in ("txt", "html", "jsonl", "csv", "jsonl.gz", "jsonl.zst", "txt.gz"):
        (texts / f"empty.{suffix}").write_bytes(b"")
    zeros = gzip.compress(bytes(80 << 20), 1)
    for suffix in ("jsonl", "txt", "csv", "html"):
        (texts / f"zeros.{suffix}.gz").write_bytes(zeros)
    (texts / "mark.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "after a mark"}\n')
    (texts / "mark.csv").write_bytes(b"\xef\xbb\xbftext\nin a cell\n")
    assert build(texts.parent) == 0
    said = capsys.readouterr().err
    assert "skipped 1: binary (zeros.txt.gz)" in said
    assert (
        "skipped 3: longer than 67108864 bytes (zeros.csv.gz:1, zeros.html.gz, zeros.jsonl.gz:1)"
        in said
    )
    assert texts_of(texts.parent) == {
        "good.txt": "good",
        "mark.jsonl:1": "after a mark",
        "mark.csv:2": "in a cell",
    }
