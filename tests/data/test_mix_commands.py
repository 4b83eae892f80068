"""A mix through the command line: one dataset, many mixes, counted by hand in what is read."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from flyweight.cli.main import main
from flyweight.data.mix import PERIOD

pytest.importorskip("torch")

# Bytes of each source, which come in documents of a line.
SIZES = {"books": 9000, "web": 4000, "code": 1000}
STEPS, ROWS = 20, 4
BUILD = """
[data]
held_out = 0
[data.sources.books]
paths = ["books.jsonl"]
[data.sources.web]
paths = ["web.jsonl"]
[data.sources.code]
paths = ["code.jsonl"]
"""
RUN = """
seed = 3
[data]
train = ["d"]
[model]
width = 16
depth = 1
attention = { heads = 2 }
feedforward = { hidden = 16 }
input = { kind = "tokens" }
[train]
context = 16
batch_tokens = 64
steps = 20
device = "cpu"
schedule = { kind = "wsd", peak = 0.01, warmup = 1, decay = 0.25 }
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two configurations and the one dataset, d, that all runs share."""
    folder = tmp_path_factory.mktemp("mixes")
    for name, size in SIZES.items():
        lines = [
            json.dumps({"id": f"{name}{n}", "text": f"{name} {n:05}".ljust(99, name[0])})
            for n in range(size // 100)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    (folder / "build.toml").write_text(BUILD)
    (folder / "run.toml").write_text(RUN)
    (folder / "law.json").write_text(
        '{"weights": {"code": 0.5, "web": 0.0, "books": 1.5}, "loss": 2.5, "trials": []}'
    )
    (folder / "law.toml").write_text("loss = 2.5\n[weights]\nbooks = 1\nweb = 2\ncode = 1\n")
    assert main(["data", "build", str(folder / "build.toml"), "--out", str(folder / "d")]) == 0
    return folder


def read(run: Path, capsys: pytest.CaptureFixture[str]) -> list[Counter[str]]:
    """For each step the rows of each source that `inspect` shows."""
    steps = []
    for step in range(1, STEPS + 1):
        capsys.readouterr()
        assert main(["data", "inspect", str(run), "--step", str(step), "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)["rows"]
        assert len(rows) == ROWS
        sources = [{part["name"].rstrip("0123456789") for part in row} for row in rows]
        assert all(len(found) == 1 for found in sources), "a window is of one source"
        steps.append(Counter(found.pop() for found in sources))
    return steps


# Tokens of each source: a document has one more than bytes.
TOKENS = dict(SIZES)


@pytest.mark.parametrize(
    ("mix", "weights"),
    [
        ("weights = { books = 3, web = 1, code = 0 }", {"books": 3, "web": 1, "code": 0}),
        ("temperature = 3", {name: size ** (1 / 3) for name, size in TOKENS.items()}),
        ("epochs = { code = 5 }", {**TOKENS, "code": 5 * TOKENS["code"]}),
        ('file = "law.json"', {"books": 1.5, "web": 0, "code": 0.5}),
    ],
)
def test_another_mix_of_the_same_dataset(
    built: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    mix: str,
    weights: dict[str, float],
) -> None:
    before = {file.name: file.stat().st_mtime_ns for file in (built / "d").iterdir()}
    config = built / f"{tmp_path.name}.toml"
    config.write_text(f"{RUN}\n[data.mix]\n{mix}\n")
    assert main(["train", str(config), "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    assert "packing" not in said
    assert before == {file.name: file.stat().st_mtime_ns for file in (built / "d").iterdir()}
    shares = {name: weight / sum(weights.values()) for name, weight in weights.items()}
    recorded = json.loads((tmp_path / "run" / "data.json").read_text())["order"]["mix"]
    assert sum(recorded.values()) == PERIOD
    assert recorded == pytest.approx({n: s * PERIOD for n, s in shares.items()}, abs=1)
    found = sum(read(tmp_path / "run", capsys), Counter())
    for name, share in shares.items():
        assert abs(found[name] - share * STEPS * ROWS) <= 1, name


def test_the_decay_has_a_mix_of_its_own(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = built / "decay.toml"
    mixes = "weights = { books = 3, web = 1, code = 0 }\ndecay = { file = 'law.toml' }\n"
    config.write_text(f"{RUN}\n[data.mix]\n{mixes}")
    assert main(["train", str(config), "--out", str(tmp_path / "run")]) == 0
    steps = read(tmp_path / "run", capsys)
    main_mix, decay_mix = sum(steps[:15], Counter()), sum(steps[15:], Counter())
    assert main_mix == {"books": 45, "web": 15}
    assert decay_mix == {"books": 5, "web": 10, "code": 5}
    order, decay = json.loads((tmp_path / "run" / "data.json").read_text())["order"]
    assert order["mix"] == {"books": PERIOD * 3 // 4, "web": PERIOD // 4, "code": 0}
    # 15 steps of 4 windows came before.
    assert decay["after"] == {"books": 45, "web": 15, "code": 0}


WRONG = {
    "unknown.json": ('{"weights": {"book": 1}}', "no source `book`; did you mean `books`"),
    "missing.json": ('{"weights": {"books": 1, "web": 1}}', "say nothing of `code`"),
    "zeros.json": ('{"weights": {"books": 0, "web": 0, "code": 0}}', "of all sources are 0"),
    "negative.json": ('{"weights": {"books": -1, "web": 1, "code": 1}}', "weights.books"),
    "nan.json": ('{"weights": {"books": NaN, "web": 1, "code": 1}}', "weights.books"),
    "text.json": ('{"weights": {"books": "half", "web": 1, "code": 1}}', "weights.books"),
    "list.json": ('{"weights": [1, 2, 3]}', "list.json"),
    "other.json": ('{"loss": 2.5}', "a table `weights` of sources and shares is wanted"),
    "broken.toml": ("[weights\n", "is no mix"),
    "none.toml": (None, "No such file or directory"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_a_law_that_does_not_fit_is_named(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    content, error = WRONG[name]
    if content is not None:
        (built / name).write_text(content)
    config = built / f"wrong-{name}.toml"
    config.write_text(f'{RUN}\n[data.mix]\nfile = "{name}"\n')
    assert main(["train", str(config), "--out", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert error in said
    assert name in said
    assert not (tmp_path / "run" / "ledger.jsonl").exists()
