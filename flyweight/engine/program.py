"""The flat program that a model is compiled to: operations over named buffers.

A program runs on a batch of rows. These sets of rows exist in a run: the new TOKENS of all
sequences (bytes in a byte model), the PATCHES that those tokens complete, and the WANTED tokens,
those whose logits are asked for; where tokens are spelled in S symbols each, the S rows of SYMBOLS
of every token, one token's after another's, and the S SPELLED rows of every wanted token. Every
buffer and every operation belongs to one of them. A buffer holds float32, one row of ``width``
numbers per row of its set.

Weights are referred to by their place in ``Program.weights``: a matrix that many operations name
is one set of bytes. csrc/program.h has the same operations in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from array import array

    import numpy as np
    from numpy.typing import NDArray

    # Bytes in a row, and places of rows: numpy's, or without it (most models need none to run).
    Flat = memoryview | NDArray[np.uint8]
    Order = array[int] | NDArray[np.intp]


class Rows(IntEnum):
    TOKENS = 0
    PATCHES = 1
    WANTED = 2
    SYMBOLS = 3
    SPELLED = 4


class Activation(IntEnum):
    NONE = 0
    SILU = 1
    GELU_TANH = 2
    GELU_ERF = 3
    RELU2 = 4
    RELU = 5


class Index(IntEnum):
    """What a row looks up in a table."""

    TOKEN = 0
    # The row's position in its sequence.
    POSITION = 1
    # The byte's place in its patch; a symbol's in its token.
    OFFSET = 2
    # The symbol itself.
    SYMBOL = 3


class Kind(IntEnum):
    """The operations. s are sources, t targets (buffers), w weights, i integers, f floats.

    Where a weight may be left out its place holds -1. ``x`` is a row of s0, ``y`` of t0.
    """

    # y = f0 w0[index]                                i0: Index, i1: 1 to add to y instead
    EMBED = 0
    # y[j] = w0[hash of the last n tokens], side by side. i0: rows an order, i1...: the orders n.
    # The hash is flyweight.text.ngrams.ngram_rows'.
    NGRAMS = 1
    # y += the sum over j of w0[j (i0 + 1) + what followed], flyweight.text.ngrams.match_tokens
    # within the sequence. i0: the vocabulary, which also stands for no match, i1...: the lengths m.
    MATCHES = 2
    # y = norm(x) w0 + w1.  i0: 0 rms, 1 layer; i1: numbers normalised together (a head's), the
    # whole row is made of such groups from i2 to i2 + i3, other columns untouched; s0 may be t0.
    # w0 and w1 have i1 numbers or are -1.  f0: eps
    NORM = 3
    # For each of n matrices j: y[o_j : o_j + rows_j] (=, or += where i0) f0 act(w_j x + b_j).
    # i0: accumulate, i1: Activation, i2: n, then the n column offsets o_j; w: n matrices and then
    # n biases (vectors, or -1).
    PRODUCT = 4
    # y = act(w0 x + b0) * (w1 x + b1).  i0: Activation; w: gate, up, their biases or -1.
    GATED = 5
    # y = act(x), or act(x) * the row of s1.  i0: Activation
    ACTIVATE = 6
    # y += f0 x
    ADD = 7
    # y = f0 x
    SCALE = 8
    # Turns the heads in columns i0 to i0 + i1 i2 of y in place by the row's position.
    # i1: heads, i2: head_dim, i3: rotating dimensions, i4: 0 half, 1 interleaved. Angles are
    # float32(position) * frequency, with the sequence's own frequencies and gain.
    ROTATE = 9
    # Appends keys and values of x to cache slot i0.  i1: column of the keys, i2: of the values,
    # i3: kv_heads, i4: head_dim
    STORE = 10
    # y = softmax(f0 q kᵀ + bias) v over the sequence's cache slot i0, rows of one call seeing
    # those before them and themselves.  i1: column of the queries in s0, i2: heads, i3: kv_heads,
    # i4: head_dim, i5: window or 0.  w0: ALiBi's slopes (heads,) or -1: bias = -slope distance
    # divided by the sequence's divisor.
    ATTENTION = 11
    # y (WANTED) = x (TOKENS) of the wanted rows.
    SELECT = 12
    # y (PATCHES) = [mean of the patch's rows x, its last row x]; rows of a patch still open are
    # kept in the sequence.  i0: 0 fixed, 1 word; i1: size (model/patches.py says where one ends)
    POOL = 13
    # y (TOKENS) += x (PATCHES) of the last complete patch of the row's sequence, at or before
    # the row itself; nothing before the first. The last is kept in the sequence.
    SPREAD = 14
    # y = softmax(f0 q kᵀ) v over the rows of one token (SYMBOLS, SPELLED), both ways. s0 holds
    # queries, keys and values side by side.  i0: heads, i1: head_dim, i2: 1 where only real rows
    # are seen: those before the token's first pad, the first row always.
    WITHIN = 15
    # y (TOKENS) = the mean of a token's real rows of x (SYMBOLS).
    MEAN = 16
    # y (SPELLED) = the columns of x (WANTED) that are the slot's: row r S + s has those from s
    # times its width on.
    CUT = 17
    # y = x - ln(sum(exp(x)))
    LOGS = 18
    # y (WANTED) = for each token of the vocabulary the sum of x (SPELLED) at its symbols, slot by
    # slot to the token's first pad, which counts.
    SPELL = 19


@dataclass(frozen=True)
class Buffer:
    """float32 rows. ``offset``: where it begins, in numbers per row of its set, as planned:
    buffers that are never alive together may share their place."""

    name: str
    rows: Rows
    width: int
    offset: int = -1


@dataclass(frozen=True)
class Weight:
    """A matrix (rows, cols) or a vector (rows = 1) in ggml's layout, rows one after another.

    ``format`` is ggml's number of the type; ``data`` flat bytes, often a view of a mapped file.
    ``kind``: "matrix" is packed for products (looked up by row too, where an EMBED names it),
    "table" is only looked up and stays as it lies, "vector" becomes float32. ``order``: row r of
    a matrix is row ``order[r]`` of the data; None: row r.
    """

    name: str
    kind: str
    format: int
    rows: int
    cols: int
    data: Flat
    order: Order | None = None


@dataclass(frozen=True)
class Op:
    kind: Kind
    rows: Rows
    sources: tuple[int, ...] = ()
    targets: tuple[int, ...] = ()
    weights: tuple[int, ...] = ()
    ints: tuple[int, ...] = ()
    floats: tuple[float, ...] = ()


@dataclass(frozen=True)
class Slot:
    """A cache slot: keys and values of one use of one block, per row of ``rows``."""

    rows: Rows
    kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Spelling:
    """How tokens are spelled: ``symbols`` (vocabulary, slots), ``pad`` after a token's end."""

    symbols: NDArray[np.int32]
    pad: int


@dataclass
class Program:
    """All that the executor needs. ``logits`` is the buffer (WANTED) that the last op fills.

    ``spelling``: None where no operation works on symbols.
    """

    vocab_size: int
    context: int
    buffers: list[Buffer] = field(default_factory=list)
    weights: list[Weight] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)
    logits: int = -1
    # The rotating dimensions of a head, halved: the length of a sequence's frequencies.
    frequencies: int = 0
    spelling: Spelling | None = None
