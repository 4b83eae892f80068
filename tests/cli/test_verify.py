"""`flyweight verify`: a whole run holds to the bit, whatever its recipe and wherever it went on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from flyweight.files.run import RunFolder


def test_an_honest_run_holds_to_the_bit(run: Path, command: Any) -> None:
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["000008", "000012"]
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    done = command("verify", "run", "--json").ok().json()
    assert done["holds"] and done["exact"] and done["findings"] == []
    assert (done["steps"], done["began_at"], done["steps_compared"]) == ([1, 12], 0, 12)
    assert done["tensors_compared"] == [4, 8, 12], "4 by the digest that the index keeps"
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    words = command("verify", "run", "--steps", "10:11").ok().out
    assert "steps 10 to 11 hold, bit for bit" in words
    assert "3 steps from checkpoint 8" in words and "no checkpoint lies in the steps" in words
    part = command("verify", "run", "--steps", "9:", "--json").ok().json()
    assert (part["began_at"], part["tensors_compared"]) == (8, [12])


@pytest.mark.parametrize("kind", ["bpe", "patches", "recipes"])
def test_every_recipe_holds_to_the_bit_resumed_too(
    finished: Callable[[str], Path], command: Any, tmp_path: Path, kind: str
) -> None:
    """ "recipes": muP, ramps, dropout, spikes, spans and prefixes, tokens further ahead."""
    shutil.copytree(finished(kind), tmp_path / "run")
    for _ in range(2):
        done = command("verify", "run", "--json").ok().json()
        assert done["holds"] and done["exact"] and done["steps_compared"] == 12
        assert done["tensors_compared"] == [4, 8, 12]
        shutil.rmtree(tmp_path / "run/checkpoints/000012")
        command("resume", "run").ok()


def test_a_run_from_weights_holds_and_needs_them(program: Any, command: Any, run: Path) -> None:
    text = (program.folder / "bytes.toml").read_text()
    model = text[text.index("[model]") : text.index("[data]")]
    start = text.replace(model, '[model]\nstart = "run"\n')
    (program.folder / "start.toml").write_text(start)
    settings = ["train.steps=5", "train.optimizer.kind=adamw", "seed=3"]
    command("train", "start.toml", *settings, "--out", "on").ok()
    done = command("verify", "on", "--json").ok().json()
    assert done["exact"] and (done["began_at"], done["tensors_compared"]) == (0, [4, 5])
    with open(program.folder / "on/checkpoints/000000/model.safetensors", "ab") as file:
        file.write(b" ")
    done = command("verify", "on", "--json")
    assert done.code == 1
    found = done.json()["findings"]
    assert any("000000" in each["where"] and "recorded digest" in each["what"] for each in found)
    assert any("starts from are not there" in each["what"] for each in found)


@pytest.mark.slow
def test_a_compiled_run_holds_to_the_bit(program: Any, command: Any) -> None:
    command("train", "bpe.toml", "train.compile=on", "--out", "run").ok()
    done = command("verify", "run", "--json").ok().json()
    assert done["exact"] and done["steps_compared"] == 12


@pytest.mark.parametrize(
    ("steps", "said"),
    [("12", "A:B"), ("a:b", "A:B"), ("0:3", "first step is 1"), ("5:13", "steps 1 to 12"),
     ("7:3", "--steps 7:3")],
)  # fmt: skip
def test_steps_that_are_none(run: Path, command: Any, steps: str, said: str) -> None:
    command("verify", "run", "--steps", steps).failed(said)


def elsewhere(run: Path) -> None:
    file = run / "environment.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "processor": "Zilog Z80"}))


def test_a_run_that_goes_on_elsewhere_says_so(run: Path, command: Any) -> None:
    elsewhere(run)
    shutil.rmtree(run / "checkpoints" / "000012")
    command("resume", "run").ok()
    resumed = json.loads((run / "environment.json").read_text())["resumed"]
    assert [each["from_step"] for each in resumed] == [8]
    assert command("verify", "run", "--steps", "9:", "--json").ok().json()["exact"]
    assert not command("verify", "run", "--steps", "8:", "--json").ok().json()["exact"]


def test_there_is_nothing_to_verify(run: Path, command: Any) -> None:
    command("verify", "nowhere").failed("no such run folder: nowhere")
    for path in (run / "ledger.jsonl", run / "checkpoints.jsonl"):
        path.unlink()
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "model")
    command("verify", "run").failed("has taken no step yet")


def test_batches_that_spikes_replaced_are_replaced_again(program: Any, command: Any) -> None:
    settings = ["train.spikes={threshold=0.3, window=8, tries=2}", "train.steps=20"]
    command("train", "bytes.toml", *settings, "--out", "run").ok()
    ledger = RunFolder(program.folder / "run").read_ledger()
    assert any(event["action"] == "replaced" for line in ledger for event in line.get("spikes", []))
    done = command("verify", "run", "--json").ok().json()
    assert done["exact"] and done["steps_compared"] == 20
    assert command("verify", "run", "--steps", "17:", "--json").ok().json()["began_at"] == 16
