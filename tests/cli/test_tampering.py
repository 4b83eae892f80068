"""`flyweight verify`: whatever was changed in a run's folder is found and named."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from flyweight.files.run import STATE, sealed
from flyweight.files.tensors import read_tensors, write_tensors
from flyweight.train.ledger import link

Tamper = Callable[[Path], None]


def lines_of(run: Path, name: str = "ledger.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def write_lines(run: Path, lines: list[dict[str, Any]], name: str = "ledger.jsonl") -> None:
    (run / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def flip(file: Path, at: int = -5) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def reseal(run: Path, at: int, **changes: Any) -> None:
    """Make a checkpoint's state.json, and its line of the index, agree with its files again."""
    folder = run / "checkpoints" / f"{at:06d}"
    state = {**json.loads((folder / STATE).read_text()), **changes}
    for name in state["sha256"]:
        if name != STATE:
            state["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / STATE).write_text(sealed(state))
    state = json.loads((folder / STATE).read_text())
    lines = lines_of(run, "checkpoints.jsonl")
    for line in lines:
        if line["step"] == at:
            line |= {key: state[key] for key in ("chain", "tokens", "bytes")}
            line["digest"] = state["sha256"].pop(STATE)
            line["sha256"] = state["sha256"]
    write_lines(run, lines, "checkpoints.jsonl")


def forged(run: Path, step: int, key: str, factor: float) -> list[dict[str, Any]]:
    """The ledger with one figure changed, and every line after it chained anew."""
    lines = lines_of(run)
    lines[step - 1][key] *= factor
    for before, line in zip(lines[step - 2 :], lines[step - 1 :], strict=False):
        line["chain"] = link(before["chain"], line)
    return lines


def weights(run: Path) -> None:
    flip(run / "checkpoints/000008/model.safetensors")


def state(run: Path) -> None:
    flip(run / "checkpoints/000012/state.json", 30)


def optimizer_resealed(run: Path) -> None:
    file = run / "checkpoints/000012/optimizer.safetensors"
    tensors = read_tensors(file)
    name = max(tensors, key=lambda key: tensors[key].numel())
    tensors[name].view(-1)[3] += 1e-7
    write_tensors(file, tensors)
    reseal(run, 12)


def line_edited(run: Path) -> None:
    lines = lines_of(run)
    lines[4]["loss"] -= 0.01
    write_lines(run, lines)


def line_removed(run: Path) -> None:
    lines = lines_of(run)
    del lines[6]
    write_lines(run, lines)


def last_lines_removed(run: Path) -> None:
    write_lines(run, lines_of(run)[:10])


def chained_anew(run: Path) -> None:
    write_lines(run, forged(run, 5, "gradient_norm", 0.9))


def chained_anew_and_resealed(run: Path) -> None:
    lines = forged(run, 5, "loss", 1 - 1e-9)
    write_lines(run, lines)
    index = lines_of(run, "checkpoints.jsonl")
    for entry in index:
        recent = lines[: entry["step"]]
        entry["mean_loss"] = sum(line["loss"] for line in recent) / len(recent)
        entry["chain"] = recent[-1]["chain"]
    write_lines(run, index, "checkpoints.jsonl")
    for step in (8, 12):
        reseal(run, step, chain=lines[step - 1]["chain"])


def shard(run: Path) -> None:
    flip(next((run / "dataset").glob("train-*.bin")))


def documents_resealed(run: Path) -> None:
    """One token of the text changed, with every digest of the dataset made to agree."""
    from flyweight.data.shards import fingerprint

    file = next((run / "dataset").glob("train-*.bin"))
    tokens = np.fromfile(file, "<u2")
    tokens[100] = 65 + (tokens[100] == 65)
    tokens.tofile(file)
    record = json.loads((run / "dataset/dataset.json").read_text())
    for each in record["splits"]["train"]["shards"]:
        if each["file"] == file.name:
            each["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    record["fingerprint"] = fingerprint(record)
    (run / "dataset/dataset.json").write_text(json.dumps(record))
    data = json.loads((run / "data.json").read_text())
    (run / "data.json").write_text(json.dumps({**data, "fingerprint": record["fingerprint"]}))


def order(run: Path) -> None:
    data = json.loads((run / "data.json").read_text())
    data["order"]["seed"] += 1
    (run / "data.json").write_text(json.dumps(data))


def configuration(run: Path) -> None:
    text = (run / "run.toml").read_text()
    assert "warmup = 2" in text
    (run / "run.toml").write_text(text.replace("warmup = 2", "warmup = 3"))


def configuration_resealed(run: Path) -> None:
    from flyweight.files.run import RunFolder
    from flyweight.train.ledger import identity_of

    configuration(run)
    for step in (8, 12):
        old = json.loads((run / f"checkpoints/{step:06d}/state.json").read_text())["identity"]
        key = "configuration (run.toml)"
        reseal(run, step, identity={**old, key: identity_of(RunFolder(run).spec())})


def index(run: Path) -> None:
    lines = lines_of(run, "checkpoints.jsonl")
    lines[1]["mean_loss"] = 1.0
    write_lines(run, lines, "checkpoints.jsonl")


def removed_ones_digest(run: Path) -> None:
    lines = lines_of(run, "checkpoints.jsonl")
    lines[0]["sha256"]["model.safetensors"] = "0" * 64
    write_lines(run, lines, "checkpoints.jsonl")


def model(run: Path) -> None:
    # A file of its own first: it is a link of the checkpoint's.
    file = run / "model/model.safetensors"
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content)
    flip(file)


def swapped(run: Path) -> None:
    a, b, c = (run / "checkpoints" / name for name in ("000008", "000012", "x"))
    a.rename(c), b.rename(a), c.rename(b)


def renumbered(run: Path) -> None:
    """Checkpoint 12 in the place of 8, with every digest made to agree."""
    shutil.rmtree(run / "checkpoints/000008")
    shutil.copytree(run / "checkpoints/000012", run / "checkpoints/000008")
    reseal(run, 8, step=8)


def copied_over(run: Path) -> None:
    shutil.copytree(run / "checkpoints/000012", run / "checkpoints/000008", dirs_exist_ok=True)


def older_weights_resealed(run: Path) -> None:
    a, b = (run / f"checkpoints/{name}/model.safetensors" for name in ("000008", "000012"))
    b.unlink()
    shutil.copy(a, b)
    reseal(run, 12)


def says_less(run: Path) -> None:
    folder = run / "checkpoints/000012"
    state = json.loads((folder / STATE).read_text())
    del state["identity"]
    (folder / STATE).write_text(sealed(state))


def no_digests(run: Path) -> None:
    folder = run / "checkpoints/000012"
    state = json.loads((folder / STATE).read_text())
    (folder / STATE).write_text(sealed({**state, "sha256": {}}))


def older_model(run: Path) -> None:
    (run / "model/model.safetensors").unlink()
    shutil.copy(run / "checkpoints/000008/model.safetensors", run / "model")


def model_shape(run: Path) -> None:
    file = run / "model/model.toml"
    text = file.read_text()
    assert "eps = 1e-06" in text
    file.write_text(text.replace("eps = 1e-06", "eps = 1e-05"))


def model_tokenizer(run: Path) -> None:
    with open(run / "model/tokenizer.json", "a") as file:
        file.write(" ")


def tokenizer(run: Path) -> None:
    with open(run / "dataset/tokenizer.json", "a") as file:
        file.write(" ")


def borders(run: Path) -> None:
    flip(next((run / "dataset").glob("train-*.idx")), -8)


def held_out(run: Path) -> None:
    flip(next((run / "dataset").glob("held_out-*.bin")))


def names(run: Path) -> None:
    file = run / "dataset/documents.jsonl"
    file.write_text(file.read_text().replace("heapq.py", "heapQ.py"))


def record(run: Path) -> None:
    values = json.loads((run / "dataset/dataset.json").read_text())
    values["eot_id"] -= 1
    (run / "dataset/dataset.json").write_text(json.dumps(values))


def fingerprint(run: Path) -> None:
    data = json.loads((run / "data.json").read_text())
    (run / "data.json").write_text(json.dumps({**data, "fingerprint": "0" * 64}))


def lines_swapped(run: Path) -> None:
    lines = lines_of(run)
    lines[4], lines[5] = lines[5], lines[4]
    write_lines(run, lines)


def line_doubled(run: Path) -> None:
    lines = lines_of(run)
    write_lines(run, [*lines[:6], *lines[5:]])


def cut_within(run: Path) -> None:
    lines = (run / "ledger.jsonl").read_text().splitlines(True)
    lines[5] = lines[5][:40] + "\n"
    (run / "ledger.jsonl").write_text("".join(lines))


def said_twice(run: Path) -> None:
    """One loss for a reader that takes a key's first value, another for one that takes the last."""
    text = (run / "ledger.jsonl").read_text()
    (run / "ledger.jsonl").write_text(text.replace('{"step": 6,', '{"step": 6, "loss": 0.1,'))


def appended(run: Path) -> None:
    with open(run / "ledger.jsonl", "a") as file:
        file.write('{"loss": 0.1}\n')


def index_shorter(run: Path) -> None:
    write_lines(run, lines_of(run, "checkpoints.jsonl")[1:], "checkpoints.jsonl")


def index_longer(run: Path) -> None:
    lines = lines_of(run, "checkpoints.jsonl")
    write_lines(run, [*lines, {**lines[-1], "step": 16}], "checkpoints.jsonl")


def index_without_digests(run: Path) -> None:
    lines = lines_of(run, "checkpoints.jsonl")
    del lines[0]["sha256"]
    write_lines(run, lines, "checkpoints.jsonl")


@pytest.mark.parametrize(
    ("tamper", "where", "what"),
    [
        (weights, "checkpoints/000008", "model.safetensors does not match its recorded digest"),
        (state, "checkpoints/000012", "state.json is damaged"),
        (optimizer_resealed, "000012/optimizer.safetensors", "1 of"),
        (line_edited, "ledger.jsonl, line 5", "chain of digests breaks"),
        (line_removed, "ledger.jsonl", "line 7 is step 8"),
        (last_lines_removed, "ledger.jsonl", "ends at step 10, but there is a checkpoint"),
        (chained_anew, "ledger.jsonl, line 8", "checkpoint 8 was saved with"),
        (chained_anew_and_resealed, "ledger.jsonl, line 5", "loss is"),
        (shard, "data.json", "train-00000.bin has changed"),
        (documents_resealed, "dataset", "not the dataset that the checkpoints 8, 12 were"),
        (order, "data.json", "records the order"),
        (configuration, "run.toml", "not the configuration that the checkpoints 8, 12 were"),
        (configuration_resealed, "ledger.jsonl, line 1", "does not begin with this configuration"),
        (index, "checkpoints.jsonl, line 2", "mean_loss of step 8"),
        (removed_ones_digest, "checkpoints.jsonl, step 4", "another digest"),
        (model, "model/model.safetensors", "of no checkpoint"),
        (swapped, "checkpoints/000008", "says step 8, its state 12"),
        (copied_over, "checkpoints/000008", "says step 8, its state 12"),
        (renumbered, "ledger.jsonl, line 8", "checkpoint 8 was saved with"),
        (older_weights_resealed, "000012/model.safetensors", "tensors differ, taken again"),
        (says_less, "000012/state.json", "does not say what a checkpoint says"),
        (no_digests, "000012/state.json", "does not say what a checkpoint says"),
        (older_model, "model/model.safetensors", "of checkpoint 8, not the newest"),
        (model_shape, "model/model.toml", "not the model of run.toml"),
        (model_tokenizer, "model/tokenizer.json", "not the dataset's tokenizer"),
        (tokenizer, "data.json", "tokenizer.json has changed"),
        (borders, "data.json", "train-00000.idx has changed"),
        (held_out, "data.json", "held_out-00000.bin has changed"),
        (names, "data.json", "documents.jsonl has changed"),
        (record, "data.json", "dataset.json was changed by hand"),
        (fingerprint, "data.json", "records the fingerprint 000000000000"),
        (lines_swapped, "ledger.jsonl", "line 5 is step 6"),
        (line_doubled, "ledger.jsonl", "line 7 is step 6"),
        (cut_within, "ledger.jsonl", "line 6: not the JSON of a step"),
        (said_twice, "ledger.jsonl, line 6", "not as Flyweight wrote it"),
        (appended, "ledger.jsonl, line 13", "not the JSON of a step"),
        (index_shorter, "checkpoints.jsonl", "no line of checkpoint 4"),
        (index_longer, "checkpoints.jsonl, line 4", "of step 16, but the ledger ends at step 12"),
        (index_without_digests, "checkpoints.jsonl, line 1", "no digests of step 4"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_tampering_is_found_and_named(
    run: Path, command: Any, tamper: Tamper, where: str, what: str
) -> None:
    tamper(run)
    done = command("verify", "run", "--json")
    assert done.code == 1 and "Traceback" not in done.err
    found = done.json()["findings"]
    assert any(where in each["where"] and what in each["what"] for each in found), found
    assert not done.json()["holds"]


def test_what_does_not_hold_is_said_in_words(run: Path, command: Any) -> None:
    line_edited(run)
    done = command("verify", "run", "--steps", "9:9")
    assert done.code == 1
    assert "run does not hold:" in done.out
    assert "ledger.jsonl, line 5: the chain of digests breaks here" in done.out


def test_samples_are_taken_again(program: Any, command: Any) -> None:
    run = program.folder / "run"
    command("train", "bytes.toml", "train.sample_every=6", "--out", "run").ok()
    done = command("verify", "run", "--json").ok().json()
    assert done["exact"] and done["samples_compared"] == [6, 12]
    lines = lines_of(run, "samples.jsonl")
    better = {**lines[0], "text": "Once upon a time"}
    for samples, where, what in (
        ([better, lines[1]], "samples.jsonl, step 6", "its text is not what the model says"),
        (lines[1:], "samples.jsonl, line 1", "of step 12, but a sample was due after step 6"),
    ):
        write_lines(run, samples, "samples.jsonl")
        done = command("verify", "run", "--steps", "5:6", "--json")
        assert done.code == 1
        (found,) = done.json()["findings"]
        assert where in found["where"] and what in found["what"]


def elsewhere(run: Path) -> None:
    file = run / "environment.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "processor": "Zilog Z80"}))


def test_on_another_processor_it_holds_within_a_tolerance_said_aloud(
    run: Path, command: Any
) -> None:
    elsewhere(run)
    write_lines(run, forged(run, 12, "loss", 1 + 1e-6))
    reseal(run, 12, chain=lines_of(run)[-1]["chain"])
    lines = lines_of(run, "checkpoints.jsonl")
    ledger = lines_of(run)
    lines[-1] |= {
        "loss": ledger[-1]["loss"], "mean_loss": sum(line["loss"] for line in ledger) / 12,
    }  # fmt: skip
    write_lines(run, lines, "checkpoints.jsonl")
    done = command("verify", "run").ok()
    assert "hold, within the tolerance below" in done.out
    assert "for the run's processor was Zilog Z80, here it is" in done.out
    assert "within a tolerance: the run's processor was Zilog Z80" in done.err
    found = command("verify", "run", "--json").ok().json()
    assert not found["exact"] and found["tolerance"]["loss"] == 1e-3
    assert found["tensors_compared"] == [8, 12], "what was removed is known by its digest alone"
    write_lines(run, forged(run, 12, "loss", 1.01))
    again = command("verify", "run", "--json")
    assert again.code == 1
    assert any("loss is" in each["what"] for each in again.json()["findings"])
