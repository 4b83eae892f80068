"""What a user does with a trained run: talk, measure, look, load; and quickstart as a whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flyweight
from flyweight.cli.run import evaluate_run
from flyweight.data.batches import Batches
from flyweight.files.run import RunFolder
from flyweight.text.infill import END_OF_MASK, infill_prompt
from flyweight.text.talk import Sampling
from flyweight.train.corruption import Sentinels
from flyweight.train.start import open_dataset

Finished = Callable[[str], Path]
PROMPT = "def heappush(heap, item):"


@pytest.mark.parametrize("engine", ["torch", "native"])
def test_a_model_that_learned_to_fill_in_is_asked_to(finished: Finished, engine: str) -> None:
    """Its tokenizer, bytes, names the sentinels that training put behind it."""
    run = finished("recipes")
    spec = RunFolder(run).spec()
    assert spec.train.objective.spans is not None
    sentinels = Sentinels.of(open_dataset(RunFolder(run)).tokenizer, spec.model.vocab_size, 4)
    model = flyweight.load(run, engine=engine)
    prompt = infill_prompt(model.tokenizer, "def ", "(heap)")
    mask = sentinels.masks[0]
    ids = [*b"def ", mask, *b"(heap)", sentinels.eot, sentinels.sep, mask]
    assert prompt == ids and model.tokenizer.encode(END_OF_MASK) == [sentinels.eom]
    assert END_OF_MASK not in model.generate(prompt, max_tokens=9, stop=[END_OF_MASK])


def test_generate_puts_the_continuation_alone_on_standard_output(
    program: Any, finished: Finished
) -> None:
    run = finished("patches")
    model = flyweight.load(run)
    wanted = model.generate(PROMPT, max_tokens=24, temperature=0.7, seed=3)
    made = len(list(model.steps(PROMPT, Sampling(24, temperature=0.7, seed=3))))
    options = ["--max-tokens", "24", "--seed", "3"]
    done = program("generate", str(run), PROMPT, *options).ok()
    assert done.out == wanted + "\n"
    assert f"{made} tokens, the first after" in done.err and wanted not in done.err
    piped = program("generate", str(run), "-", *options, input=PROMPT.encode()).ok()
    assert piped.out == done.out


@pytest.mark.parametrize("kind", ["bpe", "patches"])
def test_generate_from_every_place_that_holds_the_model(
    command: Any, finished: Finished, kind: str
) -> None:
    run = finished(kind)
    options = ["--max-tokens", "16", "--json"]
    texts = {
        place: command("generate", place, PROMPT, *options).ok().json()["text"]
        for place in (str(run), f"{run}@12", f"{run}/checkpoints/000012", f"{run}/model")
    }
    assert len(set(texts.values())) == 1, texts
    greedy = [*options, "--temperature", "0"]
    earlier, later = (command("generate", f"{run}@{n}", "de", *greedy).json() for n in (8, 12))
    assert earlier["prompt"] == later["prompt"] == "de"
    seeds = {
        command("generate", str(run), PROMPT, *options, "--seed", str(seed)).json()["text"]
        for seed in (0, 0, 1, 2)
    }
    assert len(seeds) == 3


def test_generate_of_no_prompt_and_of_no_tokens(command: Any, finished: Finished) -> None:
    for kind in ("bpe", "patches"):
        run = str(finished(kind))
        four = ["--min-tokens", "4", "--max-tokens", "4", "--json"]
        done = command("generate", run, *four).ok().json()
        assert done["prompt"] == "" and done["tokens"] == 4
        assert command("generate", run, PROMPT, "--max-tokens", "0").ok().out == "\n"


def test_generate_from_a_run_killed_before_it_had_a_model_folder(
    command: Any, run_copy: Path
) -> None:
    whole = command("generate", str(run_copy), PROMPT, "--max-tokens", "8").ok()
    shutil.rmtree(run_copy / "model")
    assert command("generate", str(run_copy), PROMPT, "--max-tokens", "8").ok().out == whole.out
    run_copy.rename(run_copy.with_name("moved"))
    assert command("generate", "moved", PROMPT, "--max-tokens", "8").ok().out == whole.out


def test_eval_of_a_run_and_of_other_text(program: Any, command: Any, finished: Finished) -> None:
    run = finished("patches")
    copy = program.folder / "run"
    shutil.copytree(run, copy)
    result = command("eval", "run", "--json").ok().json()
    assert result == evaluate_run(RunFolder.open(copy), 1 << 20)
    held_out = open_dataset(RunFolder.open(copy)).held_out
    assert result["held_out"]["bytes"] == held_out.bytes
    assert json.loads((copy / "evaluation.json").read_text()) == result
    table = command("eval", "run").ok().out
    assert f"{result['held_out']['bits_per_byte']:.3f}" in table and "xz" in table
    other = command("eval", "run/model", "--text", textwrap.__file__, "--json").ok().json()
    assert other["held_out"]["bytes"] == Path(textwrap.__file__).stat().st_size
    assert other["held_out"]["bits_per_byte"] > 4
    sampled = command("eval", "run", "--text", "texts", "--bytes", "20000", "--json").ok().json()
    assert 0 < sampled["held_out"]["bytes"] <= 20000 and sampled["held_out"]["sampled"]


def test_report_writes_the_page(command: Any, run_copy: Path) -> None:
    (run_copy / "report.html").unlink()
    assert command("report", "run").ok().out == "run/report.html\n"
    assert (run_copy / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert command("report", "run", "--json").ok().json()["steps"] == 12


@pytest.mark.parametrize("kind", ["bpe", "patches"])
def test_inspect_shows_what_the_ledger_says_was_trained_on(
    command: Any, finished: Finished, kind: str
) -> None:
    run = RunFolder.open(finished(kind))
    spec, dataset = run.spec(), open_dataset(run)
    batches = Batches(dataset, spec.train.context, spec.train.batch_tokens, spec.seed)
    for step in (1, 7, 12):
        tokens_BT = batches.batch(step - 1).tokens_BT
        digest = hashlib.sha256(np.ascontiguousarray(tokens_BT).tobytes()).hexdigest()
        assert run.read_ledger()[step - 1]["digest"] == digest[:16]
        shown = command("data", "inspect", str(run.path), "--step", str(step), "--json").ok().json()
        assert shown["step"] == step and len(shown["rows"]) == len(tokens_BT)
        for row, tokens_T in zip(shown["rows"], tokens_BT, strict=True):
            text = dataset.tokenizer.decode_bytes(tokens_T.tolist())
            whole = b""
            for part in row:
                texts = run.path.parent.parent / "texts"
                source = (texts / part["name"].removesuffix("#tail")).read_bytes()
                whole += source[part["start_byte"] : part["end_byte"]]
                assert source[part["start_byte"] :].decode().startswith(part["text"])
            assert text == whole
    plain = command("data", "inspect", str(run.path), "--step", "1", "--rows", "1").ok()
    assert plain.out.startswith("row 0\n")
    assert command("data", "inspect", str(run.path), "--step", "0").code == 2


def test_load_from_python(finished: Finished) -> None:
    run = finished("bpe")
    model, tokenizer = flyweight.load(run), flyweight.load_tokenizer(run)
    assert tokenizer.decode(tokenizer.encode(PROMPT)) == PROMPT
    scored = model.logprobs(PROMPT)
    assert [token for token, _ in scored] == tokenizer.encode(PROMPT)[-len(scored) :]
    assert all(value < 0 for _, value in scored)
    assert "".join(model.stream(PROMPT, max_tokens=8)) == model.generate(PROMPT, max_tokens=8)
    with pytest.raises(flyweight.FlyweightError, match="no model at"):
        flyweight.load(run / "nowhere")


def mixed_texts(folder: Path) -> None:
    folder.mkdir()
    words = Path(textwrap.__file__).read_text()
    (folder / "utf8.txt").write_text("Größe, naïve, 日本語\n" + words, encoding="utf-8")
    (folder / "utf16.txt").write_text("Überall: čeština\n" + words[::-1], encoding="utf-16")
    (folder / "latin1.txt").write_text("Müller aß Käse à la carte.\n" * 200, encoding="latin-1")
    shutil.copy(sys.executable, folder / "program.bin")
    with open(folder / "program.bin", "r+b") as file:
        file.truncate(50_000)


def test_quickstart_on_mixed_text(program: Any) -> None:
    mixed_texts(program.folder / "mine")
    options = ["--text", "mine", "--minutes", "0.05"]
    done = program("quickstart", *options, "--json").ok()
    result = done.json()
    assert result["run"] == "runs/quickstart"
    assert "skipped 1: binary (program.bin)" in done.err
    assert "utf-16" in done.err and "\x1b" not in done.err
    assert 0 < result["held_out"]["bits_per_byte"] < 12
    assert [row["name"] for row in result["compressors"]] == ["gzip -9", "bzip2 -9", "xz -9e"]
    assert result["samples"] and all(sample["text"] for sample in result["samples"])
    page = program.folder / result["report"]
    assert page.is_file() and f"{result['held_out']['bits_per_byte']:.3f}" in page.read_text()
    second = program("quickstart", *options).ok()
    assert (program.folder / "runs" / "quickstart-2" / "report.html").is_file()
    assert "bits per byte on" in second.out and "\x1b" not in second.out
    assert "flyweight generate runs/quickstart-2" in second.err
    program("resume", "runs/quickstart").ok()


@pytest.mark.parametrize("size", [20, 300])
def test_quickstart_on_very_little_text(program: Any, size: int) -> None:
    (program.folder / "little.txt").write_text(("A little text. " * 20)[:size])
    done = program("quickstart", "--text", "little.txt", "--minutes", "0.05", "--json").ok()
    assert "the text is short, so train.context = " in done.err
    assert done.json()["held_out"]["bytes"] > 0


def test_a_terminal_sees_the_live_view(program: Any) -> None:
    pty = pytest.importorskip("pty")
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "flyweight", "train", "patches.toml", "train.sample_every=6",
         "--out", "run"],
        cwd=program.folder, env={**program.environment, "TERM": "xterm-256color"},
        stdin=child, stdout=child, stderr=child, close_fds=True,
    )  # fmt: skip
    os.close(child)
    shown = b""
    while True:
        try:
            chunk = os.read(parent, 1 << 16)
        except OSError:  # the other end has closed
            break
        if not chunk:
            break
        shown += chunk
    os.close(parent)
    assert process.wait() == 0, shown.decode(errors="replace")
    text = shown.decode(errors="replace")
    assert "Traceback" not in text and "\x1b[" in text
    assert "bits per byte" in text and "run" in text
    # The cursor that the live view hides is shown again.
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")
