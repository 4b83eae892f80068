"""Broken input, through the command line: named with file and line; it stops a build, or is
counted and skipped, as data.on_error says."""

from __future__ import annotations

import gzip
import importlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from flyweight.cli.main import main
from flyweight.data.shards import Dataset, is_dataset


def rows(*texts: str) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


GOOD = rows(*(f"good text number {n}" for n in range(8)))
MANY = rows(*(f"text number {n}, {'x' * (n % 97)}" for n in range(20_000)))


def parquet(columns: dict[str, list[object]]) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    out = pyarrow.BufferOutputStream()
    importlib.import_module("pyarrow.parquet").write_table(pyarrow.table(columns), out)
    return bytes(out.getvalue())


# name of the broken file, its content, what the error says, what is counted
BROKEN: dict[str, tuple[str, Callable[[], bytes], str, str]] = {
    "encoding": (
        "a.jsonl",
        lambda: GOOD + b'{"text": "\xff\xfe"}\n' + rows("after"),
        "a.jsonl, line 9: not valid JSON",
        "skipped 1: not valid JSON (a.jsonl:9)",
    ),
    "no object": (
        "a.jsonl",
        lambda: GOOD + b"[1, 2]\n" + rows("after"),
        "a.jsonl, line 9: a list, not an object",
        "skipped 1: a JSON line that is no object (a.jsonl:9)",
    ),
    "surrogate": (
        "a.jsonl",
        lambda: GOOD + b'{"text": "x\\ud83d"}\n',
        "a.jsonl, line 9 holds a lone surrogate",
        "skipped 1: a lone surrogate (a.jsonl:9)",
    ),
    "gzip cut short": (
        "a.jsonl.gz",
        lambda: gzip.compress(MANY)[:-30_000],
        "the gzip data ends early",
        "skipped 1: damaged, the gzip data ends early (a.jsonl.gz after line ",
    ),
    "zstd cut short": (
        "a.jsonl.zst",
        lambda: zstandard.compress(MANY)[:-3000],
        "the zstd data ends early",
        "skipped 1: damaged, the zstd data ends early (a.jsonl.zst after line ",
    ),
    "text cut short": (
        "a.txt.gz",
        lambda: gzip.compress(MANY)[:-30_000],
        "a.txt.gz, after ",
        "skipped 1: damaged, the gzip data ends early (a.txt.gz)",
    ),
    "another schema": (
        "a.parquet",
        lambda: parquet({"body": ["one", "two"]}),
        "a.parquet, row 1: no `text` (it has body)",
        "skipped 1: Parquet without a `text` (a.parquet)",
    ),
    "another type": (
        "a.parquet",
        lambda: parquet({"text": [1, 2]}),
        "a.parquet, row 1: `text` is a int",
        "skipped 2: `text` is no text (a.parquet:1, a.parquet:2)",
    ),
    "no parquet": (
        "a.parquet",
        lambda: b"PAR1 and no more",
        "a.parquet: Parquet magic bytes not found",
        "skipped 1: not valid Parquet (a.parquet)",
    ),
    "long line": (
        "a.jsonl",
        lambda: GOOD + rows("x" * 300_000, "after"),
        "a.jsonl, line 9: more than data.longest_document = 100000 bytes",
        "skipped 1: longer than 100000 bytes (a.jsonl:9)",
    ),
    "csv quotes": (
        "a.csv",
        lambda: b'text,n\n"a\nb",1\nplain "odd,2\n"x"y,3\n',
        "a.csv, line 5: not valid CSV",
        "skipped 1: not valid CSV (a.csv from line 5)",
    ),
    "csv encoding": (
        "a.csv",
        lambda: b"text,n\none,1\ncaf\xe9,2\nthree,3\n",
        "a.csv, line 3: not valid UTF-8",
        "skipped 1: not valid UTF-8 (a.csv:3)",
    ),
}


@pytest.mark.parametrize("case", list(BROKEN))
def test_what_is_broken_is_named_and_stops_or_is_counted(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, content, error, counted = BROKEN[case]
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / name).write_bytes(content())
    (texts / "good.jsonl").write_bytes(GOOD)
    config, out = tmp_path / "c.toml", tmp_path / "d"
    config.write_text('[data]\ntrain = ["texts"]\nlongest_document = 100000\n')
    build = ["data", "build", str(config), "--out", str(out)]
    assert main(build) == 1
    said = capsys.readouterr().err
    assert error in said
    assert not is_dataset(out)
    # Another configuration does not go on with what that one left, but may throw it away.
    skip = [*build, "data.on_error=skip"]
    assert main(skip) == 1
    assert "throw it away with --restart" in capsys.readouterr().err
    assert main([*skip, "--restart"]) == 0
    said = capsys.readouterr().err
    assert counted in said
    dataset = Dataset.open(out, check="full")
    documents = dict(
        [*dataset.train.texts(dataset.tokenizer), *dataset.held_out.texts(dataset.tokenizer)]
    )
    assert b"good text number 7" in documents.values()
    if b"after" in content():
        assert b"after" in documents.values()
    assert not (tmp_path / "d.partial").exists()


