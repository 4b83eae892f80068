"""Every operation of the flat program against numpy in float64, rows from one to many."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyweight.engine.program import Kind

from .tiny import Array, Tiny, one_op

some = settings(max_examples=25, deadline=None)
SEED = st.integers(0, 2**32 - 1)
ROWS = st.sampled_from([1, 2, 4, 5, 37, 600])
THREADS = st.sampled_from([1, 2, 3])


def near(found: Array, expected: Array) -> None:
    scale = np.abs(expected).max() + 1e-6
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6 * scale)


def act(kind: int, x: Array) -> Array:
    x = x.astype(np.float64)
    erf = np.vectorize(math.erf)
    return [
        lambda: x,
        lambda: x / (1 + np.exp(-x)),
        lambda: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        lambda: 0.5 * x * (1 + erf(x / math.sqrt(2))),
        lambda: np.maximum(x, 0) ** 2,
        lambda: np.maximum(x, 0),
    ][kind]()


def drawn(seed: int, *shapes: tuple[int, ...]) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(s).astype(np.float32) for s in shapes]


def tokens_of(seed: int, vocab: int, rows: int) -> Array:
    return np.random.default_rng(seed + 1).integers(0, vocab, rows)


@some
@given(
    vocab=st.integers(1, 40), rows=ROWS, threads=THREADS, kind=st.sampled_from(["matrix", "table"]),
    scale=st.floats(-3, 3), seed=SEED,
)  # fmt: skip
def test_embed(vocab: int, rows: int, threads: int, kind: str, scale: float, seed: int) -> None:
    table, positions = drawn(seed, (vocab, vocab), (1024, vocab))
    tiny = Tiny(vocab, 1024)
    x = tiny.buffer(vocab)
    scale = float(np.float32(scale))
    tiny.op(Kind.EMBED, (), (x,), (tiny.weight(table, kind),), (0, 0), (scale,))
    tiny.op(Kind.EMBED, (), (x,), (tiny.weight(positions, kind),), (1, 1), (0.5,))
    tiny.logits(x)
    tokens = tokens_of(seed, vocab, rows)
    expected = scale * table[tokens].astype(np.float64) + 0.5 * positions[:rows]
    near(tiny.run(tokens, threads, chunks=(rows // 2,)), expected)


@some
@given(
    together=st.integers(1, 24), groups=st.integers(1, 4), before=st.integers(0, 9),
    after=st.integers(0, 9), layer=st.booleans(), gain=st.booleans(), bias=st.booleans(),
    in_place=st.booleans(), rows=ROWS, threads=THREADS, seed=SEED,
)  # fmt: skip
def test_norm(
    together: int, groups: int, before: int, after: int, layer: bool, gain: bool, bias: bool,
    in_place: bool, rows: int, threads: int, seed: int,
) -> None:  # fmt: skip
    width = before + together * groups + after
    table, start, g, b = drawn(seed, (width, width), (width, width), (together,), (together,))
    tiny = Tiny(width, 2048)
    x = tiny.embed(table)
    y = x if in_place else tiny.embed(start)
    weights = (tiny.weight(g, "vector") if gain else -1, tiny.weight(b, "vector") if bias else -1)
    tiny.op(
        Kind.NORM, (x,), (y,), weights, (int(layer), together, before, together * groups), (1e-3,)
    )
    tiny.logits(y)
    tokens = tokens_of(seed, width, rows)
    expected = (table if in_place else start)[tokens].astype(np.float64)
    part = table[tokens][:, before : width - after].astype(np.float64)
    part = part.reshape(rows, groups, together)
    if layer:
        part = part - part.mean(-1, keepdims=True)
    part = part / np.sqrt((part**2).mean(-1, keepdims=True) + 1e-3)
    part = part * (g if gain else 1) + (b if bias else 0)
    expected[:, before : width - after] = part.reshape(rows, -1)
    near(tiny.run(tokens, threads), expected)


@some
@given(
    cols=st.integers(1, 70), shapes=st.lists(st.integers(1, 50), min_size=1, max_size=3),
    gap=st.integers(0, 3), accumulate=st.booleans(), activation=st.integers(0, 5),
    bias=st.booleans(), factor=st.sampled_from([1.0, -0.5]), rows=ROWS, threads=THREADS, seed=SEED,
    normed=st.booleans(),
)  # fmt: skip
def test_product(
    cols: int, shapes: list[int], gap: int, accumulate: bool, activation: int, bias: bool,
    factor: float, rows: int, threads: int, seed: int, normed: bool,
) -> None:  # fmt: skip
    """With a norm before it, which few rows leave to every thread."""
    offsets = np.cumsum([0, *(n + gap for n in shapes[:-1])]).tolist()
    width = offsets[-1] + shapes[-1]
    x_table, start = drawn(seed, (width, cols), (width, width))
    matrices = drawn(seed + 2, *((n, cols) for n in shapes))
    biases = drawn(seed + 3, *((n,) for n in shapes))
    tiny = Tiny(width, 2048)
    source = tiny.embed(x_table)
    target = tiny.embed(start)
    if normed:
        x, source = source, tiny.buffer(cols)
        tiny.op(Kind.NORM, (x,), (source,), (-1, -1), (0, cols, 0, cols), (1e-2,))
    weights = [tiny.weight(m) for m in matrices]
    weights += [tiny.weight(b, "vector") if bias else -1 for b in biases]
    ints = (int(accumulate), activation, len(shapes), *offsets)
    tiny.op(Kind.PRODUCT, (source,), (target,), weights, ints, (factor,))
    tiny.logits(target)
    tokens = tokens_of(seed, width, rows)
    x64 = x_table[tokens].astype(np.float64)
    if normed:
        x64 = x64 / np.sqrt((x64**2).mean(-1, keepdims=True) + 1e-2)
    expected = start[tokens].astype(np.float64)
    for offset, matrix, own in zip(offsets, matrices, biases, strict=True):
        y = factor * act(activation, x64 @ matrix.T.astype(np.float64) + (own if bias else 0))
        place = np.s_[:, offset : offset + len(matrix)]
        expected[place] = expected[place] * accumulate + y
    near(tiny.run(tokens, threads), expected)


@some
@given(
    cols=st.integers(1, 70), width=st.integers(1, 90), activation=st.integers(0, 5),
    bias=st.booleans(), rows=ROWS, threads=THREADS, seed=SEED,
)  # fmt: skip
def test_gated(
    cols: int, width: int, activation: int, bias: bool, rows: int, threads: int, seed: int
) -> None:
    table, gate, up, g, u = drawn(
        seed, (width, cols), (width, cols), (width, cols), (width,), (width,)
    )
    extra = [(g, "vector"), (u, "vector")] if bias else [None, None]
    weights = [(gate, "matrix"), (up, "matrix"), *extra]
    tiny = one_op((Kind.GATED, (), (activation,), ()), [table], weights)
    tokens = tokens_of(seed, width, rows)
    x = table[tokens].astype(np.float64)
    expected = act(activation, x @ gate.T + g * bias) * (x @ up.T + u * bias)
    near(tiny.run(tokens, threads), expected)


@some
@given(
    kind=st.sampled_from([Kind.ACTIVATE, Kind.ADD, Kind.SCALE]), activation=st.integers(0, 5),
    gated=st.booleans(), width=st.integers(1, 50), rows=ROWS, threads=THREADS, seed=SEED,
)  # fmt: skip
def test_a_row_at_a_time(
    kind: Kind, activation: int, gated: bool, width: int, rows: int, threads: int, seed: int
) -> None:
    a, b, start = drawn(seed, (width, width), (width, width), (width, width))
    tokens = tokens_of(seed, width, rows)
    x, other, y = (t[tokens].astype(np.float64) for t in (a, b, start))
    if kind == Kind.ACTIVATE:
        tiny = one_op((kind, (), (activation,), ()), [a, b] if gated else [a], start=start)
        expected = act(activation, x) * (other if gated else 1)
    else:
        tiny = one_op((kind, (), (), (1.5,)), [a], start=start)
        expected = 1.5 * x + (y if kind == Kind.ADD else 0)
    near(tiny.run(tokens, threads), expected)


@some
@given(
    heads=st.integers(1, 5), pairs=st.integers(1, 6), still=st.integers(0, 5),
    before=st.integers(0, 4), interleaved=st.booleans(), rows=ROWS, threads=THREADS, seed=SEED,
)  # fmt: skip
def test_rotate(
    heads: int, pairs: int, still: int, before: int, interleaved: bool, rows: int, threads: int,
    seed: int,
) -> None:  # fmt: skip
    head_dim = 2 * pairs + still
    width = before + heads * head_dim + 2
    (table,) = drawn(seed, (width, width))
    own = np.random.default_rng(seed).random(pairs).astype(np.float32)
    tiny = Tiny(width, 2048, pairs)
    x = tiny.embed(table)
    ints = (before, heads, head_dim, 2 * pairs, int(interleaved))
    tiny.op(Kind.ROTATE, (), (x,), (), ints)
    tiny.logits(x)
    tokens = tokens_of(seed, width, rows)
    expected = table[tokens].astype(np.float64)
    turned = expected[:, before : before + heads * head_dim].reshape(rows, heads, head_dim)
    angle = (np.arange(rows, dtype=np.float32)[:, None, None] * own).astype(np.float64)
    cos, sin = 1.25 * np.cos(angle), 1.25 * np.sin(angle)
    first = np.s_[..., 0 : 2 * pairs : 2] if interleaved else np.s_[..., :pairs]
    second = np.s_[..., 1 : 2 * pairs : 2] if interleaved else np.s_[..., pairs : 2 * pairs]
    a, b = turned[first].copy(), turned[second].copy()
    turned[first], turned[second] = a * cos - b * sin, b * cos + a * sin
    expected[:, before : before + heads * head_dim] = turned.reshape(rows, -1)
    found = tiny.run(tokens, threads, chunks=(rows // 3,), begin=(own.tolist(), 1.25))
    near(found, expected)


def attention_model(
    table: Array, heads: int, kv_heads: int, head_dim: int, window: int, slopes: Array | None
) -> Tiny:
    tiny = Tiny(len(table), 2048)
    x = tiny.embed(table)
    y = tiny.buffer(heads * head_dim)
    slot = tiny.slot(kv_heads, head_dim)
    keys = heads * head_dim
    values = keys + kv_heads * head_dim
    tiny.op(Kind.STORE, (x,), (), (), (slot, keys, values, kv_heads, head_dim))
    own = -1 if slopes is None else tiny.weight(slopes, "vector")
    ints = (slot, 0, heads, kv_heads, head_dim, window)
    tiny.op(Kind.ATTENTION, (x,), (y,), (own,), ints, (0.3,))
    logits = tiny.buffer(tiny.program.vocab_size)
    # The result, and zeros up to the vocabulary's width.
    eye = np.eye(tiny.program.vocab_size, heads * head_dim)
    tiny.op(Kind.PRODUCT, (y,), (logits,), (tiny.weight(eye), -1), (0, 0, 1, 0), (1.0,))
    tiny.logits(logits)
    return tiny


def slow_attention(
    rows: Array, heads: int, kv_heads: int, head_dim: int, window: int, slopes: Array | None,
    divisor: float,
) -> Array:  # fmt: skip
    n = len(rows)
    q, k, v = np.split(
        rows.astype(np.float64), [heads * head_dim, (heads + kv_heads) * head_dim], 1
    )
    q = q.reshape(n, heads, head_dim)
    k = np.repeat(k.reshape(n, kv_heads, head_dim), heads // kv_heads, 1)
    v = np.repeat(v[:, : kv_heads * head_dim].reshape(n, kv_heads, head_dim), heads // kv_heads, 1)
    scores = 0.3 * np.einsum("ihd,jhd->hij", q, k)
    distance = np.arange(n)[:, None] - np.arange(n)[None]
    if slopes is not None:
        scores -= slopes[:, None, None] / divisor * distance
    seen = (distance >= 0) & (distance < window if window else True)
    scores = np.where(seen, scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return np.einsum("hij,jhd->ihd", p, v).reshape(n, -1)


@settings(max_examples=30, deadline=None)
@given(
    kv_heads=st.integers(1, 4), group=st.sampled_from([1, 2, 3, 40]), head_dim=st.integers(1, 20),
    window=st.sampled_from([0, 1, 7, 300]), alibi=st.booleans(), rows=st.sampled_from([3, 30, 700]),
    chunks=st.lists(st.sampled_from([1, 2, 5, 255, 256]), max_size=4), threads=THREADS, seed=SEED,
)  # fmt: skip
def test_attention(
    kv_heads: int, group: int, head_dim: int, window: int, alibi: bool, rows: int,
    chunks: list[int], threads: int, seed: int,
) -> None:  # fmt: skip
    heads = kv_heads * group
    width = (heads + 2 * kv_heads) * head_dim
    vocab = max(60, heads * head_dim)
    (table,) = drawn(seed, (vocab, width))
    slopes = np.random.default_rng(seed).random(heads).astype(np.float32) if alibi else None
    tiny = attention_model(table, heads, kv_heads, head_dim, window, slopes)
    tokens = tokens_of(seed, vocab, rows)
    found = tiny.run(tokens, threads, chunks=chunks, begin=([], 1.0, 2.0))
    shape = (heads, kv_heads, head_dim, window, slopes, 2.0)
    expected = slow_attention(table[tokens], *shape)
    near(found[:, : heads * head_dim], expected)
    # Split over threads and calls in another way, the same bits come out.
    again = tiny.run(tokens, 4 - threads, chunks=[rows - 2, 1], begin=([], 1.0, 2.0))
    assert np.array_equal(found, again)


@pytest.mark.parametrize(("format_", "error"), [(0, 1e-6), (1, 2e-3), (30, 2e-2), (8, 5e-2)])
def test_cache_formats(format_: int, error: float) -> None:
    table = drawn(5, (128, (4 + 2 * 2) * 32))[0]
    tiny = attention_model(table, 4, 2, 32, 0, None)
    tokens = tokens_of(5, 128, 300)
    found = tiny.run(tokens, 2, begin=([], 1.0, 1.0, format_))
    expected = slow_attention(table[tokens], 4, 2, 32, 0, None, 1.0)
    assert np.abs(found - expected).max() < error * np.abs(expected).max()


def test_rows_of_sequences_that_are_fed_together_do_not_meet() -> None:
    table = drawn(9, (96, (4 + 4) * 8))[0]
    tiny = attention_model(table, 4, 2, 8, 0, None)
    rng = np.random.default_rng(3)
    texts = [rng.integers(0, 96, n).tolist() for n in (1, 3, 290, 700, 2)]
    alone = [tiny.run(text) for text in texts]
    executor = tiny.executor(2)
    sequences = [executor.begin() for _ in texts]
    together = executor.feed(sequences, texts, "all")
    assert np.array_equal(together, np.concatenate(alone))
    last = executor.feed(sequences, [[5]] * len(texts))
    for row, text in zip(last, texts, strict=True):
        assert np.array_equal(row, tiny.run([*text, 5])[-1])


def test_what_is_wanted_changes_nothing_else() -> None:
    table = drawn(11, (64, 8 * 8))[0]
    tiny = attention_model(table, 4, 2, 8, 0, None)
    tokens = tokens_of(1, 64, 40).tolist()
    executor = tiny.executor()
    sequence = executor.begin()
    assert executor.feed([sequence], [tokens[:20]], "none").shape == (0, 64)
    last = executor.feed([sequence], [tokens[20:]], "last")
    assert np.array_equal(last, tiny.run(tokens)[-1:])
