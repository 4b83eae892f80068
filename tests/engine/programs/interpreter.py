"""A slow interpreter of programs in float64: what a program means, one sequence at a time.

It says nothing about kernels. Held against the torch model it checks the compile step; held
against the kernels it is their oracle.
"""

from __future__ import annotations

from collections.abc import Callable
from math import erf, pi, sqrt

import numpy as np
from numpy.typing import NDArray

from flyweight.engine.plan import arena
from flyweight.engine.positions import Reading
from flyweight.engine.program import Activation, Index, Kind, Op, Program, Rows, Weight
from flyweight.text.ngrams import match_tokens, ngram_rows

Floats = NDArray[np.float64]
EOT, NEWLINE = 257, 10


def plain(weight: Weight) -> Floats:
    """F32, F16 and BF16 as float64, (rows, cols)."""
    shape = (weight.rows, weight.cols)
    if weight.format == 30:
        bits = np.asarray(weight.data).view(np.uint16).astype(np.uint32) << 16
        return bits.view(np.float32).astype(np.float64).reshape(shape)
    dtype = {0: np.float32, 1: np.float16}[weight.format]
    return np.asarray(weight.data).view(dtype).astype(np.float64).reshape(shape)


def activate(kind: int, x: Floats) -> Floats:
    match Activation(kind):
        case Activation.SILU:
            return x / (1 + np.exp(-x))
        case Activation.GELU_TANH:
            return 0.5 * x * (1 + np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))
        case Activation.GELU_ERF:
            return 0.5 * x * (1 + np.vectorize(erf, otypes=[float])(x / sqrt(2)))
        case Activation.RELU2:
            return np.maximum(x, 0) ** 2
        case Activation.RELU:
            return np.maximum(x, 0)
        case _:
            return x


