"""The numbers that the bytes of ggml's tensor formats stand for.

The formats: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h. Rows lie one after
another, each a whole number of blocks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from flyweight.files.formats import Format
from flyweight.spec.errors import FlyweightError

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


# The sixteen steps of IQ4_NL.
_STEPS = np.array(
    (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113), dtype=np.float32
)


def dequantise(data: Bytes, form: Format) -> Floats:
    """The numbers of rows of ``form``. (..., bytes of a row) to (..., columns).

    Equal bit for bit to ggml's own.
    """
    if data.shape[-1] % form.size:
        raise FlyweightError(
            f"a row of {data.shape[-1]} bytes is no whole number of {form.name} blocks"
            f" ({form.size} bytes)"
        )
    columns = data.shape[-1] // form.size * form.block
    blocks = np.ascontiguousarray(data).reshape(-1, form.size)
    return _READ[form.name](blocks).reshape(*data.shape[:-1], columns)


def _half(blocks: Bytes, at: int) -> Floats:
    """The half-precision number at byte ``at`` of every block. (n, 1)"""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)


def _nibbles(blocks: Bytes, at: int) -> Bytes:
    """32 nibbles from byte ``at``: the low ones of 16 bytes, then the high ones. (n, 32)"""
    packed = blocks[:, at : at + 16]
    return np.concatenate((packed & 0x0F, packed >> 4), axis=1)


def _fifth_bits(blocks: Bytes, at: int) -> Bytes:
    """32 bits from byte ``at``, each as 16 or 0. (n, 32)"""
    bits = np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little")
    return bits << np.uint8(4)


def _f32(blocks: Bytes) -> Floats:
    return blocks.view(np.float32)


def _f16(blocks: Bytes) -> Floats:
    return blocks.view(np.float16).astype(np.float32)


def _bf16(blocks: Bytes) -> Floats:
    return (blocks.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _q4_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * (_nibbles(blocks, 2).view(np.int8) - 8).astype(np.float32)


def _q4_1(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * _nibbles(blocks, 4).astype(np.float32) + _half(blocks, 2)


def _q5_0(blocks: Bytes) -> Floats:
    levels = (_nibbles(blocks, 6) | _fifth_bits(blocks, 2)).view(np.int8) - 16
    return _half(blocks, 0) * levels.astype(np.float32)


def _q5_1(blocks: Bytes) -> Floats:
    levels = _nibbles(blocks, 8) | _fifth_bits(blocks, 4)
    return _half(blocks, 0) * levels.astype(np.float32) + _half(blocks, 2)


def _q8_0(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _iq4_nl(blocks: Bytes) -> Floats:
    return _half(blocks, 0) * _STEPS[_nibbles(blocks, 2)]


def _scales_and_minima(packed: Bytes) -> tuple[Floats, Floats]:
    """Eight scales and eight minima of six bits each, from 12 bytes. (n, 8) each."""
    scales, minima, rest = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scale = np.concatenate((scales & 0x3F, (rest & 0x0F) | ((scales >> 2) & 0x30)), axis=1)
    minimum = np.concatenate((minima & 0x3F, (rest >> 4) | ((minima >> 2) & 0x30)), axis=1)
    return scale.astype(np.float32), minimum.astype(np.float32)


def _eight_of_nibbles(packed: Bytes) -> Bytes:
    """128 bytes as eight runs of 32: of each 32 bytes the low nibbles, then the high ones."""
    packed = packed.reshape(-1, 4, 1, 32)
    return np.concatenate((packed & 0x0F, packed >> 4), axis=2).reshape(-1, 8, 32)


def _of_eight(blocks: Bytes, levels: Bytes) -> Floats:
    """Q4_K and Q5_K: a scale and a minimum to each run of 32 levels."""
    scale, minimum = _scales_and_minima(blocks[:, 4:16])
    scale, minimum = _half(blocks, 0) * scale, _half(blocks, 2) * minimum
    return scale[..., None] * levels.astype(np.float32) - minimum[..., None]


def _q4_k(blocks: Bytes) -> Floats:
    return _of_eight(blocks, _eight_of_nibbles(blocks[:, 16:]))


def _q5_k(blocks: Bytes) -> Floats:
    shifts = np.arange(8, dtype=np.uint8)[:, None]
    fifth = (blocks[:, None, 16:48] >> shifts) & np.uint8(1)
    return _of_eight(blocks, _eight_of_nibbles(blocks[:, 48:]) | (fifth << np.uint8(4)))


def _q6_k(blocks: Bytes) -> Floats:
    low = blocks[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate((low & 0x0F, low >> 4), axis=2).reshape(-1, 2, 4, 32)
    shifts = np.array((0, 2, 4, 6), dtype=np.uint8)[:, None]
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & 3
    levels = ((low | (high << 4)).view(np.int8) - 32).reshape(-1, 16, 16)
    scale = _half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return scale[..., None] * levels.astype(np.float32)


_READ: dict[str, Callable[[Bytes], Floats]] = {
    "f32": _f32,
    "f16": _f16,
    "bf16": _bf16,
    "q4_0": _q4_0,
    "q4_1": _q4_1,
    "q5_0": _q5_0,
    "q5_1": _q5_1,
    "q8_0": _q8_0,
    "q4_k": _q4_k,
    "q5_k": _q5_k,
    "q6_k": _q6_k,
    "iq4_nl": _iq4_nl,
}
