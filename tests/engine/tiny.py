"""Tiny programs: one operation between an embedding and the logits, or a whole small model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flyweight.engine.program import Buffer, Kind, Op, Program, Rows, Slot, Weight

Array = NDArray[Any]
native = pytest.importorskip(
    "flyweight.engine._native", reason="the engine's native module is not built"
)


class Tiny:
    """A program that is written down; every buffer has a place of its own."""

    def __init__(self, vocab: int, context: int = 64, frequencies: int = 0) -> None:
        self.program = Program(vocab, context, frequencies=frequencies)
        self._end = dict.fromkeys(Rows, 0)

    def buffer(self, width: int, rows: Rows = Rows.TOKENS) -> int:
        end = self._end[rows]
        self._end[rows] = end + -(-width // 16) * 16
        self.program.buffers.append(Buffer(f"b{len(self.program.buffers)}", rows, width, end))
        return len(self.program.buffers) - 1

    def weight(self, values: Array, kind: str = "matrix", format_: int = 0) -> int:
        """A float32 matrix (rows, cols) or vector; or one's bytes, with its format."""
        values = np.ascontiguousarray(np.atleast_2d(values), dtype=np.float32)
        rows, cols = values.shape
        data = values.view(np.uint8).reshape(-1)
        name = f"w{len(self.program.weights)}"
        self.program.weights.append(Weight(name, kind, format_, rows, cols, data))
        return len(self.program.weights) - 1

    def op(
        self,
        kind: Kind,
        sources: Sequence[int] = (),
        targets: Sequence[int] = (),
        weights: Sequence[int] = (),
        ints: Sequence[int] = (),
        floats: Sequence[float] = (),
        rows: Rows = Rows.TOKENS,
    ) -> None:
        lists = (tuple(sources), tuple(targets), tuple(weights), tuple(ints), tuple(floats))
        self.program.ops.append(Op(kind, rows, *lists))

    def slot(self, kv_heads: int, head_dim: int, rows: Rows = Rows.TOKENS) -> int:
        self.program.slots.append(Slot(rows, kv_heads, head_dim))
        return len(self.program.slots) - 1

    def embed(self, table: Array, **kind: str) -> int:
        """A buffer with the tokens' rows of a table."""
        x = self.buffer(table.shape[1])
        self.op(
            Kind.EMBED, (), (x,), (self.weight(table, kind.get("kind", "table")),), (0, 0), (1.0,)
        )
        return x

    def logits(self, x: int) -> None:
        """The rows of a buffer, as wide as the vocabulary, become the logits."""
        self.program.logits = self.buffer(self.program.vocab_size, Rows.WANTED)
        self.op(Kind.SELECT, (x,), (self.program.logits,), rows=Rows.WANTED)

    def executor(self, threads: int = 1, isa: str = "", **more: Any) -> Any:
        return native.Executor(self.program, threads, isa, **more)

    def run(
        self,
        tokens: Sequence[int] | Array,
        threads: int = 1,
        isa: str = "",
        chunks: Sequence[int] = (),
        begin: Sequence[Any] = (),
    ) -> Array:
        """The logits of every token, fed in chunks (the last one takes what is left)."""
        executor = self.executor(threads, isa)
        sequence = executor.begin(*begin)
        done, parts = 0, []
        for count in (*chunks, len(tokens)):
            some = [int(t) for t in tokens[done : done + count]]
            if some:
                parts.append(executor.feed([sequence], [some], "all"))
            done += count
        return np.concatenate(parts)


def one_op(
    op: tuple[Kind, Sequence[int], Sequence[int], Sequence[float]],
    tables: Sequence[Array],
    weights: Sequence[tuple[Array, str] | None] = (),
    width: int | None = None,
    start: Array | None = None,
    frequencies: int = 0,
) -> Tiny:
    """kind(tables' rows) of every token as logits; the target begins as ``start``'s rows."""
    kind, _, ints, floats = op
    vocab = len(tables[0])
    tiny = Tiny(vocab, 2048, frequencies)
    sources = [tiny.embed(table) for table in tables]
    if start is not None:
        target = tiny.embed(start)
    else:
        target = tiny.buffer(width or vocab)
    places = [-1 if w is None else tiny.weight(*w) for w in weights]
    tiny.op(kind, sources, (target,), places, ints, floats)
    tiny.logits(target)
    return tiny


