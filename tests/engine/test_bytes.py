"""N-grams, matches and patches: at once and token by token, against the definitions in Python."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flyweight.engine.program import Kind, Rows
from flyweight.text.ngrams import match_tokens, ngram_rows

from .tiny import Array, Tiny

some = settings(max_examples=30, deadline=None)
SEED = st.integers(0, 2**32 - 1)
THREADS = st.sampled_from([1, 2, 3])
CHUNKS = st.lists(st.sampled_from([1, 1, 2, 3, 5, 100]), max_size=6)
EOT = 257


def text_of(seed: int, length: int) -> Array:
    """Bytes of few kinds, so that patterns come again; words, newlines, some <eot>."""
    rng = np.random.default_rng(seed)
    return rng.choice(
        [97, 98, 32, 10, 46, 200, 65, EOT], length, p=[0.3, 0.3, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05]
    )


@some
@given(
    orders=st.lists(st.integers(1, 9), min_size=1, max_size=4), rows=st.integers(1, 300),
    length=st.sampled_from([1, 4, 200, 600]), threads=THREADS, chunks=CHUNKS, seed=SEED,
)  # fmt: skip
def test_ngrams(
    orders: list[int], rows: int, length: int, threads: int, chunks: list[int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    dim = -(-258 // len(orders))
    table = rng.standard_normal((rows * len(orders), dim)).astype(np.float32)
    tiny = Tiny(dim * len(orders), 1024)
    x = tiny.buffer(dim * len(orders))
    tiny.op(Kind.NGRAMS, (), (x,), (tiny.weight(table, "table"),), (rows, *orders))
    tiny.logits(x)
    tokens = text_of(seed, length)
    found = tiny.run(tokens, threads, chunks=chunks)
    places = ngram_rows(tokens[None], orders, rows, np.zeros((1, length), np.int64))[0]
    assert np.array_equal(found, table[places].reshape(length, -1))


@some
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    length=st.sampled_from([1, 4, 200, 600]), threads=THREADS, chunks=CHUNKS, seed=SEED,
    keep=st.floats(0, 1),
)  # fmt: skip
def test_matches(
    lengths: list[int], length: int, threads: int, chunks: list[int], seed: int, keep: float
) -> None:
    rng = np.random.default_rng(seed)
    vocab = 258
    table = rng.standard_normal((len(lengths) * (vocab + 1), vocab)).astype(np.float32)
    tiny = Tiny(vocab, 1024)
    x = tiny.embed(np.zeros((vocab, vocab)))
    tiny.op(Kind.MATCHES, (), (x,), (tiny.weight(table, "table"),), (vocab, *lengths))
    tiny.logits(x)
    tokens = text_of(seed, length)
    found = tiny.run(tokens, threads, chunks=chunks)
    none = np.zeros((1, length), np.int64)
    after = match_tokens(tokens[None], lengths, vocab, none)[0]
    expected = np.zeros((length, vocab), np.float32)
    for j in range(len(lengths)):
        expected += table[after[:, j] + j * (vocab + 1)]
    assert np.array_equal(found, expected)
    # A sequence that is cut, or copied, finds what one without the rest finds.
    executor = tiny.executor(threads)
    sequence = executor.begin()
    executor.feed([sequence], [tokens.tolist()], "none")
    kept = int(keep * length)
    assert sequence.truncate(kept) == kept
    other = sequence.copy()
    for one in (sequence, other):
        if kept < length:
            again = executor.feed([one], [tokens[kept:].tolist()], "all")
            assert np.array_equal(again, expected[kept:])


def patched(width: int, words: bool, size: int, table: Array) -> Tiny:
    """y = 0 + the pooled rows of the last complete patch, mean beside last; offsets after them."""
    tiny = Tiny(2 * width, 1024)
    x = tiny.embed(table)
    pooled = tiny.buffer(2 * width, Rows.PATCHES)
    tiny.op(Kind.POOL, (x,), (pooled,), (), (int(words), size), rows=Rows.PATCHES)
    y = tiny.buffer(2 * width)
    offsets = np.repeat(np.arange(size)[:, None] * 1000.0, 2 * width, 1)
    tiny.op(Kind.EMBED, (), (y,), (tiny.weight(offsets, "table"),), (2, 0), (1.0,))
    tiny.op(Kind.SPREAD, (pooled,), (y,))
    tiny.logits(y)
    return tiny


def slow_patches(tokens: Array, words: bool, size: int, rows: Array) -> Array:
    """By the torch model's own cut, and a loop."""
    torch = pytest.importorskip("torch", reason="the reference is the PyTorch model")
    patches = pytest.importorskip("flyweight.model.patches")
    kind = SimpleNamespace(kind="word" if words else "fixed", size=size, letters=patches._letters())
    end, offset = patches.Patches.cut(kind, torch.from_numpy(tokens)[None])
    out = np.repeat(offset[0].numpy()[:, None] * 1000.0, 2 * rows.shape[1], 1)
    bytes_of: list[int] = []
    last = np.zeros(2 * rows.shape[1])
    for i, token in enumerate(tokens):
        bytes_of = [i] if token == EOT else [*bytes_of, i]
        if end[0, i]:
            last = np.concatenate((rows[bytes_of].astype(np.float64).mean(0), rows[i]))
            bytes_of = []
        out[i] += last
    return out


@some
@given(
    words=st.booleans(), size=st.integers(1, 9), length=st.sampled_from([1, 4, 200, 600]),
    threads=THREADS, chunks=CHUNKS, seed=SEED,
)  # fmt: skip
def test_patches(
    words: bool, size: int, length: int, threads: int, chunks: list[int], seed: int
) -> None:
    width = 129
    table = np.random.default_rng(seed).standard_normal((258, width)).astype(np.float32)
    tiny = patched(width, words, size, table)
    tokens = text_of(seed, length)
    found = tiny.run(tokens, threads, chunks=chunks)
    expected = slow_patches(tokens, words, size, table[tokens])
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-3)
    assert np.array_equal(found, tiny.run(tokens, 4 - threads, chunks=[1] * 20))


@some
@given(words=st.booleans(), size=st.integers(1, 9), cut=st.floats(0, 1), seed=SEED)
def test_a_sequence_of_patches_is_cut_where_one_is_complete(
    words: bool, size: int, cut: float, seed: int
) -> None:
    width = 129
    table = np.random.default_rng(seed).standard_normal((258, width)).astype(np.float32)
    tiny = patched(width, words, size, table)
    tokens = text_of(seed, 100)
    expected = tiny.run(tokens)
    executor = tiny.executor()
    sequence = executor.begin()
    executor.feed([sequence], [tokens.tolist()], "none")
    other = sequence.copy()
    kept = sequence.truncate(int(cut * 100))
    assert kept <= int(cut * 100) and kept == sequence.length
    if kept < 100:
        again = executor.feed([sequence], [tokens[kept:].tolist()], "all")
        assert np.array_equal(again, expected[kept:])
    more = executor.feed([other], [[97, 32]], "all")
    assert np.array_equal(more, tiny.run([*tokens, 97, 32])[-2:])
