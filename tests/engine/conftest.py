"""The kernels' module, their instruction sets, and matrices in ggml's formats."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

Array = NDArray[Any]

# ggml's numbers.
F32, F16, BF16 = 0, 1, 30
Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL = 2, 3, 6, 7, 8, 20
Q4_K, Q5_K, Q6_K = 12, 13, 14
FLOATS = (F32, F16, BF16)
QUANTISED = (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, Q4_K, Q5_K, Q6_K)
FORMATS = FLOATS + QUANTISED
# Where the fp16 scales of a block are, and where its codes (the fifth and sixth bits too).
SCALES = {
    Q4_0: (0,), Q4_1: (0, 2), Q5_0: (0,), Q5_1: (0, 2), Q8_0: (0,), IQ4_NL: (0,),
    Q4_K: (0, 2), Q5_K: (0, 2), Q6_K: (208,),
}  # fmt: skip
CODES = {Q4_1: 4, Q5_1: 4, Q4_K: 16, Q5_K: 16}


def load_kernels() -> ModuleType:
    for name in ("flyweight.engine._native", "flyweight_kernels"):
        try:
            module = __import__(name, fromlist=["kernels"])
        except ImportError:
            continue
        return module.kernels
    pytest.skip("the engine's native module is not built")


@pytest.fixture(scope="session")
def kernels() -> ModuleType:
    return load_kernels()


@pytest.fixture(params=["amx", "avx512", "avx512vnni", "avx2vnni", "avx2", "portable"])
def isa(request: pytest.FixtureRequest, kernels: ModuleType) -> str:
    if request.param not in kernels.instruction_sets():
        pytest.skip(f"this processor or build has no {request.param}")
    return str(request.param)


def quants() -> ModuleType:
    return pytest.importorskip("gguf.quants", reason="needs the gguf package as the oracle")


def dequantise(kernels: ModuleType, format_: int, rows: Array) -> Array:
    """Rows of bytes as float32, by the gguf package."""
    if format_ == F32:
        return rows.view(np.float32)
    if format_ == F16:
        return rows.view(np.float16).astype(np.float32)
    if format_ == BF16:
        return (rows.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    module = quants()
    kind = module.GGMLQuantizationType(format_)
    return module.dequantize(rows, kind)


def random_rows(
    kernels: ModuleType, format_: int, rows: int, cols: int, rng: np.random.Generator
) -> Array:
    """A matrix (rows, cols) of every code there is, as uint8 (rows, bytes); finite scales, some
    of them 0, denormal, negative or large."""
    if format_ in FLOATS:
        x = rng.standard_normal((rows, cols)) * 10.0 ** rng.integers(-3, 3, (rows, 1))
        x[rng.random((rows, cols)) < 0.05] = 0.0
        x[rng.random((rows, cols)) < 0.05] *= 1e-6
        if format_ == F16:
            return np.ascontiguousarray(x.astype(np.float16)).view(np.uint8)
        x32 = np.ascontiguousarray(x.astype(np.float32))
        if format_ == F32:
            return x32.view(np.uint8)
        return np.ascontiguousarray((x32.view(np.uint32) >> 16).astype(np.uint16)).view(np.uint8)
    size, width = kernels.block_size(format_), kernels.block_bytes(format_)
    blocks = rng.integers(0, 256, (rows, cols // size, width), dtype=np.uint8)
    for at in SCALES[format_]:
        scale = rng.standard_normal(blocks.shape[:2]) * 10.0 ** rng.integers(-3, 2, (rows, 1))
        kind = rng.random(blocks.shape[:2])
        scale[kind < 0.05] = 0.0
        scale[(kind >= 0.05) & (kind < 0.1)] = 2.0**-22
        blocks[:, :, at : at + 2] = scale.astype(np.float16)[..., None].view(np.uint8)
    return np.ascontiguousarray(blocks.reshape(rows, -1))


def magnitudes(kernels: ModuleType, format_: int, rows: Array) -> Array:
    """|d code| + |minimum| of every number: what a product's rounding errors are relative to."""
    values = dequantise(kernels, format_, rows).astype(np.float64)
    if format_ not in CODES:
        return np.abs(values)
    width = kernels.block_bytes(format_)
    blocks = rows.reshape(rows.shape[0], -1, width).copy()
    blocks[:, :, CODES[format_] :] = 0
    low = dequantise(kernels, format_, blocks.reshape(rows.shape)).astype(np.float64)
    return np.abs(low) + np.abs(values - low)


def inputs_as_read(kernels: ModuleType, isa: str, format_: int, x: Array) -> Array:
    """What the products see of x: 8-bit blocks or bf16 as float64, from the prepared rows."""
    tokens, cols = x.shape
    prepared = np.asarray(kernels.prepare(isa, format_, x))
    if format_ in QUANTISED:
        blocks = cols // 32
        codes = prepared[:, :cols].view(np.int8).reshape(tokens, blocks, 32)
        scales = np.ascontiguousarray(prepared[:, cols : cols + 4 * blocks]).view(np.float32)
        return (codes * scales.astype(np.float64)[..., None]).reshape(tokens, cols)
    if prepared.shape[1] < 4 * cols:
        halves = np.ascontiguousarray(prepared[:, : 2 * cols]).view(np.uint16)
        return (halves.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return np.ascontiguousarray(prepared[:, : 4 * cols]).view(np.float32).astype(np.float64)


def multiply(
    kernels: ModuleType, isa: str, format_: int, rows: Array, x: Array
) -> tuple[Array, Callable[[int, int, Array], Array]]:
    """x Wᵀ, and the same for some rows and tokens alone."""
    cols = x.shape[1]
    panels = kernels.pack(isa, format_, rows.shape[0], cols, rows.reshape(-1))

    def part(first: int, count: int, some: Array) -> Array:
        inputs = kernels.prepare(isa, format_, some)
        return np.asarray(kernels.product(isa, format_, cols, panels, first, count, inputs))

    return part(0, rows.shape[0], x), part