class Interpreter:
    """One sequence: what it remembers between calls, and ``run``."""

    def __init__(
        self,
        program: Program,
        reading: Reading,
        dequantise: Callable[[Weight], Floats] = plain,
    ) -> None:
        self.program, self.reading = program, reading
        self.weights = [dequantise(weight) for weight in program.weights]
        self.tokens: list[int] = []
        self.keys: list[list[Floats]] = [[] for _ in program.slots]
        self.values: list[list[Floats]] = [[] for _ in program.slots]
        spelling = program.spelling
        self.slots = 0 if spelling is None else spelling.symbols.shape[1]
        pool = next((op for op in program.ops if op.kind == Kind.POOL), None)
        self.patching = None if pool is None else (bool(pool.ints[0]), pool.ints[1])
        self.offset = -1
        self.open: list[Floats] = []
        self.last: Floats | None = None
        self.patches = 0

    def run(self, tokens: list[int], wanted: list[int]) -> Floats:
        """Reads ``tokens`` and returns the logits of those whose places are ``wanted``."""
        self.first = len(self.tokens)
        self.tokens += tokens
        self.new, self.wanted = len(tokens), wanted
        self.cut_patches()
        counts = {
            Rows.TOKENS: self.new,
            Rows.PATCHES: int(sum(self.ends)),
            Rows.WANTED: len(wanted),
            Rows.SYMBOLS: self.slots * self.new,
            Rows.SPELLED: self.slots * len(wanted),
        }
        self.first_patch = self.patches
        self.patches += counts[Rows.PATCHES]
        # The arenas as planned, filled with what no result may depend on.
        arenas = {r: np.full((n, arena(self.program, r)), np.nan) for r, n in counts.items()}
        self.buffers: list[Floats] = []
        for b in self.program.buffers:
            self.buffers.append(arenas[b.rows][:, b.offset : b.offset + b.width])
        for op in self.program.ops:
            getattr(self, Kind(op.kind).name.lower())(op)
        return self.buffers[self.program.logits].copy()

    def cut_patches(self) -> None:
        """Where patches end among the new tokens, and each one's place in its patch."""
        self.ends, self.offsets = [False] * self.new, [0] * self.new
        if self.patching is None:
            return
        word, size = self.patching
        for i in range(self.new):
            at = self.first + i
            token = self.tokens[at]
            before = self.tokens[at - 1] if at else None
            self.offset = 0 if token == EOT else self.offset + 1
            end = token == EOT or self.offset == size - 1
            if word and before is not None:
                end |= not letter(token) and letter(before)
                end |= token == NEWLINE and before != NEWLINE
            self.ends[i], self.offsets[i] = end, self.offset
            if end:
                self.offset = -1

    def positions(self, rows: int) -> NDArray[np.int64]:
        first = self.first if rows == Rows.TOKENS else self.first_patch
        return first + np.arange(self.new if rows == Rows.TOKENS else sum(self.ends))

    def index(self, kind: int, rows: int) -> NDArray[np.int64]:
        if kind == Index.TOKEN:
            return np.array(self.tokens[self.first :])
        if kind == Index.SYMBOL:
            return self.program.spelling.symbols[self.tokens[self.first :]].reshape(-1)
        if rows in (Rows.SYMBOLS, Rows.SPELLED):
            tokens = self.new if rows == Rows.SYMBOLS else len(self.wanted)
            return np.tile(np.arange(self.slots), tokens)
        return self.positions(Rows.TOKENS) if kind == Index.POSITION else np.array(self.offsets)

    def s(self, op: Op, i: int = 0) -> Floats:
        return self.buffers[op.sources[i]]

    def t(self, op: Op) -> Floats:
        return self.buffers[op.targets[0]]

    def w(self, op: Op, i: int) -> Floats | None:
        return None if op.weights[i] < 0 else self.weights[op.weights[i]]

    def embed(self, op: Op) -> None:
        rows = op.floats[0] * self.w(op, 0)[self.index(op.ints[0], op.rows)]
        self.t(op)[:] = self.t(op) + rows if op.ints[1] else rows

    def history(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        tokens = np.array([self.tokens])
        return tokens, np.zeros_like(tokens)

    def ngrams(self, op: Op) -> None:
        tokens, documents = self.history()
        rows = ngram_rows(tokens, op.ints[1:], op.ints[0], documents)[0, self.first :]
        self.t(op)[:] = self.w(op, 0)[rows].reshape(self.new, -1)

    def matches(self, op: Op) -> None:
        tokens, documents = self.history()
        lengths, none = op.ints[1:], op.ints[0]
        found = match_tokens(tokens, lengths, none, documents)[0, self.first :]
        for j in range(len(lengths)):
            self.t(op)[:] += self.w(op, 0)[j * (none + 1) + found[:, j]]

    def norm(self, op: Op) -> None:
        layer, size, begin, total = op.ints
        x = self.s(op)[:, begin : begin + total].reshape(-1, total // size, size).copy()
        if layer:
            x -= x.mean(-1, keepdims=True)
        x /= np.sqrt((x**2).mean(-1, keepdims=True) + op.floats[0])
        for i, apply in ((0, np.multiply), (1, np.add)):
            if (w := self.w(op, i)) is not None:
                x = apply(x, w[0])
        self.t(op)[:, begin : begin + total] = x.reshape(-1, total)

    def product(self, op: Op) -> None:
        add, activation, n, *offsets = op.ints
        for j in range(n):
            w, b = self.w(op, j), self.w(op, n + j)
            out = self.s(op) @ w.T + (0 if b is None else b[0])
            out = op.floats[0] * activate(activation, out)
            target = self.t(op)[:, offsets[j] : offsets[j] + len(w)]
            target[:] = target + out if add else out

    def gated(self, op: Op) -> None:
        gate, up = (self.s(op) @ self.w(op, i).T for i in (0, 1))
        gate = gate if self.w(op, 2) is None else gate + self.w(op, 2)[0]
        up = up if self.w(op, 3) is None else up + self.w(op, 3)[0]
        self.t(op)[:] = activate(op.ints[0], gate) * up

    def activate(self, op: Op) -> None:
        out = activate(op.ints[0], self.s(op))
        self.t(op)[:] = out * self.s(op, 1) if len(op.sources) > 1 else out

    def add(self, op: Op) -> None:
        self.t(op)[:] += op.floats[0] * self.s(op)

    def scale(self, op: Op) -> None:
        self.t(op)[:] = op.floats[0] * self.s(op)

    def rotate(self, op: Op) -> None:
        begin, heads, dim, turning, interleaved = op.ints
        angles = self.positions(op.rows).astype(np.float32)[:, None] * self.reading.frequencies
        cos, sin = (f(angles.astype(np.float64)) * self.reading.gain for f in (np.cos, np.sin))
        half = turning // 2
        for head in range(heads):
            x = self.t(op)[:, begin + head * dim : begin + head * dim + turning]
            a, b = (x[:, ::2], x[:, 1::2]) if interleaved else (x[:, :half], x[:, half:])
            a[:], b[:] = a * cos - b * sin, b * cos + a * sin

    def store(self, op: Op) -> None:
        slot, keys, values, kv_heads, dim = op.ints
        for row in self.s(op):
            for kept, at in ((self.keys, keys), (self.values, values)):
                kept[slot].append(row[at : at + kv_heads * dim].reshape(kv_heads, dim).copy())

    def attention(self, op: Op) -> None:
        slot, begin, heads, kv_heads, dim, window = op.ints
        if not self.keys[slot]:
            return
        keys, values = np.array(self.keys[slot]), np.array(self.values[slot])
        slopes = self.w(op, 0)
        for row, position in enumerate(self.positions(op.rows)):
            first = max(0, position + 1 - window) if window else 0
            distance = position - np.arange(first, position + 1)
            for head in range(heads):
                at, lent = begin + head * dim, head // (heads // kv_heads)
                q = self.s(op)[row, at : at + dim]
                scores = op.floats[0] * keys[first : position + 1, lent] @ q
                if slopes is not None:
                    scores -= slopes[0, head] / self.reading.divisor * distance
                p = np.exp(scores - scores.max())
                out = (p / p.sum()) @ values[first : position + 1, lent]
                self.t(op)[row, head * dim : (head + 1) * dim] = out

    def select(self, op: Op) -> None:
        self.t(op)[:] = self.s(op)[self.wanted]

    def pool(self, op: Op) -> None:
        made = []
        for i, row in enumerate(self.s(op)):
            if self.tokens[self.first + i] == EOT:
                self.open = []
            self.open.append(row.copy())
            if self.ends[i]:
                made.append(np.concatenate((np.mean(self.open, axis=0), row)))
                self.open = []
        if made:
            self.t(op)[:] = made

    def spread(self, op: Op) -> None:
        rows = iter(self.s(op))
        for i in range(self.new):
            if self.ends[i]:
                self.last = next(rows).copy()
            if self.last is not None:
                self.t(op)[i] += self.last

    def real(self, token: int) -> int:
        """How many slots of a token count."""
        spelling = self.program.spelling
        return max(1, [*spelling.symbols[token], spelling.pad].index(spelling.pad))

    def within(self, op: Op) -> None:
        heads, dim, masked = op.ints
        tokens = self.tokens[self.first :] if op.rows == Rows.SYMBOLS else self.wanted
        for i, token in enumerate(tokens):
            own = slice(i * self.slots, (i + 1) * self.slots)
            seen = self.real(token) if masked else self.slots
            q, k, v = (
                self.s(op)[own, : 3 * heads * dim].reshape(self.slots, 3, heads, dim).swapaxes(0, 1)
            )
            scores = op.floats[0] * np.einsum("qhd,khd->hqk", q, k[:seen])
            p = np.exp(scores - scores.max(-1, keepdims=True))
            p /= p.sum(-1, keepdims=True)
            self.t(op)[own] = np.einsum("hqk,khd->qhd", p, v[:seen]).reshape(self.slots, -1)

    def mean(self, op: Op) -> None:
        rows = self.s(op).reshape(self.new, self.slots, -1)
        for i, token in enumerate(self.tokens[self.first :]):
            self.t(op)[i] = rows[i, : self.real(token)].mean(0)

    def cut(self, op: Op) -> None:
        self.t(op)[:] = self.s(op).reshape(len(self.wanted) * self.slots, -1)

    def logs(self, op: Op) -> None:
        x = self.s(op)
        top = x.max(-1, keepdims=True)
        self.t(op)[:] = x - top - np.log(np.exp(x - top).sum(-1, keepdims=True))

    def spell(self, op: Op) -> None:
        spelling, logs = self.program.spelling, self.s(op).reshape(len(self.wanted), self.slots, -1)
        for token, symbols in enumerate(spelling.symbols):
            end = [*symbols, spelling.pad].index(spelling.pad) + 1
            self.t(op)[:, token] = sum(logs[:, s, symbol] for s, symbol in enumerate(symbols[:end]))


def letter(token: int) -> bool:
    """Letters, digits, the underscore, and the bytes of characters beyond ASCII."""
    return 128 <= token < 256 or (token < 128 and (chr(token).isalnum() or token == ord("_")))
