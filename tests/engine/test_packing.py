"""What of a large model is packed only after its first token: the same numbers all the way."""

from __future__ import annotations

import dataclasses
import gc
import platform
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flyweight.engine import _native as native
from flyweight.engine.compile import compile_model
from flyweight.engine.program import Program
from flyweight.files.from_gguf import open_gguf
from flyweight.files.random_weights import RandomSource
from flyweight.files.to_gguf import export_gguf
from flyweight.files.weights import GgufTensors
from flyweight.spec.model import ModelSpec
from flyweight.text.bytes import ByteTokenizer

# Of a layer: 12.6 million numbers in matrices that lie in the file as they are.
WIDE: dict[str, Any] = {
    "vocab_size": 258,
    "width": 512,
    "context": 256,
    "attention": {"heads": 8, "kv_heads": 2},
    "feedforward": {"hidden": 8192},
    "tie_embeddings": True,
}
TURNS = 16
SMAPS = Path("/proc/self/smaps")


def model_file(folder: Path, type: str, depth: int, **more: Any) -> Path:
    spec = ModelSpec.parse({**WIDE, "depth": depth, **more})
    path = folder / f"{type}.gguf"
    export_gguf(spec, RandomSource(spec), ByteTokenizer(), path, "wide", type)
    return path


def compiled(path: Path) -> Program:
    """Its weights are views of the file."""
    model = open_gguf(path)
    return compile_model(model.spec, GgufTensors(model.weights))


def in_memory(program: Program) -> Program:
    """The same weights, no longer views: all of them are packed at once."""
    weights = [dataclasses.replace(w, data=np.array(w.data)) for w in program.weights]
    return dataclasses.replace(program, weights=weights)


def resident(path: Path) -> int:
    """KiB of the file that this process has mapped and in memory."""
    found, ours = 0, False
    for line in SMAPS.read_text().splitlines():
        if "-" in line.split(" ")[0]:
            ours = line.endswith(str(path))
        elif ours and line.startswith("Rss:"):
            found += int(line.split()[1])
    return found


def linux() -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", platform.release())[:2])


@pytest.mark.parametrize(("type", "depth"), [("f32", 2), ("f16", 3), ("bf16", 3), ("q8_0", 6)])
def test_a_model_answers_the_same_before_and_after_it_is_packed(
    tmp_path: Path, type: str, depth: int
) -> None:
    path = model_file(tmp_path, type, depth)
    early = native.Executor(in_memory(compiled(path)), 2)
    gc.collect()
    late = native.Executor(compiled(path), 2)
    assert early.weight_bytes == late.weight_bytes
    if SMAPS.is_file() and linux() >= (5, 14):
        # What is not packed is mapped: all but the queries and keys, whose rows llama.cpp moves.
        assert resident(path) > 0.7 * path.stat().st_size / 1024
    sequences = [executor.begin([1.0] * 32) for executor in (early, late)]
    prompt = [(7 * i) % 250 for i in range(40)]
    calls = [prompt, *([t] for t in range(TURNS + 3)), list(range(9))]
    for number, call in enumerate(calls):
        expected, found = (
            executor.feed([sequence], [call], "all")
            for executor, sequence in zip((early, late), sequences, strict=True)
        )
        assert np.array_equal(found, expected), number
        if number == 0 and SMAPS.is_file():
            assert resident(path) > 0.7 * path.stat().st_size / 1024
    if SMAPS.is_file():
        assert resident(path) < 0.2 * path.stat().st_size / 1024


def test_a_small_model_and_a_shared_block_are_packed_at_once(tmp_path: Path) -> None:
    """A cache gives them faster than they could be read as they lie."""
    (tmp_path / "small").mkdir()
    small = {"depth": 1, "feedforward": {"hidden": 512}}
    shared = {"share": {"feedforward": "all"}, "feedforward": {"hidden": 40_000}}
    for folder, more in ((tmp_path / "small", small), (tmp_path, shared)):
        path = model_file(folder, "f32", **({"depth": 2} | more))
        executor = native.Executor(compiled(path), 1)
        sequence = executor.begin([1.0] * 32)
        executor.feed([sequence], [[1, 2, 3]], "last")
        if SMAPS.is_file():
            assert resident(path) < 0.3 * path.stat().st_size / 1024, more