def test_loops_of_links_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = tmp_path / "texts"
    (texts / "deep").mkdir(parents=True)
    (texts / "deep" / "good.jsonl").write_bytes(GOOD)
    (texts / "deep" / "up").symlink_to(texts)
    (texts / "self").symlink_to(texts / "self")
    config = tmp_path / "c.toml"
    for path in ("texts", "texts/**", "texts/*"):
        config.write_text(f'[data]\ntrain = ["{path}"]\n')
        assert main(["data", "build", str(config), "--out", str(tmp_path / "d")]) == 0
        said = capsys.readouterr().err
        assert "skipped 1: a link to a folder, not followed (deep/up)" in said
        assert "skipped 1: unreadable, too many levels of symbolic links (self)" in said
        assert Dataset.open(tmp_path / "d").record["cleaned"]["documents"] == 8
    config.write_text('[data]\ntrain = ["texts/self"]\n')
    assert main(["data", "build", str(config), "--out", str(tmp_path / "e")]) == 1
    assert "texts/self cannot be read: too many levels" in capsys.readouterr().err


GROWING = """
import sys
from pathlib import Path
from flyweight.cli.main import main
from flyweight.data import texts

# Someone writes to the file while the build has it open.
plain = texts.chunks
def growing(path, *rest):
    yield from plain(path, *rest)
    if path.name == "log.txt":
        with path.open("a") as file:
            file.write("more")
texts.chunks = growing
sys.exit(main(sys.argv[1:]))
"""


def test_a_source_that_changes_while_it_is_read(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "log.txt").write_text("a log\n" * 100)
    (texts / "good.jsonl").write_bytes(GOOD)
    config, out = tmp_path / "c.toml", tmp_path / "d"
    config.write_text('[data]\ntrain = ["texts"]\n')
    build = [sys.executable, "-c", GROWING, "data", "build", str(config), "--out", str(out)]
    stopped = subprocess.run(build, capture_output=True, text=True, check=False)
    assert stopped.returncode == 1
    assert "texts/log.txt changed while it was read" in stopped.stderr
    assert not is_dataset(out)
    skip = [*build, "data.on_error=skip", "--restart"]
    done = subprocess.run(skip, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "skipped 1: changed while it was read (log.txt)" in done.stderr
    assert Dataset.open(out).record["cleaned"]["documents"] == 8


def test_no_space_left_and_then_some(tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_bytes(MANY)
    config, out = tmp_path / "c.toml", tmp_path / "d"
    config.write_text('[data]\ntrain = ["text.jsonl"]\n')
    command = [sys.executable, "-m", "flyweight", "data", "build", str(config), "--out", str(out)]

    def little() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))

    for workers in ("1", "2"):
        full = subprocess.run(
            [*command, f"data.workers={workers}"],
            preexec_fn=little,
            capture_output=True,
            text=True,
            check=False,
        )
        assert full.returncode == 1
        assert f"the dataset {out} cannot be written: File too large; free some" in full.stderr
        assert "--restart" in full.stderr
        assert not is_dataset(out)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    other = subprocess.run([*command[:-1], str(tmp_path / "e")], check=False)
    assert other.returncode == 0
    for file in ("train-00000.bin", "train-00000.idx", "documents.jsonl"):
        assert (out / file).read_bytes() == (tmp_path / "e" / file).read_bytes()


@pytest.mark.slow
def test_a_line_of_two_gigabytes_is_passed_over_in_little_memory(tmp_path: Path) -> None:
    compressor = zstandard.ZstdCompressor().compressobj()
    with (tmp_path / "huge.jsonl.zst").open("wb") as file:
        file.write(compressor.compress(GOOD + b'{"text": "'))
        for _ in range(2048):
            file.write(compressor.compress(b"x" * (1 << 20)))
        file.write(compressor.compress(b'"}\n' + rows("after")) + compressor.flush())
    config, out = tmp_path / "c.toml", tmp_path / "d"
    config.write_text('[data]\ntrain = ["huge.jsonl.zst"]\nheld_out = 0\n')
    command = [sys.executable, "-m", "flyweight", "data", "build", str(config), "--out", str(out)]

    def little() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (600 << 20, 600 << 20))

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        whole = [*command, *more]
        return subprocess.run(whole, preexec_fn=little, capture_output=True, text=True, check=False)

    stopped = run()
    assert stopped.returncode == 1
    assert "huge.jsonl.zst, line 9: more than data.longest_document" in stopped.stderr
    done = run("data.on_error=skip", "--restart")
    assert done.returncode == 0, done.stderr
    assert "skipped 1: longer than 67108864 bytes (huge.jsonl.zst:9)" in done.stderr
    assert Dataset.open(out).train.documents == 9


def test_a_text_without_lines_is_cut_between_characters(tmp_path: Path) -> None:
    # Two bytes each, and no stretch like another.
    text = "".join(chr(0x100 + n * n % 1021) for n in range(150_001))
    (tmp_path / "long.txt").write_text(text)
    config = tmp_path / "c.toml"
    config.write_text('[data]\ntrain = ["long.txt"]\nlongest_document = 100000\nheld_out = 0\n')
    assert main(["data", "build", str(config), "--out", str(tmp_path / "d")]) == 0
    dataset = Dataset.open(tmp_path / "d")
    found = list(dataset.train.texts(dataset.tokenizer))
    assert [name for name, _ in found] == ["long.txt#1", "long.txt#2", "long.txt#3", "long.txt#4"]
    assert b"".join(part for _, part in found).decode() == text
    assert os.path.exists(tmp_path / "d" / "report.md")
