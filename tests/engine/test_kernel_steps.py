"""Norms, activations, sums, rotations and attention on every instruction set, against float64."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .conftest import BF16, F16, F32, Q8_0, Array

some = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SEED = st.integers(0, 2**32 - 1)
SCALE = st.sampled_from([1e-42, 1e-20, 1e-3, 1.0, 1e3, 1e15])


def numbers(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> Array:
    return (rng.standard_normal(shape) * scale).astype(np.float32)


@some
@given(n=st.integers(1, 200), scale=SCALE, gain=st.booleans(), seed=SEED)
def test_rms_norm(
    kernels: ModuleType, isa: str, n: int, scale: float, gain: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = numbers(rng, n, scale=scale)
    g = numbers(rng, n) if gain else None
    y = np.asarray(kernels.rms_norm(isa, x, g, 1e-5))
    x64 = x.astype(np.float64)
    expected = x64 / np.sqrt((x64**2).mean() + 1e-5) * (1 if g is None else g)
    np.testing.assert_allclose(y, expected, rtol=4e-6, atol=1e-37)


@some
@given(
    n=st.integers(1, 200), scale=st.sampled_from([1e-20, 1.0, 1e3]), mean=st.booleans(), seed=SEED
)
def test_layer_norm(
    kernels: ModuleType, isa: str, n: int, scale: float, mean: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = numbers(rng, n, scale=scale) + np.float32(3 * scale if mean else 0)
    g, b = numbers(rng, n), numbers(rng, n)
    x64 = x.astype(np.float64)
    centred = (x64 - x64.mean()) / np.sqrt(x64.var() + 1e-5)
    size = np.abs(x64).max() / np.sqrt(x64.var() + 1e-5)
    for gain, bias in ((g, b), (g, None), (None, None)):
        y = np.asarray(kernels.layer_norm(isa, x, gain, bias, 1e-5))
        expected = centred * (1 if gain is None else gain) + (0 if bias is None else bias)
        assert np.abs(y - expected).max() <= 2e-6 * (size * 4 + 4)


def erf(x: Array) -> Array:
    from math import erf as scalar

    return np.array([scalar(v) for v in x])


ACTIVATIONS = {
    0: lambda x: x,
    1: lambda x: x / (1 + np.exp(-x)),
    2: lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    3: lambda x: 0.5 * x * (1 + erf(x / np.sqrt(2))),
    4: lambda x: np.maximum(x, 0) ** 2,
    5: lambda x: np.maximum(x, 0),
}


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations(kernels: ModuleType, isa: str, kind: int) -> None:
    x = np.concatenate(
        [
            np.linspace(-30, 30, 4001),
            np.linspace(-1, 1, 1001),
            np.array([0.0, -0.0, 1e-42, -1e-42, 1e-20, 90.0, -90.0, 110.0, -110.0, 1e4, -1e4]),
        ]
    ).astype(np.float32)
    y = np.asarray(kernels.activate(isa, kind, x))
    with np.errstate(over="ignore"):
        expected = ACTIVATIONS[kind](x.astype(np.float64))
    # Below -5 the float64 formula itself loses what is relative to the result.
    close = (
        np.abs(y - expected) <= 6e-7 * np.abs(expected) + 4e-8 * np.minimum(np.abs(x), 1) + 1e-37
    )
    assert close.all(), (x[~close][:5], y[~close][:5], expected[~close][:5])
    for n in (1, 15, 16, 17, 33):
        np.testing.assert_array_equal(np.asarray(kernels.activate(isa, kind, x[:n])), y[:n])
    assert np.isnan(np.asarray(kernels.activate(isa, kind, np.array([np.nan], np.float32)))).all()


@some
@given(n=st.integers(1, 100), scale=SCALE, seed=SEED)
def test_sums_and_products(kernels: ModuleType, isa: str, n: int, scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = numbers(rng, n, scale=scale), numbers(rng, n)
    np.testing.assert_array_equal(np.asarray(kernels.multiply(isa, x, y)), x * y)
    out = np.asarray(kernels.add(isa, 0.75, x, y))
    bound = 2.0**-23 * (np.abs(x) + np.abs(y))
    assert (np.abs(out - (0.75 * x.astype(np.float64) + y)) <= bound).all()


@some
@given(pairs=st.integers(1, 70), interleaved=st.booleans(), seed=SEED)
def test_rotate(kernels: ModuleType, isa: str, pairs: int, interleaved: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    angle = rng.uniform(-10, 10, pairs)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    x = numbers(rng, 2 * pairs)
    turned = x.astype(np.float64).reshape((pairs, 2) if interleaved else (2, pairs))
    a, b = (turned[:, 0], turned[:, 1]) if interleaved else turned
    expected = np.stack([a * cos - b * sin, a * sin + b * cos], axis=1 if interleaved else 0)
    out = np.asarray(kernels.rotate(isa, cos, sin, interleaved, x))
    np.testing.assert_allclose(out, expected.reshape(-1), rtol=0, atol=1e-6)


def stored_as_read(kernels: ModuleType, isa: str, format_: int, x: Array) -> Array:
    """What attention reads of cached rows, from their bytes."""
    count, dim = x.shape
    rows = np.asarray(kernels.store(isa, format_, x))
    if format_ == F32:
        return rows.view(np.float32).astype(np.float64)
    if format_ == F16:
        return rows.view(np.float16).astype(np.float64)
    if format_ == BF16:
        return (rows.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    blocks = (dim + 31) // 32
    codes = rows[:, : 32 * blocks].view(np.int8).reshape(count, blocks, 32)
    scales = np.ascontiguousarray(rows[:, 32 * blocks :]).view(np.float32)
    return (codes * scales.astype(np.float64)[..., None]).reshape(count, -1)[:, :dim]


@pytest.mark.parametrize("format_", [F32, F16, BF16, Q8_0])
@some
@given(count=st.integers(1, 5), dim=st.integers(1, 140), seed=SEED)
def test_what_the_cache_keeps(
    kernels: ModuleType, isa: str, format_: int, count: int, dim: int, seed: int
) -> None:
    x = numbers(np.random.default_rng(seed), count, dim)
    error = np.abs(stored_as_read(kernels, isa, format_, x) - x)
    if format_ == F32:
        assert not error.any()
    elif format_ == F16:
        np.testing.assert_array_equal(
            stored_as_read(kernels, isa, format_, x), x.astype(np.float16).astype(np.float64)
        )
    elif format_ == BF16:
        assert (error <= np.abs(x) * 2.0**-8).all()
    else:
        assert (error <= np.abs(x).max(axis=1, keepdims=True) / 254 * 1.0001).all()


def test_what_halves_do_not_reach_is_kept_as_the_largest(kernels: ModuleType, isa: str) -> None:
    """An infinite key would make all scores that see it no numbers."""
    x = np.resize(np.float32([1e5, -1e30, 65504, 65519, -65530, np.inf, 3, np.nan]), (2, 21))
    found = stored_as_read(kernels, isa, F16, x)
    np.testing.assert_array_equal(found, x.clip(-65504, 65504).astype(np.float16))


@pytest.mark.parametrize("format_", [F32, F16, BF16, Q8_0])
@some
@given(
    dim=st.one_of(st.integers(1, 140), st.sampled_from([32, 64, 80, 128, 256, 300])),
    rows=st.one_of(st.integers(1, 6), st.integers(7, 40), st.integers(41, 150)),
    before=st.integers(0, 90),
    spread=st.sampled_from([0.1, 1.0, 8.0]),
    window=st.sampled_from([0, 5, 40]),
    alibi=st.booleans(),
    seed=SEED,
)
def test_attention_against_float64(
    kernels: ModuleType,
    isa: str,
    format_: int,
    dim: int,
    rows: int,
    before: int,
    spread: float,
    window: int,
    alibi: bool,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    first = int(rng.integers(0, 50))
    group = int(rng.integers(1, 4))
    # Rows of `group` heads a token; tokens see themselves and what is before.
    position = first + before + np.arange(rows, dtype=np.int64) // group
    count = int(position[-1] - first + 1)
    start = np.maximum(position - window + 1, first) if window else np.full(rows, first, np.int64)
    q, k, v = (numbers(rng, n, dim, scale=spread) for n in (rows, count, count))
    slopes = rng.uniform(0, 1, rows).astype(np.float32) if alibi else None
    scale = np.float32(dim**-0.5)
    keys = np.asarray(kernels.store(isa, format_, k))
    values = np.asarray(kernels.store(isa, format_, v))
    # The rows lie further apart than they are long; what is between is never a number.
    stride = (keys.shape[1] + 67) // 4 * 4
    padded = [np.full((count, stride), 0xFF, np.uint8) for _ in range(2)]
    for to, part in zip(padded, (keys, values), strict=True):
        to[:, : part.shape[1]] = part

    def attend(chosen: slice, calls: list[int]) -> Array:
        slope = None if slopes is None else slopes[chosen]
        return np.asarray(
            kernels.attend(
                isa, format_, q[chosen], scale, slope, position[chosen], start[chosen],
                padded[0], padded[1], first, calls,
            )
        )  # fmt: skip

    k64, v64 = (stored_as_read(kernels, isa, format_, x) for x in (k, v))
    at = first + np.arange(count)
    score = float(scale) * (q.astype(np.float64) @ k64.T)
    if slopes is not None:
        score -= slopes[:, None].astype(np.float64) * (position[:, None] - at)
    score[(at > position[:, None]) | (at < start[:, None])] = -np.inf
    p = np.exp(score - score.max(axis=1, keepdims=True))
    expected = p @ v64 / p.sum(axis=1, keepdims=True)

    out = attend(slice(None), [count])
    # A score's rounding error is relative to the sum of its products' sizes.
    sharp = 1 + float(scale) * (np.abs(q) @ np.abs(k64).T).max()
    assert np.abs(out - expected).max() <= 2e-6 * sharp * np.abs(v64).max()
    # In two calls, and each row as if alone.
    cut = int(rng.integers(0, count + 1))
    twice = attend(slice(None), [cut, count - cut])
    assert np.abs(twice - expected).max() <= 2e-6 * sharp * np.abs(v64).max()
    row = seed % rows
    np.testing.assert_array_equal(attend(slice(row, row + 1), [count])[0], out[row])
    np.testing.assert_array_equal(attend(slice(row, None), [count]), out[row:])


@some
@given(
    rows=st.integers(1, 4),
    vocab=st.integers(1, 200),
    half=st.booleans(),
    size=st.sampled_from([1e-30, 1.0, 30.0, 1e4]),
    scale=st.sampled_from([1.0, 0.25, -2.0]),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    z=st.sampled_from([0.0, 1e-3]),
    seed=SEED,
)
def test_cross_entropy(
    kernels: ModuleType,
    isa: str,
    rows: int,
    vocab: int,
    half: bool,
    size: float,
    scale: float,
    smoothing: float,
    z: float,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    x = numbers(rng, rows, vocab, scale=size)
    given_ = x.copy()
    if half:
        given_ = (x.view(np.uint32) >> 16).astype(np.uint16)
        x = (given_.astype(np.uint32) << 16).view(np.float32)
    targets = rng.integers(-1, vocab, rows)
    losses = np.zeros(rows, np.float32)
    kernels.cross_entropy(isa, given_, targets, scale, 0.5, smoothing, z, losses, 2)
    found = given_ if not half else (given_.astype(np.uint32) << 16).view(np.float32)
    u = x.astype(np.float64) * scale
    peak = u.max(axis=1, keepdims=True)
    lse = peak + np.log(np.exp(u - peak).sum(axis=1, keepdims=True))
    wanted_target = np.eye(vocab)[targets] * (1 - smoothing) + smoothing / vocab
    loss = (lse - (wanted_target * u).sum(axis=1, keepdims=True) + z * lse**2)[:, 0]
    gradient = 0.5 * scale * (np.exp(u - lse) * (1 + 2 * z * lse) - wanted_target)
    seen = targets >= 0
    bound = 1e-5 * np.abs(u).max(axis=1) + 1e-5 + 1e-5 * z * lse[:, 0] ** 2
    assert (np.abs(losses - loss)[seen] <= bound[seen]).all()
    assert not losses[~seen].any() and not found[~seen].any()
    # e^u is as exact as u, whose size a float32 bounds; bf16 rounds what is stored.
    error = np.abs(found - gradient)[seen]
    slack = (4e-6 + 2e-7 * np.abs(u).max(axis=1, keepdims=True)) * (1 + 2 * z * np.abs(lse))
    assert (error <= (slack * abs(scale) + np.abs(gradient) * (4e-3 if half else 0))[seen]).all()