def small_model(
    rng: np.random.Generator,
    *,
    vocab: int = 40,
    width: int = 32,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 8,
    hidden: int = 48,
    depth: int = 2,
    context: int = 600,
) -> Tiny:
    """A small Llama of random weights, its queries and keys normalised by heads."""
    tiny = Tiny(vocab, context, head_dim // 2)

    def matrix(rows: int, cols: int) -> int:
        return tiny.weight(rng.standard_normal((rows, cols)) / np.sqrt(cols))

    def vector(n: int) -> int:
        return tiny.weight(1 + 0.1 * rng.standard_normal(n), "vector")

    table = matrix(vocab, width)
    x, t = tiny.buffer(width), tiny.buffer(width)
    inner = (heads + 2 * kv_heads) * head_dim
    q, a, g = tiny.buffer(inner), tiny.buffer(heads * head_dim), tiny.buffer(hidden)
    keys = heads * head_dim
    values = keys + kv_heads * head_dim
    tiny.op(Kind.EMBED, (), (x,), (table,), (0, 0), (1.0,))
    for _ in range(depth):
        tiny.op(Kind.NORM, (x,), (t,), (vector(width), -1), (0, width, 0, width), (1e-5,))
        tiny.op(Kind.PRODUCT, (t,), (q,), (matrix(inner, width), -1), (0, 0, 1, 0), (1.0,))
        for column, count in ((0, heads), (keys, kv_heads)):
            ints = (0, head_dim, column, count * head_dim)
            tiny.op(Kind.NORM, (q,), (q,), (vector(head_dim), -1), ints, (1e-5,))
            tiny.op(Kind.ROTATE, (q,), (q,), (), (column, count, head_dim, head_dim, 0))
        slot = tiny.slot(kv_heads, head_dim)
        tiny.op(Kind.STORE, (q,), (), (), (slot, keys, values, kv_heads, head_dim))
        ints = (slot, 0, heads, kv_heads, head_dim, 0)
        tiny.op(Kind.ATTENTION, (q,), (a,), (-1,), ints, (head_dim**-0.5,))
        output = matrix(width, heads * head_dim)
        tiny.op(Kind.PRODUCT, (a,), (x,), (output, -1), (1, 0, 1, 0), (1.0,))
        tiny.op(Kind.NORM, (x,), (t,), (vector(width), -1), (0, width, 0, width), (1e-5,))
        up = (matrix(hidden, width), matrix(hidden, width), -1, -1)
        tiny.op(Kind.GATED, (t,), (g,), up, (1,))
        tiny.op(Kind.PRODUCT, (g,), (x,), (matrix(width, hidden), -1), (1, 0, 1, 0), (1.0,))
    s, n = tiny.buffer(width, Rows.WANTED), tiny.buffer(width, Rows.WANTED)
    tiny.program.logits = tiny.buffer(vocab, Rows.WANTED)
    tiny.op(Kind.SELECT, (x,), (s,), rows=Rows.WANTED)
    norm = (0, width, 0, width)
    tiny.op(Kind.NORM, (s,), (n,), (vector(width), -1), norm, (1e-5,), Rows.WANTED)
    head = (0, 0, 1, 0)
    tiny.op(Kind.PRODUCT, (n,), (tiny.program.logits,), (table, -1), head, (1.0,), Rows.WANTED)
    return tiny


def frequencies(head_dim: int) -> list[float]:
    return (10000.0 ** (-np.arange(0, head_dim, 2) / head_dim)).astype(np.float32).tolist()
