"""`flyweight export --to gguf` as a person meets it, and the file as a MODEL."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flyweight.files.from_gguf import open_gguf
from flyweight.files.gguf import GgufFile
from flyweight.text.load import load_tokenizer

Command = Callable[..., Any]


def test_a_run_becomes_a_file_that_talks(finished: Callable[[str], Path], command: Command) -> None:
    run = str(finished("bpe"))
    done = command("export", run, "out.gguf", "--to", "gguf", "--type", "f32", "--json").ok()
    said = json.loads(done.out)
    assert said["architecture"] == "llama"
    assert said["type"] == "f32"
    assert said["notes"] == []
    file = GgufFile("out.gguf")
    assert said["bytes"] == sum(tensor.data.nbytes for tensor in file.tensors.values())
    assert file.metadata["general.name"] == Path(run).name
    options = ("--max-tokens", "20", "--temperature", "0")
    there = command("generate", run, "def ", *options).ok()
    here = command("generate", "out.gguf", "def ", *options).ok()
    assert here.out == there.out
    assert load_tokenizer("out.gguf").digest == load_tokenizer(run).digest


@pytest.mark.parametrize("kind", ["bytes", "patches"])
def test_what_llama_cpp_lacks_is_said_aloud(
    kind: str, finished: Callable[[str], Path], command: Command
) -> None:
    run = str(finished(kind))
    done = command("export", run, "out.gguf", "--to", "gguf", "--type", "f32").ok()
    assert "note: for Flyweight alone: llama.cpp has no architecture for" in done.err
    assert "ngrams" in done.err
    assert done.out.startswith("out.gguf: flyweight, ")
    options = ("--max-tokens", "20", "--temperature", "0")
    there = command("generate", run, "def ", *options).ok()
    assert command("generate", "out.gguf", "def ", *options).ok().out == there.out


def test_a_file_is_exported_again(finished: Callable[[str], Path], command: Command) -> None:
    command("export", str(finished("bpe")), "a.gguf", "--to", "gguf", "--type", "q8_0").ok()
    command("export", "a.gguf", "b.gguf", "--to", "gguf", "--type", "q8_0").ok()
    one, two = GgufFile("a.gguf"), GgufFile("b.gguf")
    for name, tensor in one.tensors.items():
        assert tensor.data.tobytes() == two.tensors[name].data.tobytes()
    command("export", "a.gguf", "hf").ok()


def test_a_zoo_name_gives_random_weights(command: Command) -> None:
    done = command("export", "minicpm-9m", "out.gguf", "--to", "gguf", "--type", "q4_0").ok()
    assert "random weights and a placeholder tokenizer" in done.err
    opened = open_gguf("out.gguf")
    assert opened.architecture == "minicpm"
    assert load_tokenizer("out.gguf").vocab_size == opened.spec.vocab_size


def test_mistakes(finished: Callable[[str], Path], command: Command, tmp_path: Path) -> None:
    run = str(finished("bpe"))
    (tmp_path / "there.gguf").write_text("mine")
    command("export", run, "there.gguf", "--to", "gguf").failed("there.gguf exists already")
    assert (tmp_path / "there.gguf").read_text() == "mine"
    command("export", run, "o.gguf", "--to", "gguf", "--type", "q4").failed(
        "--type q4;", "did you mean `q4_1`?"
    )
    command("export", run, "o", "--type", "q4_0").failed("--type and --expand belong to --to gguf")
    command("export", run, "o", "--expand").failed("--type and --expand belong to --to gguf")
    command("export", "mobilellm", "o.gguf", "--to", "gguf").failed("no model at mobilellm")
    patches = str(finished("patches"))
    refused = command("export", patches, "o.gguf", "--to", "gguf", "--expand")
    refused.failed("no architecture of llama.cpp", "ngrams", "Leave out --expand")
    command("generate", "there.gguf", "a").failed("there.gguf", "too short")
    assert {path.name for path in tmp_path.iterdir()} == {"there.gguf"}
