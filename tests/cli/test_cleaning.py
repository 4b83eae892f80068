"""Cleaning, near-duplicates and decontamination through `flyweight data build`."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from flyweight.data.shards import Dataset
from flyweight.load import load
from flyweight.spec import toml
from flyweight.spec.data import Data
from flyweight.spec.table import Table

Command = Callable[..., Any]
DOCS = Path(__file__).resolve().parents[2] / "docs/cleaning.md"
WORDS = [
    "river",
    "stone",
    "window",
    "garden",
    "winter",
    "letter",
    "music",
    "bridge",
    "silver",
    "morning",
    "paper",
    "mountain",
]


def prose(rng: random.Random, count: int = 120) -> str:
    sentences = []
    for _ in range(count // 10):
        tokens = [rng.choice(WORDS) + str(rng.randrange(40)) for _ in range(10)]
        sentences.append(" ".join(tokens).capitalize() + ".")
    return "\n".join(sentences)


def write(file: Path, texts: dict[str, str]) -> None:
    rows = (json.dumps({"id": id, "text": text}) for id, text in texts.items())
    file.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


def names(folder: Path) -> list[str]:
    """The documents of the training split."""
    return [entry.name for entry in Dataset.open(folder).train.entries]


@pytest.fixture
def corpus(tmp_path: Path) -> dict[str, str]:
    """Two sources: b has near and exact copies of a's documents, and evaluation text."""
    rng = random.Random(0)
    a = {f"a{i}": prose(rng) for i in range(8)}
    item = prose(rng, 30).replace("\n", " ")
    near = a["a1"].replace(a["a1"].split()[7], "otherwise", 1)
    far = " ".join(word if i % 4 else "changed" for i, word in enumerate(a["a2"].split()))
    b = {
        "near": near,
        "exact": a["a3"],
        "far": far,
        "own": prose(rng),
        "leaked": prose(rng) + "\n" + item + "\n" + prose(rng),
        "mail": prose(rng) + "\nWrite to ann.bell@example.com or see https://a.example/x.",
        "spam": "buy now " * 80,
        "short": "just this",
    }
    write(tmp_path / "a.jsonl", a)
    write(tmp_path / "b.jsonl", b)
    (tmp_path / "eval.jsonl").write_text(
        json.dumps({"id": "q7", "query": item.upper(), "choices": ["yes", "no"]}) + "\n"
    )
    (tmp_path / "bad.txt").write_text("buy now\n")
    return a | b


CONFIG = """
[data]
train = ["a.jsonl", "b.jsonl"]
held_out = 0

[data.clean]
urls = {}
personal = {}
bad_words = { files = ["bad.txt"], max_count = 3 }
length = { min_words = 10 }

[data.decontaminate]
files = ["eval.jsonl"]

[data.near_duplicates]
"""


def test_a_build_drops_edits_and_says_so(
    command: Command, corpus: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "c.toml").write_text(CONFIG)
    told = command("data", "build", "c.toml", "--dry-run").ok().out
    for part in ("personal.email", "`ann.bell@example.com`", "near | a1 | 0.9", "q7", "leaked"):
        assert part in told, part
    assert not list(tmp_path.glob("datasets/*"))
    record = command("data", "build", "c.toml", "--out", "ds", "--json").ok().json()
    kept = [f"a{i}" for i in range(8)]
    assert sorted(names(tmp_path / "ds")) == sorted([*kept, "far", "own", "mail"])
    assert record["rules"]["bad_words"]["dropped"] == 1
    assert record["rules"]["personal.email"] == {"dropped": 0, "edited": 1, "found": 1}
    assert record["rules"]["contaminated"]["dropped"] == 1
    assert record["rules"]["length.min_words"]["dropped"] == 1
    assert record["cleaned"]["near_duplicates"] == 1
    assert record["cleaned"]["duplicates"] == 1
    found = json.loads((tmp_path / "ds/contamination.jsonl").read_text())
    assert (found["document"], found["file"], found["item"]) == ("leaked", "eval.jsonl", "q7")
    dataset = Dataset.open(tmp_path / "ds")
    text = dataset.tokenizer.decode(dataset.train.read(0, dataset.train.tokens).tolist())
    assert "Write to <email> or see <url>." in text
    assert "example" not in text


