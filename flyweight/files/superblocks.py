"""Q4_K, Q5_K and Q6_K: blocks of 256 whose parts have scales of few bits each.

ggml's layout; the search for scales is our own: for each part a handful of roundings is tried, the
scale (and minimum) that fits each best follows by weighted least squares, and the rounding with
the least weighted error stays. Numbers that are large weigh more.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from flyweight.files.blocks import Bytes, Floats
from flyweight.spec.errors import FlyweightError

_TINY = np.float32(1e-35)
# So many superblocks at a time: what is tried stays in the processor's cache.
_AT_ONCE = 256


def q4_k(blocks: Floats) -> Bytes:
    """(n, 256) to (n, 144)."""
    return _in_chunks(blocks, lambda x: _with_minima(x, 15))


def q5_k(blocks: Floats) -> Bytes:
    """(n, 256) to (n, 176)."""
    return _in_chunks(blocks, lambda x: _with_minima(x, 31))


def q6_k(blocks: Floats) -> Bytes:
    """(n, 256) to (n, 210)."""
    return _in_chunks(blocks, _symmetric)


def _in_chunks(blocks: Floats, make: Callable[[Floats], Bytes]) -> Bytes:
    chunks = range(0, len(blocks), _AT_ONCE)
    return np.concatenate([make(blocks[at : at + _AT_ONCE]) for at in chunks])


def _half(values: Floats) -> NDArray[np.float16]:
    half = values.astype(np.float16)
    if not np.isfinite(half).all():
        raise FlyweightError(
            f"it holds numbers too large for this format (a scale of {float(values.max()):.3g};"
            " 65504 is the largest half-precision number); take bf16 or f32"
        )
    return half


def _over(a: Floats | np.float32, b: Floats) -> Floats:
    """a / b, and 0 where b is next to nothing."""
    safe = np.abs(b) > _TINY
    return np.where(safe, a / np.where(safe, b, np.float32(1)), np.float32(0))


def _with_minima(blocks: Floats, most: int) -> Bytes:
    """Runs of 32 as ``scale * level - minimum``, levels 0 to ``most``, minima 0 or more."""
    x = blocks.reshape(-1, 8, 32)
    scale, minimum = _search_minima(x, most)
    coarse = _half(scale.max(axis=1) / np.float32(63))
    coarse_minimum = _half(minimum.max(axis=1) / np.float32(63))
    big = coarse.astype(np.float32)[:, None]
    big_minimum = coarse_minimum.astype(np.float32)[:, None]
    scales = np.rint(_over(scale, big)).clip(0, 63).astype(np.uint8)
    minima = np.rint(_over(minimum, big_minimum)).clip(0, 63).astype(np.uint8)
    step = (big * scales)[..., None]
    lowest = (big_minimum * minima)[..., None]
    levels = np.rint(_over(x + lowest, step)).clip(0, most).astype(np.uint8)
    parts: list[Bytes] = [
        coarse[:, None].view(np.uint8),
        coarse_minimum[:, None].view(np.uint8),
        _pack_sixes(scales, minima),
    ]
    if most == 31:
        shifts = np.arange(8, dtype=np.uint8)[:, None]
        fifth: Bytes = np.bitwise_or.reduce((levels >> 4) << shifts, axis=1)
        parts.append(fifth)
    pairs = (levels & np.uint8(0x0F)).reshape(-1, 4, 2, 32)
    parts.append((pairs[:, :, 0] | (pairs[:, :, 1] << np.uint8(4))).reshape(-1, 128))
    return np.concatenate(parts, axis=1)


def _search_minima(x: Floats, most: int) -> tuple[Floats, Floats]:
    """The scales and minima (n, 8) that fit ``x`` (n, 8, 32) best of those tried."""
    # In units of the largest number: squares of very small ones would vanish.
    unit = np.abs(x).max(axis=2)
    x = _over(x, unit[..., None])
    weight = np.abs(x) + np.sqrt((x * x).mean(axis=2, keepdims=True))
    least = np.minimum(x.min(axis=2), 0)
    span = x.max(axis=2) - least
    total, weighted = weight.sum(axis=2), (weight * x).sum(axis=2)
    scale, minimum = span / np.float32(most), -least
    best = np.full(span.shape, np.inf, dtype=np.float32)
    for reach in np.arange(most - 1.0, most + 1.01, 0.1, dtype=np.float32):
        levels = np.rint((x - least[..., None]) * _over(reach, span)[..., None]).clip(0, most)
        heavy = weight * levels
        sum_l, sum_ll, sum_lx = heavy.sum(2), (heavy * levels).sum(2), (heavy * x).sum(2)
        determinant = total * sum_ll - sum_l * sum_l
        a = _over(total * sum_lx - weighted * sum_l, determinant)
        b = _over(sum_ll * weighted - sum_l * sum_lx, determinant)
        # No minimum above zero can be written.
        above = b > 0
        a, b = np.where(above, _over(sum_lx, sum_ll), a), np.where(above, np.float32(0), b)
        off = a[..., None] * levels + b[..., None] - x
        error = (weight * off * off).sum(axis=2)
        better = (error < best) & (a > 0)
        best = np.where(better, error, best)
        scale, minimum = np.where(better, a, scale), np.where(better, -b, minimum)
    return scale * unit, minimum * unit


def _pack_sixes(scales: NDArray[np.uint8], minima: NDArray[np.uint8]) -> Bytes:
    """Eight scales and eight minima of six bits in 12 bytes."""
    first = (scales[:, :4] & 0x3F) | ((scales[:, 4:] & 0x30) << 2)
    second = (minima[:, :4] & 0x3F) | ((minima[:, 4:] & 0x30) << 2)
    third = (scales[:, 4:] & 0x0F) | ((minima[:, 4:] & 0x0F) << 4)
    return np.concatenate((first, second, third), axis=1)


def _symmetric(blocks: Floats) -> Bytes:
    """Runs of 16 as ``scale * level``, levels -32 to 31."""
    x = blocks.reshape(-1, 16, 16)
    scale = _search_symmetric(x)
    # The scale furthest from zero becomes -128, the byte that reaches furthest.
    at = np.abs(scale).argmax(axis=1, keepdims=True)
    coarse = _half(np.take_along_axis(scale, at, axis=1) / np.float32(-128))
    big = coarse.astype(np.float32)
    scales = np.rint(_over(scale, big)).clip(-128, 127).astype(np.int8)
    step = (big * scales)[..., None]
    levels = np.rint(_over(x, step)).clip(-32, 31).astype(np.int8) + 32
    quarters = levels.view(np.uint8).reshape(-1, 2, 4, 32)
    low = (quarters[:, :, :2] & 0x0F) | ((quarters[:, :, 2:] & 0x0F) << 4)
    shifts = np.array((0, 2, 4, 6), dtype=np.uint8)[:, None]
    high = np.bitwise_or.reduce((quarters >> 4) << shifts, axis=2)
    parts = low.reshape(-1, 128), high.reshape(-1, 64), scales.view(np.uint8), coarse.view(np.uint8)
    return np.concatenate(parts, axis=1)


def _search_symmetric(x: Floats) -> Floats:
    """The scales (n, 16) that fit ``x`` (n, 16, 16) best of those tried."""
    at = np.abs(x).argmax(axis=2)[..., None]
    largest = np.take_along_axis(x, at, axis=2)
    unit = np.abs(largest)
    x, largest = _over(x, unit), np.sign(largest)
    weight = x * x
    scale = np.zeros(x.shape[:2], dtype=np.float32)
    best = np.full(scale.shape, -1, dtype=np.float32)
    for reach in np.arange(-32.9, -31.0, 0.1, dtype=np.float32):
        levels = np.rint(x * _over(reach, largest)).clip(-32, 31)
        heavy = weight * levels
        sum_lx, sum_ll = (heavy * x).sum(axis=2), (heavy * levels).sum(axis=2)
        # The best scale for these levels is sum_lx / sum_ll, and lowers the error by this.
        gain = _over(sum_lx * sum_lx, sum_ll)
        better = gain > best
        best = np.where(better, gain, best)
        scale = np.where(better, _over(sum_lx, sum_ll), scale)
    return scale * unit[..., 0]
