"""Bad input: one clear message that names the file or key and the way out; nothing lost."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Finished = Callable[[str], Path]


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["train.setps=3"], ["unknown key `train.setps`", "did you mean `train.steps`?"]),
        (["model.attention.haeds=3"], ["`model.attention.haeds`", "`model.attention.heads`"]),
        (["trian.steps=3"], ["unknown key `trian`", "`train`"]),
        (["train.steps"], ["`train.steps` is no override", "section.key=value"]),
        (["train.steps.more=3"], ["`steps` is a value, not a table"]),
        (["train.steps=many"], ["`train.steps`", "'many'"]),
        (["train.steps=true"], ["steps"]),
        (["train.steps=0"], ["`train.steps`", "0"]),
        (["train=3"], ["`train` is a table"]),
        (["train.minutes=3"], ["steps and minutes", "keep one"]),
        (["train.context=100"], ["batch_tokens = 512", "context = 100"]),
        (["train.micro_batch_tokens=100"], ["micro_batch_tokens = 100"]),
        (["model.context=32"], ["train.context = 64", "model.context = 32"]),
        (["model.attention.heads=3"], ["width = 32", "heads = 3"]),
        (["model.use=mobilama"], ["mobilama"]),
        (["model.use=3"], ["model.use = 3"]),
        (
            ["model.encoder.depth=2", "model.position.kind=relative"],
            ["ngrams does not apply to an encoder-decoder"],
        ),
        (["text.tokenizer=bpe"], ["text.tokenizer", '"bpe" needs the size', "size = 4096"]),
        (["text.tokenizer.size=9"], ["size"]),
        (["train.schedule.peak=nan"], ["train.schedule.peak"]),
        (["train.schedule.peak=inf"], ["train.schedule.peak"]),
        (["train.precision=f16"], ["train.precision", "f16"]),
        (["train.device=tpu"], ["train.device", "tpu"]),
        (["seed=-1"], ["`seed`"]),
        (["name=3"], ["`name`"]),
        (["data.train=[3]"], ["3"]),
        (["data.train=texts"], ["`data.train`"]),
        (["data.train=['nowhere']"], ["no such file or folder", "nowhere"]),
        (["data.train=['nowhere/*.py']"], ["no file matches", "nowhere/*.py"]),
        (["data.held_out=1.0"], ["data.held_out = 1.0"]),
        (["data.held_out=2"], ["data.held_out"]),
        (
            ["train.context=1048576", "train.batch_tokens=1048576"],
            ["set train.context to "],
        ),
        # Petabytes: more than a processor has addresses for.
        (
            ["model.width=16777216", "model.attention.heads=131072"],
            ["not enough memory", "train.micro_batch_tokens"],
        ),
    ],
)
def test_a_wrong_setting(program: Any, command: Any, settings: list[str], said: list[str]) -> None:
    before = snapshot(program.folder)
    command("train", "bytes.toml", *settings, "--out", "run").failed(*said)
    assert snapshot(program.folder) == before


def test_a_configuration_that_is_none(program: Any, command: Any) -> None:
    command("train", "nowhere.toml").failed("nowhere.toml")
    command("train", "texts").failed("texts is a folder")
    (program.folder / "broken.toml").write_text("[train\nsteps = 3")
    command("train", "broken.toml").failed("broken.toml is not valid TOML", "line 1")
    (program.folder / "binary.toml").write_bytes(b"\xff\xfe\x00")
    command("train", "binary.toml").failed("binary.toml is not UTF-8")
    assert not (program.folder / "runs").exists()


def test_text_that_is_none(program: Any, command: Any) -> None:
    (program.folder / "empty").mkdir()
    (program.folder / "blank").mkdir()
    (program.folder / "blank" / "a.txt").write_text(" \n")
    (program.folder / "binaries").mkdir()
    for name in "ab":
        with open(sys.executable, "rb") as file:
            (program.folder / "binaries" / name).write_bytes(file.read(9000))
    (program.folder / "one.txt").write_text("A")
    before = snapshot(program.folder)
    for name, said in (
        ("empty", "empty holds no files"),
        ("binaries", "2 binary"),
        ("blank", "blank"),
        ("binaries/a", "binary file"),
        ("one.txt", "too short to hold out"),
    ):
        command("quickstart", "--text", name, "--minutes", "0.05").failed(name, said)
        command("train", "bytes.toml", f"data.train=['{name}']").failed(name, said)
        if name not in ("one.txt", "blank"):
            command("eval", "nowhere", "--text", name).failed(name)
    after = snapshot(program.folder)
    after.pop("runs", None)  # the folder of all runs may stay
    assert after == before


def test_a_place_that_is_taken(program: Any, command: Any, run_copy: Path) -> None:
    (program.folder / "notes").mkdir()
    (program.folder / "notes" / "mine.txt").write_text("mine")
    (program.folder / "file").write_text("mine")
    before = snapshot(program.folder)
    train = ["train", "bytes.toml", "--out"]
    command(*train, "run").failed("run holds a run already", "--out", "flyweight resume run")
    command(*train, "notes").failed("notes exists already", "--out")
    command(*train, "file").failed("file is a file", "--out")
    command(*train, "file/below").failed("file")
    command("quickstart", "--out", "run").failed("run holds a run already")
    command("resume", "notes").failed("notes is not a run folder")
    command("resume", "nowhere").failed("nowhere")
    command("resume", "file").failed("file")
    command("report", "notes").failed("notes")
    assert snapshot(program.folder) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_parent_that_cannot_be_written(program: Any, command: Any) -> None:
    (program.folder / "locked").mkdir(mode=0o500)
    command("train", "bytes.toml", "--out", "locked/run").failed("locked")


def flip(path: Path, at: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def half_done(run: Path) -> Path:
    """Take the last checkpoint away, so that there is something to resume."""
    shutil.rmtree(run / "checkpoints" / "000012")
    return run


@pytest.mark.parametrize(
    "name", ["train-00000.bin", "train-00000.idx", "held_out-00000.bin", "tokenizer.json"]
)
def test_a_dataset_that_changed_is_found_on_resuming(
    command: Any, run_copy: Path, name: str
) -> None:
    run = half_done(run_copy)
    flip(run / "dataset" / name)
    before = snapshot(run)
    command("resume", "run").failed(f"run/dataset/{name}")
    assert snapshot(run) == before


def test_a_truncated_or_missing_shard(command: Any, run_copy: Path) -> None:
    run = half_done(run_copy)
    shard = run / "dataset" / "train-00000.bin"
    os.truncate(shard, shard.stat().st_size - 2)
    before = snapshot(run)
    command("resume", "run").failed("run/dataset/train-00000.bin is cut short")
    command("data", "inspect", "run").failed("run/dataset/train-00000.bin is cut short")
    assert snapshot(run) == before
    shard.unlink()
    command("resume", "run").failed("run/dataset/train-00000.bin is missing")
    shutil.rmtree(run / "dataset")
    command("resume", "run").failed("run/dataset")


def test_another_dataset_in_its_place(program: Any, command: Any, run_copy: Path) -> None:
    shutil.rmtree(run_copy / "dataset")
    command("data", "build", "bytes.toml", "data.train=['texts/heapq.py']", "--out", "run/dataset")
    command("resume", "run").failed("run/dataset", "changed since run was begun")


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("at", [0.0, 0.4, 0.97])
def test_a_flipped_bit_in_a_checkpoint(command: Any, run_copy: Path, name: str, at: float) -> None:
    file = run_copy / "checkpoints" / "000012" / name
    flip(file, at)
    before = snapshot(run_copy)
    said = "run/checkpoints/000012"
    command("resume", "run").failed(f"{said}/{name}", f"remove {said}")
    command("generate", "run", "x").failed(f"{said}/{name}")
    assert snapshot(run_copy) == before
    command("generate", "run@8", "x", "--max-tokens", "1").ok()
    # The way out works.
    shutil.rmtree(run_copy / "checkpoints" / "000012")
    assert command("resume", "run", "--json").ok().json()["step"] == 12


def test_a_changed_configuration(command: Any, run_copy: Path) -> None:
    run = half_done(run_copy)
    config = run / "run.toml"
    text = config.read_text()
    for old, new in (("seed = 0", "seed = 1"), ("steps = 12", "steps = 20")):
        assert text.count(old) == 1
        config.write_text(text.replace(old, new))
        before = snapshot(run)
        command("resume", "run").failed("run/checkpoints/000008", "run.toml")
        assert snapshot(run) == before
    config.write_text(text.replace("steps = 12", "setps = 12"))
    command("resume", "run").failed("run/run.toml", "train.setps")
    config.write_text(text.replace("steps = 12\n", ""))
    command("resume", "run").failed("run/run.toml", "train.steps")
    config.unlink()
    command("resume", "run").failed("run.toml")
    config.write_text(text)
    command("resume", "run").ok()


def test_a_lost_or_damaged_record(command: Any, run_copy: Path) -> None:
    run = half_done(run_copy)
    ledger = run / "ledger.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    for content in ("", "".join(lines[:5]), "".join([*lines[:3], "{nonsense\n", *lines[4:]])):
        ledger.write_text(content)
        before = snapshot(run)
        command("resume", "run").failed("run/ledger.jsonl")
        assert snapshot(run) == before
    # A last line that a crash cut short is no damage.
    ledger.write_text("".join(lines[:9]) + lines[9][:20])
    for content in ("", "{}", '{"dataset": 3, "fingerprint": "x"}', "[]"):
        (run / "data.json").rename(run / "kept")
        (run / "data.json").write_text(content)
        command("resume", "run").failed("run/data.json is damaged")
        (run / "kept").rename(run / "data.json")
    command("resume", "run").ok()


# The largest file that may be written, in shell blocks of 512 bytes, and what then fails: the
# dataset; the run's settings; the first checkpoint's weights; its optimiser's state; the ledger.
@pytest.mark.parametrize(("blocks", "begun"), [(1, False), (12, True), (100, True), (200, True)])
def test_no_space_left(program: Any, blocks: int, begun: bool) -> None:
    """A limit on the size of files stands in for the full disk."""
    config = (program.folder / "bytes.toml").read_text().replace('"texts"', '"texts/bisect.py"')
    (program.folder / "small.toml").write_text(config)
    done = program.shell(f'ulimit -f {blocks}; exec "$0" -m flyweight train small.toml --out run')
    done.failed("File too large")
    run = program.folder / "run"
    assert run.exists() == begun
    assert not [
        left for left in program.folder.rglob("*") if left.name.endswith((".tmp", ".partial"))
    ]
    if begun:
        assert "flyweight resume run" in done.err
        program("resume", "run").ok()


def test_models_that_are_not_there(program: Any, command: Any, finished: Finished) -> None:
    run = finished("patches")
    for model in ("nowhere", "run@3", "texts", "bytes.toml", ".", "", "x" * 5000, "a\0b"):
        for arguments in (["generate", model, "x"], ["eval", model, "--text", "texts"]):
            command(*arguments).failed()
    near = command("generate", str(run.with_name("patchse")), "x").failed("no model at")
    assert "`patches`" in near.err
    command("generate", f"{run}@9", "x").failed("no checkpoint at step 9", "8, 12")
    command("eval", f"{run}/model").failed("--text")
    command("eval", str(run), "--tasks", "bits_per_bite").failed("`bits_per_byte`")
    (program.folder / "empty.txt").write_text("")
    command("eval", str(run), "--text", "empty.txt").failed("empty.txt")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--threads", "0"], "threads = 0"),
        (["--temperature", "-1"], "temperature = -1"),
        (["--temperature", "nan"], "temperature = nan"),
        (["--temperature", "inf"], "temperature = inf"),
        (["--max-tokens", "-5"], "max_tokens = -5"),
        (["--min-tokens", "9", "--max-tokens", "5"], "min_tokens = 9"),
        (["--top-k", "0"], "top_k = 0"),
        (["--top-p", "0"], "top_p = 0"),
        (["--top-p", "nan"], "top_p = nan"),
        (["--seed", "99999999999999999999999"], "seed = 99999999999999999999999"),
    ],
)
def test_sampling_that_cannot_be(
    command: Any, finished: Finished, options: list[str], said: str
) -> None:
    command("generate", str(finished("patches")), "x", *options).failed(said)


def test_hostile_prompts(program: Any, command: Any, finished: Finished) -> None:
    for kind in ("bpe", "patches"):
        run = str(finished(kind))
        short = ["--max-tokens", "4", "--temperature", "0"]
        command("generate", run, os.fsdecode(b"a\xffb"), *short).failed("lone surrogate")
        for prompt in ("\x1b[2J", "<eot><pad>", "\u202e", "🏴" * 300, "\r\n" * 99, "a\0b"):
            command("generate", run, prompt, *short).ok()
    done = program("generate", run, b"a\xff\xfe", *short)
    done.failed("lone surrogate")
    program("generate", run, "-", *short, input=b"a\xff\xfe").failed("standard input", "UTF-8")
    program("generate", run, "-", *short, input=b"a b\n" * 300_000).ok()
    long = command("generate", run, "a b\n" * 300_000, *short, "--top-k", "100000").ok()
    assert long.out


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf", "1e308"])
def test_budgets_that_cannot_be(program: Any, command: Any, minutes: str) -> None:
    done = command("quickstart", "--text", "texts", "--minutes", minutes)
    assert done.code in (1, 2) and "minutes" in done.err and "Traceback" not in done.err
    assert not (program.folder / "runs" / "quickstart").exists()


def test_a_name_that_is_not_text(program: Any) -> None:
    for arguments in (
        [b"train", b"bytes.toml", b"--out", b"r\xffn", b"train.steps=1"],
        [b"generate", b"r\xff", b"x"],
        [b"train", b"\xff.toml"],
        [b"train", b"bytes.toml", b"name=\xff"],
        [b"train", b"bytes.toml", b"data.train=['\xff']"],
    ):
        done = program(*arguments)
        assert done.code in (0, 1) and "Traceback" not in done.err, (arguments, done.err)


def test_an_encoder_decoder_is_no_model_of_text(program: Any, command: Any) -> None:
    written = 'model.use = "flan-t5-small"\ndata.train = ["texts"]\ntrain.steps = 1\n'
    (program.folder / "t5.toml").write_text(written)
    said = ("model.encoder", "pairs of source and answer", "leave model.encoder out")
    command("train", "t5.toml", "--out", "run").failed(*said)
    assert not (program.folder / "run").exists()
