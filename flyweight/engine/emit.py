"""Building a program: buffers, weights by identity, and the few ways in which operations are put.

A tensor that many operations name becomes one Weight. Stacked tensors are cut into row views
without a copy, and may as well come in parts (a GGUF file has queries, keys and values apart).
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from flyweight.engine.program import Activation, Buffer, Kind, Op, Program, Rows, Slot, Weight
from flyweight.spec.errors import CorruptFileError
from flyweight.spec.model import FeedForward, ModelSpec, Norm

if TYPE_CHECKING:
    from flyweight.engine.program import Flat, Order

# ggml's number of float32.
F32 = 0
ACTIVATIONS = {
    "swiglu": Activation.SILU,
    "geglu": Activation.GELU_TANH,
    "gelu": Activation.GELU_TANH,
    "gelu-exact": Activation.GELU_ERF,
    "relu2": Activation.RELU2,
    "relu": Activation.RELU,
}


class Stored(Protocol):
    """A tensor as it lies in memory or in a mapped file; vectors have one row.

    ``format``: ggml's number of the type. ``data``: flat uint8, row after row. ``order``: row r of
    a matrix is row ``order[r]`` of the data; None: row r.
    """

    @property
    def format(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def data(self) -> Flat: ...
    @property
    def order(self) -> Order | None: ...


Tensors = Mapping[str, Stored]


class Emitter:
    """A program in the making. Buffers and weights go by their places in it."""

    def __init__(self, spec: ModelSpec, tensors: Tensors) -> None:
        self.spec, self.tensors = spec, tensors
        self.program = Program(vocab_size=spec.vocab_size, context=spec.context)
        self._weights: dict[str, int] = {}

    # What operations name

    def buffer(self, name: str, rows: Rows, width: int) -> int:
        self.program.buffers.append(Buffer(name, rows, width))
        return len(self.program.buffers) - 1

    def slot(self, rows: Rows) -> int:
        self.program.slots.append(Slot(rows, self.spec.kv_heads, self.spec.head_dim))
        return len(self.program.slots) - 1

    def width(self, buffer: int) -> int:
        return self.program.buffers[buffer].width

    def matrix(self, name: str, rows: int, cols: int) -> int:
        return self._weight(name, "matrix", rows, cols)

    def table(self, name: str, rows: int, cols: int) -> int:
        return self._weight(name, "table", rows, cols)

    def vector(self, name: str, size: int) -> int:
        return self._weight(name, "vector", 1, size)

    def constant(self, name: str, values: array[float]) -> int:
        """A vector of float32 that is computed here, not read."""
        data = memoryview(values).cast("B")
        return self._add(name, Weight(name, "vector", F32, 1, len(values), data))

    def parts(
        self, owner: str, stacked: str, names: Sequence[str], rows: Sequence[int], cols: int
    ) -> list[int]:
        """Matrices of ``rows`` rows each: stored apart as ``owner.NAME.weight``, or one below the
        other as ``owner.stacked.weight``."""
        whole = f"{owner}.{stacked}.weight"
        if whole not in self.tensors:
            given = zip(names, rows, strict=True)
            return [self.matrix(f"{owner}.{name}.weight", n, cols) for name, n in given]
        return self._cut(whole, "matrix", rows, sum(rows), cols)

    def part_biases(
        self, owner: str, stacked: str, names: Sequence[str], sizes: Sequence[int]
    ) -> list[int]:
        """The biases of ``parts``."""
        whole = f"{owner}.{stacked}.bias"
        if whole not in self.tensors:
            given = zip(names, sizes, strict=True)
            return [self.vector(f"{owner}.{name}.bias", n) for name, n in given]
        return self._cut(whole, "vector", sizes, 1, sum(sizes))

    def _cut(self, whole: str, kind: str, sizes: Sequence[int], rows: int, cols: int) -> list[int]:
        """Views of consecutive rows of a matrix, or of consecutive numbers of a vector."""
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        names = [f"{whole}[{end - n}:{end}]" for end, n in zip(ends, sizes, strict=True)]
        if names[0] not in self._weights:
            found = self._stored(whole, rows, cols)
            assert found.order is None, "rows of a stacked tensor stay in their places"
            each = found.data.nbytes // (rows if kind == "matrix" else cols)
            for name, end, n in zip(names, ends, sizes, strict=True):
                data = found.data[(end - n) * each : end * each]
                shape = (n, cols) if kind == "matrix" else (1, n)
                self._add(name, Weight(name, kind, found.format, *shape, data))
        return [self._weights[name] for name in names]

    def _weight(self, name: str, kind: str, rows: int, cols: int) -> int:
        if name in self._weights:
            return self._weights[name]
        found = self._stored(name, rows, cols)
        return self._add(
            name, Weight(name, kind, found.format, rows, cols, found.data, found.order)
        )

    def _stored(self, name: str, rows: int, cols: int) -> Stored:
        found = self.tensors.get(name)
        if found is None:
            raise CorruptFileError(f"the model has no tensor {name}")
        if (found.rows, found.cols) != (rows, cols):
            raise CorruptFileError(
                f"{name} has {found.rows} rows of {found.cols}; the spec has {rows} of {cols}"
            )
        return found

    def _add(self, name: str, weight: Weight) -> int:
        if name not in self._weights:
            self._weights[name] = len(self.program.weights)
            self.program.weights.append(weight)
        return self._weights[name]

    # Operations

    def op(
        self,
        kind: Kind,
        rows: Rows,
        sources: Sequence[int] = (),
        targets: Sequence[int] = (),
        weights: Sequence[int] = (),
        ints: Sequence[int] = (),
        floats: Sequence[float] = (),
    ) -> None:
        self.program.ops.append(
            Op(
                kind,
                rows,
                tuple(sources),
                tuple(targets),
                tuple(weights),
                tuple(int(i) for i in ints),
                tuple(float(f) for f in floats),
            )
        )

    def norm(self, rows: Rows, spec: Norm, name: str, x: int, y: int) -> None:
        """y = the norm called ``name`` of x. y may be x."""
        width = self.width(x)
        gain = self.vector(f"{name}.weight", width) if spec.gain else -1
        bias = self.vector(f"{name}.bias", width) if spec.bias else -1
        ints = (spec.kind == "layer", width, 0, width)
        self.op(Kind.NORM, rows, [x], [y], [gain, bias], ints, [spec.eps])

    def product(
        self,
        rows: Rows,
        x: int,
        y: int,
        matrices: Sequence[int],
        biases: Sequence[int] | None = None,
        *,
        add: bool = False,
        activation: Activation = Activation.NONE,
        scale: float = 1.0,
    ) -> None:
        """y, or y plus, ``scale`` act(W x + b) for each matrix, side by side."""
        offsets, at = [], 0
        for matrix in matrices:
            offsets.append(at)
            at += self.program.weights[matrix].rows
        weights = [*matrices, *(biases or [-1] * len(matrices))]
        ints = [add, activation, len(matrices), *offsets]
        self.op(Kind.PRODUCT, rows, [x], [y], weights, ints, [scale])

    def linear(
        self, rows: Rows, name: str, x: int, y: int, bias: bool = False, **how: float
    ) -> None:
        """``product`` of the one matrix called ``name``."""
        outputs = self.width(y)
        matrix = self.matrix(f"{name}.weight", outputs, self.width(x))
        biases = [self.vector(f"{name}.bias", outputs)] if bias else None
        self.product(rows, x, y, [matrix], biases, **how)  # type: ignore[arg-type]

    def feedforward(
        self,
        rows: Rows,
        spec: FeedForward,
        name: str,
        x: int,
        h: int,
        *,
        scale: float = 1.0,
        update: str = "",
        rank: int = 0,
        add: bool = True,
    ) -> None:
        """h += scale feedforward(x), with this use's low-rank ``update`` of ``rank`` if any.

        h = where not ``add``.
        """
        hidden, width = spec.hidden, self.width(x)
        activation = ACTIVATIONS[spec.kind]
        m = self.buffer("hidden", rows, hidden)
        if spec.gated:
            sizes = (hidden, hidden)
            matrices = self.parts(name, "gate_up", ("gate", "up"), sizes, width)
            biases = [-1, -1]
            if spec.bias:
                biases = self.part_biases(name, "gate_up", ("gate", "up"), sizes)
            if not rank:
                self.op(Kind.GATED, rows, [x], [m], [*matrices, *biases], [activation])
            else:
                pair = [self.buffer(part, rows, hidden) for part in ("gate", "up")]
                for part, y, matrix, bias in zip(
                    ("gate", "up"), pair, matrices, biases, strict=True
                ):
                    self.product(rows, x, y, [matrix], [bias])
                    self._low_rank(rows, f"{update}.{part}", rank, x, y)
                self.op(Kind.ACTIVATE, rows, pair, [m], ints=[activation])
        else:
            matrix = self.matrix(f"{name}.up.weight", hidden, width)
            biases = [self.vector(f"{name}.up.bias", hidden) if spec.bias else -1]
            if not rank:
                self.product(rows, x, m, [matrix], biases, activation=activation)
            else:
                self.product(rows, x, m, [matrix], biases)
                self._low_rank(rows, f"{update}.up", rank, x, m)
                self.op(Kind.ACTIVATE, rows, [m], [m], ints=[activation])
        self.linear(rows, f"{name}.down", m, h, spec.bias, add=add, scale=scale)
        if rank:
            self._low_rank(rows, f"{update}.down", rank, m, h, scale)

    def _low_rank(
        self, rows: Rows, name: str, rank: int, x: int, y: int, scale: float = 1.0
    ) -> None:
        """y += scale V U x."""
        r = self.buffer("rank", rows, rank)
        self.linear(rows, f"{name}.down", x, r)
        self.linear(rows, f"{name}.up", r, y, add=True, scale=scale)
