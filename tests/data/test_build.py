"""From configuration to dataset, on real text."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flyweight.cli.data import app
from flyweight.data.build import build
from flyweight.data.shards import Dataset
from flyweight.data.sources import Skipped, documents
from flyweight.data.split import is_held_out
from flyweight.spec import run
from flyweight.spec.errors import ConfigurationError, FlyweightError
from flyweight.text.bytes import ByteTokenizer
from flyweight.text.subword import SubwordTokenizer

STDLIB = Path(__file__).resolve().parents[3] / "shared/data/pretrain/python_stdlib.jsonl.zst"
CLI = CliRunner()


def corpus(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for n in range(30):
        (folder / f"{n:02}.txt").write_bytes(f"text {n}\r\nand a second line\r\n".encode())
    (folder / "copy.txt").write_text("text 3\nand a second line\n")
    (folder / "blank.txt").write_text("\n\n")
    (folder / "image.png").write_bytes(b"\x89PNG\0")
    return folder


def test_a_folder_becomes_a_dataset(tmp_path: Path) -> None:
    seen: list[str] = []
    folder = corpus(tmp_path / "texts")
    dataset = build(
        run.Data(train=[str(folder)], held_out=0.2),
        run.Tokenizer(),
        tmp_path / "d",
        lambda stage, done, total: seen.append(stage),
    )
    assert dataset.tokenizer.digest == ByteTokenizer().digest
    names = [entry.name for entry in dataset.train.entries]
    held = [entry.name for entry in dataset.held_out.entries]
    assert sorted(names + held) == [f"{n:02}.txt" for n in range(30)]
    assert held == [name for name in sorted(names + held) if is_held_out(name, 0.2)]
    text = dict(dataset.train.texts(dataset.tokenizer)) | dict(
        dataset.held_out.texts(dataset.tokenizer)
    )
    assert text["07.txt"] == b"text 7\nand a second line\n"
    assert dataset.record["skipped"] == {"binary": 1}
    assert dataset.record["cleaned"] == {
        "documents": 32,
        "empty": 1,
        "duplicates": 1,
        "held_out": 0,
        "near_duplicates": 0,
    }
    assert set(seen) == {"read", "clean", "encode"}


def test_held_out_files_are_kept_out_of_training(tmp_path: Path) -> None:
    folder = corpus(tmp_path / "texts")
    data = run.Data(train=[str(folder)], held_out=[str(folder / "03.txt")])
    dataset = build(data, run.Tokenizer(), tmp_path / "d")
    assert [entry.name for entry in dataset.held_out.entries] == ["03.txt"]
    assert dataset.train.documents == 29
    assert b"text 3\n" not in b"".join(t for _, t in dataset.train.texts(dataset.tokenizer))
    same = run.Data(train=[str(folder / "03.txt")], held_out=[str(folder / "03.txt")])
    with pytest.raises(FlyweightError, match="nothing is left of"):
        build(same, run.Tokenizer(), tmp_path / "e")


def test_one_document_holds_out_its_tail(tmp_path: Path) -> None:
    book = "".join(f"line {n}\n" for n in range(1000))
    (tmp_path / "book.txt").write_text(book)
    data = run.Data(train=[str(tmp_path / "book.txt")])
    dataset = build(data, run.Tokenizer(), tmp_path / "d")
    (_, head), (name, tail) = (
        *dataset.train.texts(dataset.tokenizer),
        *dataset.held_out.texts(dataset.tokenizer),
    )
    assert (head + tail).decode() == book
    assert name == "book.txt#tail"
    assert len(tail) == pytest.approx(len(book) / 10, abs=10)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_tokenizer_is_trained_on_the_training_split_alone(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    shutil.copy(textwrap.__file__, folder / "a.txt")
    (folder / "b.txt").write_text("zyzzyva zyzzyva zyzzyva\n" * 50)
    data = run.Data(train=[str(folder / "a.txt")], held_out=[str(folder / "b.txt")])
    table = run.Tokenizer.parse({"kind": kind, "size": 290})
    dataset = build(data, table, tmp_path / "d")
    expected = SubwordTokenizer.train(kind, 290, [(folder / "a.txt").read_text()])  # type: ignore[arg-type]
    assert dataset.tokenizer.digest == expected.digest
    assert dict(dataset.held_out.texts(dataset.tokenizer)) == {
        "b.txt": (folder / "b.txt").read_bytes()
    }
    again = build(run.Data(train=[str(tmp_path / "d")]), run.Tokenizer(), tmp_path / "unused")
    assert again.fingerprint == dataset.fingerprint
    assert not (tmp_path / "unused").exists()
    loaded = run.Tokenizer(kind="file", path=str(tmp_path / "d" / "tokenizer.json"))
    assert build(data, loaded, tmp_path / "e").fingerprint == dataset.fingerprint


def test_a_built_dataset_keeps_its_own_tokenizer_and_split(tmp_path: Path) -> None:
    folder = corpus(tmp_path / "texts")
    built = str(build(run.Data(train=[str(folder)]), run.Tokenizer(), tmp_path / "d").path)
    table = run.Tokenizer(kind="bpe", size=300)
    with pytest.raises(ConfigurationError, match=r"asks for bpe 300, but the dataset .* bytes"):
        build(run.Data(train=[built]), table, tmp_path / "e")
    with pytest.raises(ConfigurationError, match="among others"):
        build(run.Data(train=[built, str(folder)]), run.Tokenizer(), tmp_path / "e")
    with pytest.warns(UserWarning, match=r"data\.held_out is not used"):
        build(run.Data(train=[built], held_out=0.5), run.Tokenizer(kind="bytes"), tmp_path / "e")


def test_building_again_is_the_same_to_the_byte(tmp_path: Path) -> None:
    folder = corpus(tmp_path / "texts")
    one, two = (
        build(run.Data(train=[str(folder)]), run.Tokenizer(), tmp_path / place / "d").path
        for place in ("one", "two")
    )
    for file in sorted(one.iterdir()):
        assert file.read_bytes() == (two / file.name).read_bytes(), file.name


def test_real_text_comes_back(tmp_path: Path) -> None:
    if not STDLIB.exists():
        pytest.skip("the shared corpora are not beside this checkout")
    dataset = build(run.Data(train=[str(STDLIB)]), run.Tokenizer(), tmp_path / "d")
    expected = {d.name: d.text.encode() for d in documents([str(STDLIB)], Skipped())}
    found = [*dataset.train.texts(dataset.tokenizer), *dataset.held_out.texts(dataset.tokenizer)]
    assert len(found) == len(expected) == 508
    assert dict(found) == expected
    assert 30 < dataset.held_out.documents < 70


# -- the command line


@pytest.fixture
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    corpus(tmp_path / "texts")
    file = tmp_path / "tales.toml"
    file.write_text('name = "tales"\n[data]\ntrain = ["texts"]\n[train]\nsteps = 5\n')
    monkeypatch.chdir(tmp_path)
    yield file


def test_build_and_inspect(configuration: Path) -> None:
    built = CLI.invoke(app, ["build", str(configuration), "--json"], catch_exceptions=False)
    assert built.exit_code == 0
    record = json.loads(built.stdout)
    assert record["fingerprint"] == Dataset.open("datasets/tales").fingerprint
    assert "skipped 1: binary (image.png)" in built.stderr
    shown = CLI.invoke(app, ["inspect", "datasets/tales"], catch_exceptions=False)
    assert record["fingerprint"] in shown.stdout
    assert "train" in shown.stdout
    options = ["--step", "2", "--context", "64", "--batch-tokens", "128", "--json"]
    result = CLI.invoke(app, ["inspect", "datasets/tales", *options], catch_exceptions=False)
    batch = json.loads(result.stdout)
    assert len(batch["rows"]) == 2
    assert sum(part["end"] - part["start"] for part in batch["rows"][0]) <= 64
    first = batch["rows"][0][0]
    text = (configuration.parent / "texts" / first["name"]).read_text()
    assert text.encode()[first["start_byte"] :].decode().startswith(first["text"])
    plain = CLI.invoke(app, ["inspect", "datasets/tales", *options[:-1], "--rows", "1"])
    assert first["name"] in plain.stdout
    assert "row 1" not in plain.stdout


def test_inspect_takes_a_run(configuration: Path) -> None:
    CLI.invoke(app, ["build", str(configuration), "--out", "d"], catch_exceptions=False)
    folder = configuration.parent / "run"
    folder.mkdir()
    fingerprint = Dataset.open("d").fingerprint
    (folder / "data.json").write_text(json.dumps({"dataset": "d", "fingerprint": fingerprint}))
    (folder / "run.toml").write_text(
        "seed = 9\n[model]\nvocab_size = 258\nwidth = 32\ndepth = 1\ncontext = 32\n"
        "attention = { heads = 2 }\nfeedforward = { hidden = 64 }\n"
        "[train]\ncontext = 32\nbatch_tokens = 96\n"
    )
    of_run = CLI.invoke(app, ["inspect", "run", "--step", "4", "--json"], catch_exceptions=False)
    options = ["--seed", "9", "--context", "32", "--batch-tokens", "96"]
    by_hand = CLI.invoke(app, ["inspect", "d", "--step", "4", "--json", *options])
    assert json.loads(of_run.stdout) == json.loads(by_hand.stdout)
    assert len(json.loads(of_run.stdout)["rows"]) == 3
    (folder / "data.json").write_text(json.dumps({"dataset": "d", "fingerprint": "0" * 64}))
    with pytest.raises(FlyweightError, match="not the one that run was trained on"):
        CLI.invoke(app, ["inspect", "run"], catch_exceptions=False)


def test_wrong_configurations_are_refused(configuration: Path) -> None:
    for setting, error in [
        ("dta.train=[]", "unknown key `dta`; did you mean `data`"),
        ("data.trian=[]", r"unknown key `data\.trian`; did you mean `data\.train`"),
        ("data=5", "`data` must be a table"),
        ("name=5", "`name` must be text"),
        ("data.held_out=[]", "held_out is an empty list"),
        ("data.held_out=1.0", "leaves nothing to train on"),
    ]:
        with pytest.raises(ConfigurationError, match=error):
            CLI.invoke(app, ["build", str(configuration), setting], catch_exceptions=False)
    assert not Path("datasets/tales").exists()
    with pytest.raises(FlyweightError, match="no such dataset or run"):
        CLI.invoke(app, ["inspect", "nowhere"], catch_exceptions=False)
