"""`data inspect` of a run against the texts themselves: rows are put together again from the files
that it names, and their digest is the one that the ledger has of what was trained on."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
zstandard = pytest.importorskip("zstandard")

import flyweight  # noqa: E402

SHARED = Path(__file__).resolve().parents[3] / "shared/data/pretrain"
# Prose and verse in two scripts; the verse is read several times, and more of it at the end.
CONFIG = """
[model]
width = 16
depth = 1
attention = { heads = 2 }
feedforward = { hidden = 16 }
[text]
tokenizer = { kind = "bpe", size = 700 }
[data]
held_out = 0.0
[data.sources.tales]
paths = ["tales"]
[data.sources.poems]
paths = ["poems"]
[data.mix]
weights = { tales = 0.6, poems = 0.4 }
decay = { weights = { tales = 0.2, poems = 0.8 } }
[train]
context = 64
batch_tokens = 1024
steps = 40
threads = 1
precision = "f32"
schedule = { warmup = 2, decay = 0.3 }
ramp = [{ batch_tokens = 256, until = 0.2 }, { context = 32, batch_tokens = 512, until = 0.5 }]
spikes = { window = 8, threshold = 0.01, tries = 1 }
sample_every = 1000
"""
WORDS = ["said the", "not", " a", "\n", "不", "山", "。"]


@pytest.fixture
def corpus(tmp_path: Path) -> dict[str, str]:
    """{a file's name: its text}, laid out in two folders."""
    texts: dict[str, str] = {}
    for folder, file, count in (("tales", "fairytales_en", 5), ("poems", "poetry_zh", 120)):
        path = SHARED / f"{file}.jsonl.zst"
        if not path.is_file():
            pytest.skip("the shared corpora are not beside this checkout")
        (tmp_path / folder).mkdir()
        with zstandard.open(path, "rt", encoding="utf-8") as lines:
            for number, line in zip(range(count), lines, strict=False):
                name, text = f"{folder}{number:03d}.txt", json.loads(line)["text"]
                texts[name] = text
                (tmp_path / folder / name).write_text(text, encoding="utf-8")
    (tmp_path / "mixed.toml").write_text(CONFIG)
    return texts


class Read:
    """What the steps of a run read, from `inspect` and the files."""

    def __init__(self, run: Path, corpus: dict[str, str], command: Callable[..., Any]) -> None:
        self.command, self.run, self.corpus = command, run, corpus
        self.ledger = [json.loads(x) for x in (run / "ledger.jsonl").read_text().splitlines()]
        tokenizer = flyweight.load_tokenizer(run / "model")
        self.eot = tokenizer.encode("<eot>", specials=True)[0]
        self.ids = {name: tokenizer.encode(text) for name, text in corpus.items()}
        self.steps = [self.rows(line["step"]) for line in self.ledger]

    def rows(self, step: int) -> list[list[dict[str, Any]]]:
        arguments = ("data", "inspect", self.run, "--step", step, "--json")
        rows: list[list[dict[str, Any]]] = self.command(*arguments).ok().json()["rows"]
        return rows

    def tokens(self, row: list[dict[str, Any]], context: int) -> list[int]:
        """A row's tokens: an <eot> stands before each document's first."""
        found: list[int] = []
        for part in row:
            if found:
                found.append(self.eot)
            ids = self.ids[Path(part["name"]).name]
            found += ids[part["start"] : part["end"]]
        if len(found) < context:
            found.insert(0, self.eot)
        return found

    def check_digests(self) -> None:
        for line, rows in zip(self.ledger, self.steps, strict=True):
            tokens = np.array([self.tokens(row, 64) for row in rows], np.int64)
            digest = hashlib.sha256(tokens.tobytes()).hexdigest()[:16]
            assert digest == line["digest"], line["step"]

    def check_find(self, passage: str) -> int:
        """--find against every row's stretch of every text, byte by byte."""
        wanted, expected = passage.encode(), set()
        for name, text in self.corpus.items():
            raw, at = text.encode(), -1
            while (at := raw.find(wanted, at + 1)) >= 0:
                for step, rows in enumerate(self.steps, 1):
                    for number, row in enumerate(rows):
                        if any(
                            Path(part["name"]).name == name
                            and part["start_byte"] < at + len(wanted)
                            and part["end_byte"] > at
                            for part in row
                        ):
                            expected.add((name, at, step, number))
        done = self.command("data", "inspect", self.run, "--find", passage, "--json").ok().json()
        places = [(Path(o["name"]).name, o["start_byte"]) for o in done["occurrences"]]
        found = [(*places[r["occurrence"]], r["step"], r["row"]) for r in done["readings"]]
        assert len(found) == len(set(found))
        assert set(found) == expected
        return len(expected)


def test_what_is_shown_and_found_is_what_was_read(
    corpus: dict[str, str], command: Callable[..., Any], tmp_path: Path
) -> None:
    command("train", "mixed.toml", "--out", "run").ok()
    read = Read(tmp_path / "run", corpus, command)
    lines = read.ledger
    assert {line["mix"] for line in lines} == {"main", "decay"}
    assert {line["context"] for line in lines} == {32, 64}
    assert any("spikes" in line for line in lines), "windows were left out"
    read.check_digests()
    often: dict[tuple[str, int], int] = {}
    for rows in read.steps:
        for part in (part for row in rows for part in row):
            key = (part["name"], part["start"])
            often[key] = often.get(key, 0) + 1
    assert max(often.values()) > 2, "several epochs of the verse"
    assert min(read.check_find(passage) for passage in WORDS) > 0


@pytest.mark.slow
def test_two_processes_read_what_is_shown(
    corpus: dict[str, str], command: Callable[..., Any], tmp_path: Path
) -> None:
    words = "-m torch.distributed.run --standalone --nproc-per-node 2 -m flyweight train mixed.toml"
    done = subprocess.run(
        [sys.executable, *words.split(), "--out", "run"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    read = Read(tmp_path / "run", corpus, command)
    read.check_digests()
    assert min(read.check_find(passage) for passage in WORDS) > 0
