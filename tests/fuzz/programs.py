"""Programs as the bytes that csrc/fuzz/program.cpp reads, and the seeds of `make fuzz`.

A seed is the compiled program of a small model; weights are written by their shapes alone.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from flyweight.engine.compile import compile_model
from flyweight.engine.program import Buffer, Kind, Op, Program, Rows, Slot, Spelling, Weight
from flyweight.files.formats import NUMBERED
from flyweight.files.weights import RandomTensors
from flyweight.spec.model import ModelSpec

# Numbers that do not fit 32 bits, by what stands for them.
WIDE = {2**31 - 1: 2**40, -(2**31): -(2**62)}
KINDS = ("matrix", "table", "vector")
_MOST_WEIGHT = 1 << 18
_TINY: dict[str, Any] = {
    "vocab_size": 24,
    "width": 16,
    "depth": 2,
    "context": 300,
    "attention": {"heads": 4, "kv_heads": 2},
    "feedforward": {"kind": "swiglu", "hidden": 20},
}
SEEDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {
        "position": {"kind": "learned"},
        "norm": {"kind": "layer", "bias": True},
        "feedforward": {"kind": "gelu", "hidden": 20, "bias": True},
        "attention": {"heads": 4, "bias": True},
        "tie_embeddings": True,
    },
    "alibi": {"position": {"kind": "alibi"}, "attention": {"heads": 4, "window": 5}},
    "normed": {"attention": {"heads": 4, "kv_heads": 2, "qk_norm": True, "qk_gain": True}},
    "shared": {
        "depth": 3,
        "share": {"feedforward": "interior", "lora_rank": 2},
        "scale": {"logits": 0.5, "residual": 0.7, "embedding": 3.0},
    },
    "repeated": {"share": {"block": "adjacent", "repeat": 2}},
    "ordered": {},
    "patches": {
        "vocab_size": 258,
        "input": {"kind": "patches", "width": 8, "hidden": 12, "size": 3},
        "ngrams": {"orders": [2, 3], "rows": 8, "dim": 4},
        "matches": {"lengths": [1, 3]},
    },
    "slots": {
        "input": {
            **{"kind": "slots", "slots": 3, "width": 8, "hidden": 12, "heads": 2},
            **{"front_depth": 1, "decoder_depth": 1},
        },
        "scale": {"embedding": 3.0},
    },
}


def _number(value: int) -> bytes:
    short = next((s for s, wide in WIDE.items() if wide == value), value)
    return struct.pack("<i", short)


def _listed(values: Iterable[Any], form: str | Callable[[Any], bytes]) -> bytes:
    write = (lambda v: struct.pack(form, v)) if isinstance(form, str) else form
    parts = [write(value) for value in values]
    return bytes([len(parts)]) + b"".join(parts)


def encode(program: Program, threads: int = 1) -> bytes:
    """The bytes of a program."""
    numbers = (program.vocab_size, program.context, program.frequencies)
    made = bytes([threads - 1]) + b"".join(map(_number, numbers))
    made += struct.pack("<b", program.logits)
    spelling = program.spelling
    slots = 0 if spelling is None else spelling.symbols.shape[1]
    made += struct.pack("<bhb", slots, spelling.pad if spelling else 0, 0)
    if spelling is not None:
        made += spelling.symbols.astype("<i2").tobytes()
    made += _listed(
        program.buffers,
        lambda b: struct.pack("<b", b.rows) + _number(b.width) + _number(b.offset),
    )
    made += _listed(
        program.weights,
        lambda w: (
            bytes([KINDS.index(w.kind), w.format])
            + _number(w.rows)
            + _number(w.cols)
            + bytes([0, 0 if w.order is None else w.order[1]])
        ),
    )
    made += _listed(
        program.slots,
        lambda s: struct.pack("<b", s.rows) + _number(s.kv_heads) + _number(s.head_dim),
    )
    return made + _listed(program.ops, _op)


def _op(op: Op) -> bytes:
    lists = (op.sources, op.targets, op.weights)
    made = struct.pack("<bb", op.kind, op.rows) + b"".join(_listed(each, "<b") for each in lists)
    return made + _listed(op.ints, _number) + _listed(op.floats, "<f")


class _Input:
    """csrc/fuzz/program.cpp's: zeros where the input is over."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, form: str) -> Any:
        size = struct.calcsize(form)
        part = self.data[self.at : self.at + size].ljust(size, b"\0")
        self.at = min(len(self.data), self.at + size)
        return struct.unpack(form, part)[0]

    def number(self) -> int:
        value: int = self.take("<i")
        return WIDE.get(value, value)

    def list(self, take: Callable[[], Any]) -> tuple[Any, ...]:
        return tuple(take() for _ in range(self.take("B") % 80))


