"""Packing and products of every format on every instruction set, against float64."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .conftest import (
    BF16,
    FLOATS,
    FORMATS,
    Q8_0,
    QUANTISED,
    Array,
    dequantise,
    inputs_as_read,
    magnitudes,
    multiply,
    quants,
    random_rows,
)

many = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SEED = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("format_", FORMATS)
@many
@given(rows=st.integers(1, 40), blocks=st.integers(1, 3), seed=SEED)
def test_rows_are_what_ggml_says(
    kernels: ModuleType, isa: str, format_: int, rows: int, blocks: int, seed: int
) -> None:
    cols = blocks * kernels.block_size(format_) if format_ in QUANTISED else 7 * blocks
    data = random_rows(kernels, format_, rows, cols, np.random.default_rng(seed))
    expected = dequantise(kernels, format_, data)
    panels = kernels.pack(isa, format_, rows, cols, data.reshape(-1))
    for r in range(rows):
        np.testing.assert_array_equal(
            np.asarray(kernels.dequantise(isa, format_, cols, data[r])), expected[r]
        )
        np.testing.assert_array_equal(
            np.asarray(kernels.unpack_row(isa, format_, cols, panels, r)), expected[r]
        )


@pytest.mark.parametrize("format_", [2, 3, 6, 7, 8])
def test_what_gguf_quantises_is_read(kernels: ModuleType, isa: str, format_: int) -> None:
    x = np.random.default_rng(1).standard_normal((3, 96)).astype(np.float32)
    module = quants()
    data = module.quantize(x, module.GGMLQuantizationType(format_))
    read = np.stack([np.asarray(kernels.dequantise(isa, format_, 96, row)) for row in data])
    step = {2: 1 / 8, 3: 1 / 15, 6: 1 / 16, 7: 1 / 31, 8: 1 / 127}[format_]
    assert np.abs(read - x).max() <= step * np.abs(x).max() * 1.01
    np.testing.assert_array_equal(read, dequantise(kernels, format_, data))


def draw_inputs(rng: np.random.Generator, tokens: int, cols: int, scale: float) -> Array:
    x = rng.standard_normal((tokens, cols)) * scale
    x[:, rng.random(cols) < 0.1] = 0.0
    x[:, rng.random(cols) < 0.02] *= 50
    if tokens > 2:
        x[1] = 0.0
    return x.astype(np.float32)


@pytest.mark.parametrize("format_", FORMATS)
@many
@given(
    rows=st.integers(1, 70),
    blocks=st.one_of(st.integers(1, 5), st.just(40)),  # some in one stretch, more in two
    tokens=st.one_of(st.integers(1, 8), st.integers(9, 60)),
    scale=st.sampled_from([1e-42, 1e-30, 1e-3, 1.0, 1e4, 1e20]),
    seed=SEED,
)
def test_products_against_float64(
    kernels: ModuleType,
    isa: str,
    format_: int,
    rows: int,
    blocks: int,
    tokens: int,
    scale: float,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    cols = blocks * kernels.block_size(format_) if format_ in QUANTISED else 67 * blocks + seed % 9
    data = random_rows(kernels, format_, rows, cols, rng)
    x = draw_inputs(rng, tokens, cols, scale)
    out, part = multiply(kernels, isa, format_, data, x)
    weights = dequantise(kernels, format_, data).astype(np.float64)
    size = magnitudes(kernels, format_, data)
    read = inputs_as_read(kernels, isa, format_, x)

    # Inputs: how far what is multiplied is from what was given.
    error = np.abs(read - x)
    if format_ in QUANTISED:
        largest = np.abs(x.reshape(tokens, -1, 32)).max(axis=-1).repeat(32, axis=-1)
        assert (error <= np.maximum(largest / 254 * 1.0001, 2.0**-118)).all()
    elif format_ == BF16 and isa in ("avx512", "amx"):
        assert (error <= np.abs(x) * 2.0**-8 + 2.0**-133).all()
    else:
        assert not error.any()

    # Products: no further from float64 than one rounding for each sum allows.
    terms = cols + 4 if format_ in FLOATS else 3 * (cols // 16) + 4
    bound = terms * 2.0**-24 * (np.abs(read) @ size.T) + 1e-36
    assert (np.abs(out - read @ weights.T) <= bound).all()

    # The same bits for some rows and some tokens alone.
    first = 16 * (seed % ((rows + 15) // 16))
    np.testing.assert_array_equal(part(first, rows - first, x), out[:, first:])
    token = seed % tokens
    np.testing.assert_array_equal(part(0, rows, x[token : token + 1]), out[token : token + 1])
    np.testing.assert_array_equal(part(0, rows, x[token:]), out[token:])


@pytest.mark.parametrize("format_", QUANTISED)
def test_largest_codes_do_not_overflow(kernels: ModuleType, isa: str, format_: int) -> None:
    """All codes at either end against inputs of one size: the largest sums there are."""
    size, width = kernels.block_size(format_), kernels.block_bytes(format_)
    for byte in (0x00, 0xFF, 0x7F, 0x80):
        data = np.full((16, 2 * width), byte, np.uint8)
        for block in range(2):
            for at in {208} if format_ == 14 else {0, 2} if width in (20, 24, 144, 176) else {0}:
                data[:, block * width + at : block * width + at + 2] = np.frombuffer(
                    np.float16(0.5).tobytes(), np.uint8
                )
        x = np.ones((7, 2 * size), np.float32)
        x[1::2] = -1
        weights = dequantise(kernels, format_, data).astype(np.float64)
        expected = inputs_as_read(kernels, isa, format_, x) @ weights.T
        out, _ = multiply(kernels, isa, format_, data, x)
        limit = 1e-5 * (magnitudes(kernels, format_, data).sum(axis=1))
        assert (np.abs(out - expected) <= limit).all()


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_seen(
    kernels: ModuleType, isa: str, format_: int, value: float
) -> None:
    cols = 256
    data = random_rows(kernels, format_, 5, cols, np.random.default_rng(3))
    x = np.ones((7, cols), np.float32)
    x[3, 40] = value
    out, _ = multiply(kernels, isa, format_, data, x)
    assert np.isfinite(out[[0, 1, 2, 4, 5, 6]]).all()
    weights = dequantise(kernels, format_, data)
    assert not np.isfinite(out[3][weights[:, 40] != 0]).any()


@pytest.mark.parametrize("format_", FORMATS)
def test_what_is_no_number_stays_none(kernels: ModuleType, isa: str, format_: int) -> None:
    """8-bit blocks have no code for it: their scale says it, or a damaged model would talk on."""
    rng = np.random.default_rng(2)
    rows = random_rows(kernels, format_, 16, 256, rng)
    for wrong in (np.nan, np.inf, -np.inf):
        for at in (0, 37, 255):
            x = rng.standard_normal((1, 256)).astype(np.float32)
            x[0, at] = wrong
            y, _ = multiply(kernels, isa, format_, rows, x)
            assert not np.isfinite(y).any()


@pytest.mark.parametrize("format_", (*FLOATS, Q8_0))
@many
@given(
    rows=st.integers(1, 70),
    blocks=st.integers(1, 40),
    tokens=st.sampled_from([1, 2, 3, 5, 6, 17, 33]),
    seed=SEED,
)
def test_rows_as_they_are_stored_give_the_same_bits(
    kernels: ModuleType, isa: str, format_: int, rows: int, blocks: int, tokens: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    cols = 32 * blocks if format_ == Q8_0 else int(rng.integers(1, 40 * blocks + 1))
    data = random_rows(kernels, format_, rows, cols, rng)
    x = draw_inputs(rng, tokens, cols, 1.0)
    packed, _ = multiply(kernels, isa, format_, data, x)
    inputs = kernels.prepare(isa, format_, x)
    first = int(rng.integers(0, rows))
    # At the very end of its memory: nothing beyond is read.
    flat = np.ascontiguousarray(data.reshape(-1)).copy()
    stored = kernels.product_stored(isa, format_, cols, flat, first, rows - first, inputs)
    np.testing.assert_array_equal(np.asarray(stored), packed[:, first:])


def test_other_formats_are_not_multiplied_as_they_are_stored(kernels: ModuleType) -> None:
    assert [f for f in FORMATS if kernels.multiplied_as_stored(f)] == [*FLOATS, Q8_0]
