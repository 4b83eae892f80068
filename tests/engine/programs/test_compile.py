"""Programs mean what the torch model computes: a float64 interpreter of them is the witness."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from flyweight.engine.compile import compile_model, uncovered  # noqa: E402
from flyweight.engine.plan import arena, plan  # noqa: E402
from flyweight.engine.positions import (  # noqa: E402
    reading,
)
from flyweight.engine.program import Buffer, Kind, Op, Program, Rows  # noqa: E402
from flyweight.files.weights import StoredTensor  # noqa: E402
from flyweight.model.decoder import Decoder  # noqa: E402
from flyweight.spec.errors import CorruptFileError, FlyweightError  # noqa: E402
from flyweight.spec.model import ModelSpec, SlotInput  # noqa: E402
from flyweight.zoo import catalog, shapes  # noqa: E402

from .conftest import compiled  # noqa: E402
from .interpreter import Interpreter  # noqa: E402

TensorsOf = Callable[[Decoder], dict[str, StoredTensor]]


def logits_of(decoder: Decoder, tokens: list[int]) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        double = decoder.double()
        found = double.logits(double.hidden(torch.tensor([tokens]), dtype=torch.float64))
    decoder.float()
    return found[0].numpy().astype(np.float64)


def close(found: Any, expected: Any) -> None:
    """Within what float32 logits and angles can differ."""
    error = np.abs(found - expected).max() / expected.std()
    assert error < 1e-5, error


def test_a_program_computes_what_the_decoder_does(
    decoder: Decoder, tensors_of: TensorsOf, tokens: list[int]
) -> None:
    program = compiled(decoder, tensors_of(decoder))
    machine = Interpreter(program, reading(decoder.spec, len(tokens)))
    expected = logits_of(decoder, tokens)
    close(machine.run(tokens, list(range(len(tokens)))), expected)


def test_a_sequence_in_pieces_is_the_sequence_at_once(
    decoder: Decoder, tensors_of: TensorsOf, tokens: list[int]
) -> None:
    program = compiled(decoder, tensors_of(decoder))
    machine = Interpreter(program, reading(decoder.spec, len(tokens)))
    expected = logits_of(decoder, tokens)
    begin = 0
    for size in (1, 7, 1, 1, 20, 2, len(tokens)):
        piece = tokens[begin : begin + size]
        close(machine.run(piece, [len(piece) - 1]), expected[[begin + len(piece) - 1]])
        begin += len(piece)


def test_an_end_of_text_within_a_patch(make: Any, tensors_of: TensorsOf) -> None:
    decoder = make({"input": {"kind": "patches", "width": 24, "hidden": 40, "size": 6}})
    tokens = [257, *b"two words; ab", 257, *b"c d"]
    program = compiled(decoder, tensors_of(decoder))
    machine = Interpreter(program, reading(decoder.spec, len(tokens)))
    close(machine.run(tokens, list(range(len(tokens)))), logits_of(decoder, tokens))


def test_each_tensor_is_one_weight_however_often_it_is_used(
    decoder: Decoder, tensors_of: TensorsOf
) -> None:
    tensors = tensors_of(decoder)
    program = compiled(decoder, tensors)
    named = {name: w for name, w in ((w.name, w) for w in program.weights) if name != "slopes"}
    assert len(named) + ("slopes" in {w.name for w in program.weights}) == len(program.weights)
    used = {w for op in program.ops for w in op.weights if w >= 0}
    assert used == set(range(len(program.weights)))
    assert sum(w.data.nbytes for w in named.values()) == sum(t.data.size for t in tensors.values())
    spec = decoder.spec
    assert len(program.slots) == spec.uses
    parameters = shapes.parameters(spec).unique
    assert sum(w.data.nbytes // 4 for w in named.values()) == parameters


def test_stacked_tensors_are_cut_without_a_copy(make: Any, tensors_of: TensorsOf) -> None:
    tensors = tensors_of(make({}))
    program = compiled(make({}), tensors)
    whole = tensors["blocks.0.feedforward.gate_up.weight"].data
    parts = [w for w in program.weights if w.name.startswith("blocks.0.feedforward.gate_up")]
    assert [w.rows for w in parts] == [48, 48]
    assert all(np.shares_memory(w.data, whole) for w in parts)


def test_stacked_tensors_may_come_in_parts(
    decoder: Decoder, tensors_of: TensorsOf, tokens: list[int]
) -> None:
    spec, apart = decoder.spec, {}
    heads, keys = spec.attention.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    for name, tensor in tensors_of(decoder).items():
        owner, _, leaf = name.rpartition(".")
        owner, _, stem = owner.rpartition(".")
        hidden = (tensor.cols if leaf == "bias" else tensor.rows) // 2
        cut = {"qkv": ("qkv", (heads, keys, keys)), "gate_up": (("gate", "up"), (hidden, hidden))}
        if stem not in cut or name.startswith("slots."):
            apart[name] = tensor
            continue
        at = 0
        for part, n in zip(*cut[stem], strict=True):
            numbers = n if leaf == "bias" else n * tensor.cols
            data = tensor.data[at : at + 4 * numbers]
            rows, cols = (1, n) if leaf == "bias" else (n, tensor.cols)
            apart[f"{owner}.{part}.{leaf}"] = StoredTensor(0, rows, cols, data)
            at += 4 * numbers
    program = compiled(decoder, apart)
    machine = Interpreter(program, reading(spec, len(tokens)))
    close(machine.run(tokens, list(range(len(tokens)))), logits_of(decoder, tokens))


def test_what_is_missing_or_misshapen_is_named(make: Any, tensors_of: TensorsOf) -> None:
    decoder = make({})
    tensors = tensors_of(decoder)
    without = {n: t for n, t in tensors.items() if n != "blocks.1.feedforward.down.weight"}
    with pytest.raises(CorruptFileError, match="no tensor blocks.1.feedforward.down.weight"):
        compiled(decoder, without)
    norm = tensors["norm.weight"]
    tensors["norm.weight"] = StoredTensor(0, 1, 31, norm.data[:-4])
    with pytest.raises(CorruptFileError, match="norm.weight has 1 rows of 31; the spec has 1 of"):
        compiled(decoder, tensors)


def test_what_the_engine_does_not_run_is_refused() -> None:
    with pytest.raises(FlyweightError, match=r"encoder-decoder.*--engine torch"):
        compile_model(catalog.get("flan-t5-small").spec, {})


def test_every_decoder_of_the_zoo_is_covered() -> None:
    left = [name for name in catalog.names() if uncovered(catalog.get(name).spec) is not None]
    assert all(catalog.get(name).spec.encoder is not None for name in left)


# Memory


@given(st.data())
def test_buffers_alive_together_lie_apart(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    program = Program(vocab_size=1, context=1)
    for i in range(count):
        rows = data.draw(st.sampled_from(list(Rows)))
        program.buffers.append(Buffer(str(i), rows, data.draw(st.integers(1, 100))))
    names = st.lists(st.integers(0, count - 1), max_size=3).map(tuple)
    for _ in range(data.draw(st.integers(1, 12))):
        program.ops.append(Op(Kind.ADD, Rows.TOKENS, data.draw(names), data.draw(names)))
    plan(program)
    lives: dict[int, list[int]] = {}
    for at, op in enumerate(program.ops):
        for b in (*op.sources, *op.targets):
            lives.setdefault(b, []).append(at)
    for one in lives:
        buffer = program.buffers[one]
        assert buffer.offset % 16 == 0
        assert buffer.offset + buffer.width <= arena(program, buffer.rows)
        for other in lives:
            that = program.buffers[other]
            together = lives[one][0] <= lives[other][-1] and lives[other][0] <= lives[one][-1]
            if one != other and buffer.rows == that.rows and together:
                begin, end = that.offset, that.offset + that.width
                assert buffer.offset + buffer.width <= begin or end <= buffer.offset


def test_memory_does_not_grow_with_depth(make: Any, tensors_of: TensorsOf) -> None:
    def needed(depth: int) -> int:
        decoder = make({"depth": depth})
        return arena(compiled(decoder, tensors_of(decoder)), Rows.TOKENS)

    assert needed(2) == needed(7)


def test_the_zoo_compiles_whole_from_shapes_alone() -> None:
    """Every entry at its true size, its tensors one byte that stands for all of them."""
    for name in catalog.names():
        spec: ModelSpec = catalog.get(name).spec
        if uncovered(spec) is not None:
            continue
        tensors = {}
        for tensor in shapes.tensors(spec):
            rows = 1 if len(tensor.shape) == 1 else tensor.shape[0]
            data = np.broadcast_to(np.zeros(1, np.uint8), (4 * tensor.size,))
            tensors[tensor.name] = StoredTensor(0, rows, tensor.shape[-1], data)
        slots = spec.input.slots if isinstance(spec.input, SlotInput) else 0
        spelled = np.zeros((spec.vocab_size, slots), np.int32) if slots else None
        program = compile_model(spec, tensors, spelled)
        assert program.buffers[program.logits].width == spec.vocab_size
        assert sum(w.rows * w.cols for w in program.weights if w.name != "slopes") == (
            shapes.parameters(spec).unique
        )
