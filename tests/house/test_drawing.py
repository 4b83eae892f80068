"""The drawn architectures: every parameter is in them, they fit, and sharing shows."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from flyweight.zoo import catalog, shapes
from flyweight.zoo.drawing import ASCII, WIDTH, amount, draw, volume


def drawn(name: str) -> str:
    entry = catalog.get(name)
    return draw(entry.name, entry.paper, entry.spec)


@pytest.mark.parametrize("name", catalog.names())
def test_every_model_is_drawn_whole_within_its_width(name: str) -> None:
    entry = catalog.get(name)
    text = drawn(name)
    lines = text.splitlines()
    assert lines[0] == f"{name} · {entry.paper}"
    assert max(map(len, lines)) <= WIDTH <= 100
    assert "…" not in text, "something was cut"
    counts = shapes.parameters(entry.spec)
    assert f"{counts.unique:,}; without embeddings {counts.without_embeddings:,}" in text
    assert (f"{counts.total:,} if every use" in text) == (counts.total != counts.unique)
    assert text.translate(ASCII).isascii()
    blocks = [line for line in lines if line.startswith(("╭───┼─ block", "╔═══┼═ block"))]
    assert sum(_layers(line) for line in blocks) == entry.spec.depth


def _layers(title: str) -> int:
    word = title.split()[2].rstrip(",")
    first, _, last = word.partition("–")
    return int(last or first) - int(first) + 1


def test_a_shared_body_is_drawn_once_with_its_uses() -> None:
    lines = drawn("mobillama-0.5b").splitlines()
    (at,) = [i for i, line in enumerate(lines) if "one body of weights, 22 uses" in line]
    assert "╔" in lines[at]
    assert "gate and up" in lines[at + 1]
    assert "23.1 M" in lines[at + 1]
    assert sum("SwiGLU" in line for line in lines) == 1
    assert "one body" not in drawn("mobillama-1.2b")


def test_a_repeated_block_stands_in_a_double_border() -> None:
    text = drawn("mobilellm-ls-125m")
    assert "╔═══┼═ blocks 1–30, 3.54 M each, one body of weights, 2 uses in a row" in text
    assert "60 slots" in text


def test_the_interior_has_its_own_updates_and_the_ends_are_alike() -> None:
    lines = drawn("stlm-shared").splitlines()
    titles = [line.split("─ ")[1].split(",")[0] for line in lines if line.startswith("╭")]
    assert titles == ["blocks 1–2", "blocks 3–10", "blocks 11–12"]
    assert sum("like blocks 1–2" in line for line in lines) == 1
    assert sum("rank 64" in line for line in lines) == 1


def test_an_encoder_is_drawn_before_the_decoder_that_attends_to_it() -> None:
    text = drawn("flan-t5-small")
    encoder, decoder = text.split("what every block of the decoder attends to")
    assert "encoder blocks 1–8, 2.36 M each" in encoder
    assert "embedding, the decoder's too" in encoder
    assert "512 → 384 + 2 × 384" in encoder and "every position sees all" in encoder
    assert encoder.count("⊕") == 2 and decoder.count("⊕") == 3
    assert "attention to the encoder: 6 heads of 64" in decoder
    assert decoder.count("softmax(q·k + bias) v") == decoder.count("softmax(q·k) v") == 1
    assert text.count("32 × 6") == 2
    assert "12.3 kB a token of the source" in decoder


def test_parallel_branches_have_one_norm_and_come_back_once() -> None:
    text = drawn("codegen2-1b")
    assert text.count("⊕") == 1
    assert text.count("layer norm") == 2, "one in the block, one before the head"
    assert drawn("gpt2").count("⊕") == 2


@pytest.mark.parametrize(
    ("count", "said"),
    [
        *((0, "0"), (9999, "9999"), (10_000, "10 k"), (999_400, "999 k"), (999_999, "1 M")),
        *((23_068_672, "23.1 M"), (999_600_000, "1 B"), (1_348_040_704, "1.35 B")),
    ],
)
def test_amounts_have_about_four_signs(count: int, said: str) -> None:
    assert amount(count) == said


@pytest.mark.parametrize(
    ("size", "said"),
    [(576, "576 B"), (90_112, "90.1 kB"), (999_600, "1 MB"), (2_139_463_680, "2.14 GB")],
)
def test_volumes_are_powers_of_ten(size: int, said: str) -> None:
    assert volume(size) == said


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_a_pipe_of_any_encoding_gets_the_drawing(encoding: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flyweight", "models", "mobilellm-ls-125m"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        check=True,
    )
    text = done.stdout.decode(encoding)
    shown = drawn("mobilellm-ls-125m")
    assert text == (shown if encoding == "utf-8" else shown.translate(ASCII)) + "\n"
    assert not done.stderr
