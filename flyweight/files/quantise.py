"""Numbers to ggml's blocks: F32, F16, BF16, and the simple quantised formats.

Equal bit for bit to ggml's reference. The formats of 256 are in ``superblocks``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from flyweight.files.blocks import Bytes, Floats
from flyweight.files.formats import Format
from flyweight.files.superblocks import q4_k, q5_k, q6_k
from flyweight.spec.errors import FlyweightError


def quantise(rows: Floats, form: Format) -> Bytes:
    """Rows of float32 (..., columns) as ``form``: (..., bytes of a row).

    Columns must be a multiple of the format's block. Raises FlyweightError where a number is not
    finite, or is too large for the format.
    """
    assert form.name in WRITABLE, form.name
    size = form.row_bytes(rows.shape[-1])
    blocks = np.ascontiguousarray(rows, dtype=np.float32).reshape(-1, form.block)
    if not np.isfinite(blocks).all():
        raise FlyweightError("it holds numbers that are not finite (inf or nan)")
    with np.errstate(over="ignore"):
        made = _WRITE[form.name](blocks)
    return made.reshape(*rows.shape[:-1], size)


def _half(values: Floats) -> Bytes:
    """As half-precision numbers, (n, 1) to (n, 2)."""
    half = values.astype(np.float16)
    if not np.isfinite(half).all():
        largest = float(np.abs(values).max())
        raise FlyweightError(
            f"it holds numbers too large for this format (a scale of {largest:.3g}; 65504 is the"
            " largest half-precision number); take bf16 or f32"
        )
    return half.view(np.uint8)


def _inverse(values: Floats) -> Floats:
    # A scale so small that its inverse is infinite makes zeros, too.
    with np.errstate(divide="ignore"):
        inverse = np.float32(1) / values
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _f32(blocks: Floats) -> Bytes:
    return blocks.view(np.uint8)


def _f16(blocks: Floats) -> Bytes:
    return _half(blocks)


def _bf16(blocks: Floats) -> Bytes:
    """Rounded to nearest, ties to even."""
    bits = blocks.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    made = rounded.astype(np.uint16)
    if not np.isfinite((rounded << 16).view(np.float32)).all():
        raise FlyweightError("it holds numbers too large for bf16; take f32")
    return made.view(np.uint8)


def _pack(levels: NDArray[np.uint8]) -> Bytes:
    """32 levels of four bits, the second 16 above the first."""
    return (levels[:, :16] & np.uint8(0x0F)) | (levels[:, 16:] << np.uint8(4))


def _fifth_bits(levels: NDArray[np.uint8]) -> Bytes:
    return np.packbits(levels >> 4, axis=1, bitorder="little")


def _signed(blocks: Floats, half: int) -> tuple[Floats, NDArray[np.uint8]]:
    """Scale and levels where the largest number of a block becomes the lowest level."""
    at = np.abs(blocks).argmax(axis=1, keepdims=True)
    scale = np.take_along_axis(blocks, at, axis=1) / np.float32(-half)
    # The product and the sum are fused in ggml's compiled reference: one rounding.
    exact = blocks.astype(np.float64) * _inverse(scale).astype(np.float64) + (half + 0.5)
    return scale, np.trunc(exact.astype(np.float32)).clip(0, 2 * half - 1).astype(np.uint8)


def _from_minimum(blocks: Floats, most: int) -> tuple[Floats, Floats, NDArray[np.uint8]]:
    """Scale, minimum and levels from the minimum upwards."""
    least = blocks.min(axis=1, keepdims=True)
    scale = (blocks.max(axis=1, keepdims=True) - least) / np.float32(most)
    levels = np.trunc((blocks - least) * _inverse(scale) + np.float32(0.5))
    return scale, least, levels.clip(0, most).astype(np.uint8)


def _q4_0(blocks: Floats) -> Bytes:
    scale, levels = _signed(blocks, 8)
    return np.concatenate((_half(scale), _pack(levels)), axis=1)


def _q4_1(blocks: Floats) -> Bytes:
    scale, least, levels = _from_minimum(blocks, 15)
    return np.concatenate((_half(scale), _half(least), _pack(levels)), axis=1)


def _q5_0(blocks: Floats) -> Bytes:
    scale, levels = _signed(blocks, 16)
    return np.concatenate((_half(scale), _fifth_bits(levels), _pack(levels)), axis=1)


def _q5_1(blocks: Floats) -> Bytes:
    scale, least, levels = _from_minimum(blocks, 31)
    parts = _half(scale), _half(least), _fifth_bits(levels), _pack(levels)
    return np.concatenate(parts, axis=1)


def _q8_0(blocks: Floats) -> Bytes:
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    scaled = blocks * _inverse(scale)
    # Halves go away from zero.
    whole = np.floor(np.abs(scaled))
    rounded = whole + np.floor(np.float32(2) * (np.abs(scaled) - whole))
    levels = (np.sign(blocks) * rounded).astype(np.int8).view(np.uint8)
    return np.concatenate((_half(scale), levels), axis=1)


_WRITE: dict[str, Callable[[Floats], Bytes]] = {
    "f32": _f32,
    "f16": _f16,
    "bf16": _bf16,
    "q4_0": _q4_0,
    "q4_1": _q4_1,
    "q5_0": _q5_0,
    "q5_1": _q5_1,
    "q8_0": _q8_0,
    "q4_k": q4_k,
    "q5_k": q5_k,
    "q6_k": q6_k,
}
WRITABLE = tuple(_WRITE)
