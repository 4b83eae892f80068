"""ggml's block formats against the `gguf` package, whose numpy code follows ggml's own."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from flyweight.files.blocks import dequantise
from flyweight.files.formats import FORMATS, Format
from flyweight.files.quantise import WRITABLE, quantise
from flyweight.spec.errors import FlyweightError

EXACT = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1")


def theirs(form: Format) -> GGMLQuantizationType:
    return GGMLQuantizationType(form.number)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_sizes_are_ggmls(name: str) -> None:
    from gguf import GGML_QUANT_SIZES

    form = FORMATS[name]
    assert (form.block, form.size) == GGML_QUANT_SIZES[theirs(form)]
    assert theirs(form).name.lower() == name


@pytest.mark.parametrize("name", sorted(FORMATS))
@given(data=st.data())
def test_any_bytes_mean_the_same_numbers(name: str, data: st.DataObject) -> None:
    form = FORMATS[name]
    rows, blocks = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    if form.block == 1:
        blocks *= 16
    seed = data.draw(st.integers(0, 2**32 - 1))
    raw = np.random.default_rng(seed).integers(0, 256, (rows, blocks * form.size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        ours = dequantise(raw, form)
        expected = quants.dequantize(raw, theirs(form))
    assert ours.dtype == np.float32
    assert ours.shape == expected.shape == (rows, blocks * form.block)
    # Bit for bit, but for the payload of what is no number.
    same = ours.view(np.uint32) == expected.view(np.uint32)
    assert (same | (np.isnan(ours) & np.isnan(expected))).all()


def numbers(form: Format) -> st.SearchStrategy[np.ndarray]:
    columns = 32 if form.block == 1 else form.block
    shape = st.tuples(st.integers(1, 3), st.sampled_from([columns, 2 * columns]))
    usual = st.floats(-100, 100, width=32)
    # Below, a scale's inverse overflows, and ggml's own result is not defined.
    tiny = st.floats(2.0**-100, 2.0**-90, width=32).map(lambda x: x - 2.0**-95)
    return st.one_of(
        arrays.arrays(np.float32, shape, elements=st.one_of(usual, st.just(0.0), tiny)),
        st.tuples(shape, st.integers(0, 2**32 - 1)).map(
            lambda it: np.random.default_rng(it[1]).standard_normal(it[0]).astype(np.float32)
        ),
    )


@pytest.mark.parametrize("name", EXACT)
@given(data=st.data())
def test_the_simple_formats_are_ggmls_bit_for_bit(name: str, data: st.DataObject) -> None:
    form = FORMATS[name]
    x = data.draw(numbers(form))
    with np.errstate(all="ignore"):
        expected = quants.quantize(x, theirs(form)).view(np.uint8)
    assert np.array_equal(quantise(x, form), expected.reshape(len(x), -1))


# What ggml's own quantiser (llama.cpp's, without an importance matrix) leaves of a normal
# distribution: root mean square error over that of the numbers.
_OF_GGML = {"q4_k": 0.0720, "q5_k": 0.0360, "q6_k": 0.0180}


@pytest.mark.parametrize("name", sorted(_OF_GGML))
def test_superblocks_lose_little(name: str) -> None:
    form = FORMATS[name]
    x = np.random.default_rng(0).standard_normal((64, 1024)).astype(np.float32) * np.float32(0.02)
    made = quantise(x, form)
    back = quants.dequantize(made, theirs(form))
    loss = np.sqrt(((back - x) ** 2).mean() / (x**2).mean())
    assert loss < 1.02 * _OF_GGML[name]


@pytest.mark.parametrize("name", ["q4_k", "q5_k", "q6_k"])
@given(data=st.data())
def test_superblocks_stay_near_whatever_the_numbers(name: str, data: st.DataObject) -> None:
    form = FORMATS[name]
    x = data.draw(numbers(form))
    back = dequantise(quantise(x, form), form).reshape(-1, form.block)
    x = x.reshape(-1, form.block)
    # Half a level of the coarsest scale and minimum that any part can need, and half precision's
    # own smallest step.
    span = np.abs(x).max(axis=1, keepdims=True)
    levels = {"q4_k": 15, "q5_k": 31, "q6_k": 32}[name]
    assert (np.abs(back - x) <= span * (1.5 / levels + 0.05) + 64 * 64 * 6e-8).all()


@pytest.mark.parametrize("name", WRITABLE)
def test_numbers_that_do_not_fit_are_refused(name: str) -> None:
    form = FORMATS[name]
    x = np.zeros((2, 256), dtype=np.float32)
    assert not dequantise(quantise(x, form), form).any()
    for bad in np.inf, -np.inf, np.nan:
        x[1, 7] = bad
        with pytest.raises(FlyweightError, match="not finite"):
            quantise(x, form)
    x[1, 7] = 3.4e38
    if name == "f32":
        assert np.array_equal(dequantise(quantise(x, form), form), x)
    else:
        with pytest.raises(FlyweightError, match="too large"):
            quantise(x, form)


def test_a_row_that_is_no_whole_number_of_blocks() -> None:
    with pytest.raises(FlyweightError, match="19 bytes is no whole number of q4_0 blocks"):
        dequantise(np.zeros((1, 19), dtype=np.uint8), FORMATS["q4_0"])