def test_workers_change_nothing(command: Command, corpus: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(CONFIG)
    prints = []
    for workers in (1, 2):
        out = f"ds{workers}"
        done = command("data", "build", "c.toml", f"data.workers={workers}", "--out", out).ok()
        folder = tmp_path / out
        prints.append(
            [(folder / name).read_bytes() for name in ("contamination.jsonl", "train-00000.bin")]
            + [re.sub(r"ds\d", "", (folder / "report.md").read_text()), done.err]
        )
    assert prints[0] == prints[1]


def test_the_first_source_s_copy_stays(
    command: Command, corpus: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "c.toml").write_text(CONFIG)
    command("data", "build", "c.toml", 'data.train=["b.jsonl", "a.jsonl"]', "--out", "ds").ok()
    assert {"near", "exact"} <= set(names(tmp_path / "ds"))
    assert not {"a1", "a3"} & set(names(tmp_path / "ds"))


def test_held_out_files_count_as_first(
    command: Command, corpus: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "c.toml").write_text(CONFIG)
    settings = ['data.train=["a.jsonl"]', 'data.held_out=["b.jsonl"]']
    command("data", "build", "c.toml", *settings, "--out", "ds").ok()
    assert sorted(names(tmp_path / "ds")) == ["a0", "a2", "a4", "a5", "a6", "a7"]


def test_passages_can_be_cut(command: Command, corpus: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(CONFIG)
    settings = ["data.decontaminate.action=cut", "data.decontaminate.margin=0"]
    command("data", "build", "c.toml", *settings, "--out", "ds").ok()
    assert "leaked" in names(tmp_path / "ds")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ('data.clean.bad_words.files=["no.txt"]', "no.txt cannot be read"),
        ('data.clean.scripts.keep=["latn"]', "no script is called 'latn'"),
        ('data.decontaminate.files=["no.jsonl"]', "no such file or folder"),
        ("data.clean.lenght={}", "did you mean `data.clean.length`"),
        ("data.near_duplicates.similarity=0", "data.near_duplicates.similarity"),
        ('data.clean.perplexity={model="nowhere", max=2.0}', "nowhere"),
    ],
)
def test_mistakes_are_named(
    command: Command, corpus: dict[str, str], tmp_path: Path, setting: str, said: str
) -> None:
    (tmp_path / "c.toml").write_text(CONFIG)
    command("data", "build", "c.toml", setting, "--out", "ds").failed(said)
    assert not (tmp_path / "ds").exists()


def test_perplexity_by_a_model_of_ours(
    command: Command, corpus: dict[str, str], tmp_path: Path
) -> None:
    """A random model of bytes finds every text alike: nearly 8 bits a byte."""
    write(tmp_path / "few.jsonl", {"one": corpus["a0"], "two": corpus["own"]})
    (tmp_path / "c.toml").write_text(
        "[data]\ntrain = ['few.jsonl']\nheld_out = 0\n[data.clean.perplexity]\n"
        "model = 'quickstart'\nmax = 6.0\ncharacters = 20\n"
    )
    with pytest.warns(UserWarning, match="random weights"):
        command("data", "build", "c.toml", "--out", "ds").failed("nothing is left of few.jsonl")
        setting = "data.clean.perplexity.max=9"
        command("data", "build", "c.toml", setting, "--out", "ds", "--restart").ok()
    assert names(tmp_path / "ds") == ["one", "two"]


def test_perplexity_by_a_run_is_what_a_slow_sum_says(
    command: Command,
    corpus: dict[str, str],
    tmp_path: Path,
    finished: Callable[[str], Path],
) -> None:
    run = finished("bpe")
    texts = {name: text for name, text in corpus.items() if len(text) > 60 and name != "exact"}
    texts |= {
        "code": "def f(x):\n    return x + 1\n" * 9,
        "noise": "qzx jkv wqp " * 20,
        "é": "é" * 90,
    }
    write(tmp_path / "all.jsonl", texts)
    model = load(str(run), engine="torch")
    bits = {}
    for name, text in texts.items():
        begun = text[:60]
        nats = -sum(logprob for _, logprob in model.logprobs(begun))
        bits[name] = nats / math.log(2) / len(begun.encode())
    ordered = sorted(bits.values())
    least, most = ((a + b) / 2 for a, b in (ordered[1:3], ordered[-3:-1]))
    (tmp_path / "c.toml").write_text(
        "[data]\ntrain = ['all.jsonl']\nheld_out = 0\n[data.clean.perplexity]\n"
        f"model = '{run}'\nmin = {least}\nmax = {most}\ncharacters = 60\n"
    )
    record = command("data", "build", "c.toml", "--out", "ds", "--json").ok().json()
    expected = sorted(name for name, value in bits.items() if least <= value <= most)
    assert sorted(names(tmp_path / "ds")) == expected
    assert record["rules"]["perplexity.min"]["dropped"] == 2
    assert record["rules"]["perplexity.max"]["dropped"] == 2


def test_the_example_of_the_page_is_a_configuration(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "c.toml").write_text(example)
    data = Data.parse(toml.read(tmp_path / "c.toml")["data"], "data")
    assert data.clean is not None
    assert set(data.clean.values()) >= {"markup", "urls", "languages", "repetition"}
    assert data.near_duplicates is not None
    assert data.decontaminate is not None


def tables(annotation: object) -> Iterator[type[Table]]:
    """The tables that a key takes."""
    if isinstance(annotation, type) and issubclass(annotation, Table):
        yield annotation
    for inner in get_args(annotation):
        yield from tables(inner)


def test_the_page_names_every_rule_and_key() -> None:
    page = DOCS.read_text(encoding="utf-8")
    names = set()
    for name in ("clean", "decontaminate", "near_duplicates"):
        for table in tables(Data.keys()[name].annotation):
            for key, inner in table.keys().items():
                names.add(key)
                names.update(*(kind.keys() for kind in tables(inner.annotation)))
    assert {"repetition", "markup", "similarity", "top_ngrams"} <= names
    assert not {name for name in names if f"`{name}" not in page}
