"""RoPE's frequencies, ALiBi's slopes and their divisor: what a spec's positions come to.

Pure numpy, so that the PyTorch model and the kernels' runtime share one definition.
"""

from __future__ import annotations

from math import pi

import numpy as np
from numpy.typing import NDArray

from flyweight.spec.position import DynamicScaling, LinearScaling, Llama3Scaling, LongRope, Position

Floats = NDArray[np.float32]


def rope_frequencies(position: Position, rotary_dim: int, length: int = 0) -> Floats:
    """theta^(-2i/d) for i < d/2 (arXiv:2104.09864, eq. 15), scaled as ``position.scaling`` says
    for a sequence of ``length`` positions. Computed in float64; shape (d/2,)."""
    theta, scaling = position.theta, position.scaling
    exponent = np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim
    if isinstance(scaling, DynamicScaling) and length > scaling.original:
        stretch = scaling.factor * length / scaling.original - scaling.factor + 1
        theta *= stretch ** (rotary_dim / (rotary_dim - 2))
    frequencies = np.float64(theta) ** -exponent
    if isinstance(scaling, LinearScaling) and scaling.factor is not None:
        frequencies /= scaling.factor
    elif isinstance(scaling, LongRope):
        factors = scaling.long if length > scaling.original else scaling.short
        if factors is not None:
            frequencies /= np.array(factors, dtype=np.float64)
    elif isinstance(scaling, Llama3Scaling):
        turns = scaling.original * frequencies / (2 * pi)
        kept = ((turns - scaling.low) / (scaling.high - scaling.low)).clip(0, 1)
        frequencies *= kept + (1 - kept) / scaling.factor
    return frequencies.astype(np.float32)


def alibi_divisor(position: Position, length: int) -> float:
    """What the slopes are divided by for a sequence of ``length`` positions (arXiv:2310.13017)."""
    scaling = position.scaling
    if not isinstance(scaling, LinearScaling) or position.kind != "alibi":
        return 1.0
    if scaling.original is None:
        return scaling.factor or 1.0
    return max(1.0, length / scaling.original)


def alibi_slopes(heads: int) -> Floats:
    """One slope per head (arXiv:2108.12409, section 3). Shape (heads,).

    For n a power of two: r, r², ... with r = 2^(-8/n). Otherwise those of the next lower power
    of two, then every second slope of twice that power.
    """
    power = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
    if power < heads:
        slopes += [2.0 ** (-4.0 * (2 * i + 1) / power) for i in range(heads - power)]
    return np.array(slopes, dtype=np.float32)
