"""RoPE's frequencies, ALiBi's slopes and their divisor: what a spec's positions come to.

Plain Python, so that the PyTorch model and the kernels' runtime share one definition.
"""

from __future__ import annotations

from array import array
from math import pi

from flyweight.spec.position import DynamicScaling, LinearScaling, Llama3Scaling, LongRope, Position


def rope_frequencies(position: Position, rotary_dim: int, length: int = 0) -> array[float]:
    """theta^(-2i/d) for i < d/2 (arXiv:2104.09864, eq. 15), scaled as ``position.scaling`` says
    for a sequence of ``length`` positions. Computed in float64; d/2 numbers in float32."""
    return array("f", exact_frequencies(position, rotary_dim, length))


def exact_frequencies(position: Position, rotary_dim: int, length: int = 0) -> list[float]:
    """``rope_frequencies``, in float64."""
    theta, scaling = position.theta, position.scaling
    if isinstance(scaling, DynamicScaling) and length > scaling.original:
        stretch = scaling.factor * length / scaling.original - scaling.factor + 1
        theta *= stretch ** (rotary_dim / (rotary_dim - 2))
    frequencies = [theta ** -(i / rotary_dim) for i in range(0, rotary_dim, 2)]
    if isinstance(scaling, LinearScaling) and scaling.factor is not None:
        frequencies = [f / scaling.factor for f in frequencies]
    elif isinstance(scaling, LongRope):
        factors = scaling.long if length > scaling.original else scaling.short
        if factors is not None:
            frequencies = [f / factor for f, factor in zip(frequencies, factors, strict=True)]
    elif isinstance(scaling, Llama3Scaling):
        for i, frequency in enumerate(frequencies):
            turns = scaling.original * frequency / (2 * pi)
            kept = min(1.0, max(0.0, (turns - scaling.low) / (scaling.high - scaling.low)))
            frequencies[i] *= kept + (1 - kept) / scaling.factor
    return frequencies


def alibi_divisor(position: Position, length: int) -> float:
    """What the slopes are divided by for a sequence of ``length`` positions (arXiv:2310.13017)."""
    scaling = position.scaling
    if not isinstance(scaling, LinearScaling) or position.kind != "alibi":
        return 1.0
    if scaling.original is None:
        return scaling.factor or 1.0
    return max(1.0, length / scaling.original)


def alibi_slopes(heads: int) -> array[float]:
    """One slope per head (arXiv:2108.12409, section 3), in float32.

    For n a power of two: r, r², ... with r = 2^(-8/n). Otherwise those of the next lower power
    of two, then every second slope of twice that power.
    """
    power = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
    if power < heads:
        slopes += [2.0 ** (-4.0 * (2 * i + 1) / power) for i in range(heads - power)]
    return array("f", slopes)