def decode(data: bytes) -> tuple[Program, int]:
    """The program that the bytes stand for, and its threads: the fuzzer's, for its findings."""
    i = _Input(data)
    threads = 1 + i.take("B") % 3
    p = Program(i.number(), i.number(), frequencies=i.number(), logits=i.take("b"))
    slots, pad = i.take("b"), i.take("<h")
    count = p.vocab_size * slots + i.take("b")
    if 0 < p.vocab_size <= 1 << 12 and count > 0:
        symbols = np.array([i.take("<h") for _ in range(count)], dtype=np.int32)
        if slots > 0 and count % slots == 0:
            p.spelling = Spelling(symbols.reshape(-1, slots), pad)
    for _ in range(i.take("B") % 64):
        p.buffers.append(Buffer("b", i.take("b"), i.number(), i.number()))
    for _ in range(i.take("B") % 64):
        p.weights.append(_weight(i))
    for _ in range(i.take("B") % 64):
        p.slots.append(Slot(i.take("b"), i.number(), i.number()))
    for _ in range(i.take("B") % 64):
        kind, rows = i.take("b"), i.take("b")
        places = [i.list(lambda: i.take("b")) for _ in range(3)]
        numbers = i.list(i.number), i.list(lambda: i.take("<f"))
        p.ops.append(Op(kind, rows, *places, *numbers))
    return p, threads


def _weight(i: _Input) -> Weight:
    kind, form = KINDS[i.take("B") % 3], i.take("B")
    rows, cols, more, step = i.number(), i.number(), i.take("b"), i.take("b")
    size, order = 0, None
    known = NUMBERED.get(form)
    if known and rows > 0 and cols > 0 and rows * cols <= _MOST_WEIGHT:
        size = max(0, rows * (cols // known.block) * known.size + more)
        if step:
            # C's remainder is negative where the step is.
            order = np.arange(rows + (step % 8 == 7 and step > 0)) * abs(step) % rows
            if step < 0:
                order[-1] = i.number()
    data = (np.arange(size) * 37 % 61).astype(np.uint8)
    return Weight("w", kind, form, rows, cols, data, order)


def seeds() -> dict[str, Program]:
    """Small programs which together have every operation."""
    made = {}
    for name, values in SEEDS.items():
        spec = ModelSpec.parse({**_TINY, **values})
        spelled = None
        if spec.input.kind == "slots":
            spelled = np.full((spec.vocab_size, spec.input.slots), 256, np.int32)
            spelled[:, 0] = np.arange(spec.vocab_size) + 97
            spelled[::2, 1] = 257
        made[name] = compile_model(spec, RandomTensors(spec), spelled)
    weights = made["ordered"].weights
    weights[:] = [
        replace(w, order=np.arange(w.rows) * 5 % w.rows) if w.kind == "matrix" else w
        for w in weights
    ]
    assert {op.kind for program in made.values() for op in program.ops} >= set(Kind) - {Kind.ADD}
    assert {b.rows for program in made.values() for b in program.buffers} == set(Rows)
    return made


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, program in seeds().items():
        for threads in (1, 2, 3):
            (folder / f"{name}-{threads}").write_bytes(encode(program, threads))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
