"""Order in attention: rotary embeddings, linear biases, and buckets of distances."""

from __future__ import annotations

from math import log, pi

import torch
from torch import Tensor

from flyweight.spec.position import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRope,
    Position,
)


def rope_frequencies(position: Position, rotary_dim: int, length: int = 0) -> Tensor:
    """Angular frequencies theta^(-2i/d) for i < d/2 (arXiv:2104.09864, eq. 15). Shape (d/2,).

    Scaled as ``position.scaling`` says for a sequence of ``length`` positions.
    """
    theta, scaling = position.theta, position.scaling
    exponent = torch.arange(0, rotary_dim, 2, dtype=torch.float64, device="cpu") / rotary_dim
    if isinstance(scaling, DynamicScaling) and length > scaling.original:
        stretch = scaling.factor * length / scaling.original - scaling.factor + 1
        theta *= stretch ** (rotary_dim / (rotary_dim - 2))
    frequencies = theta**-exponent
    if isinstance(scaling, LinearScaling) and scaling.factor is not None:
        frequencies /= scaling.factor
    elif isinstance(scaling, LongRope):
        factors = scaling.long if length > scaling.original else scaling.short
        if factors is not None:
            frequencies /= torch.tensor(factors, dtype=torch.float64, device="cpu")
    elif isinstance(scaling, Llama3Scaling):
        turns = scaling.original * frequencies / (2 * pi)
        kept = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
        frequencies *= kept + (1 - kept) / scaling.factor
    return frequencies.float()


def rope_tables(frequencies: Tensor, positions_T: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of position times frequency, float32. Shape (T, d/2) each."""
    angles = positions_T.to(torch.float32)[:, None] * frequencies[None]
    return angles.cos(), angles.sin()


def rotate(x_BHTD: Tensor, cos_TR: Tensor, sin_TR: Tensor, layout: str) -> Tensor:
    """Turn the first 2R of D dimensions by their position's angle, leave the others.

    Layout "half" pairs dimension i with i + R, "interleaved" pairs 2i with 2i + 1.
    """
    rotary = 2 * cos_TR.shape[-1]
    cos, sin = cos_TR.to(x_BHTD.dtype), sin_TR.to(x_BHTD.dtype)
    turned = x_BHTD[..., :rotary]
    if layout == "half":
        a, b = turned.chunk(2, dim=-1)
        result = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
    else:
        a, b = turned[..., 0::2], turned[..., 1::2]
        result = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
    if rotary == x_BHTD.shape[-1]:
        return result
    return torch.cat((result, x_BHTD[..., rotary:]), dim=-1)


def relative_buckets(position: Position, distance: Tensor, both_ways: bool) -> Tensor:
    """The bucket of each distance, query minus key (arXiv:1910.10683). int64, as ``distance``.

    A key that lies ahead of its query has the second half of the buckets where ``both_ways``;
    otherwise it counts as distance 0.
    """
    buckets = position.buckets // 2 if both_ways else position.buckets
    ahead = buckets * (distance < 0) if both_ways else torch.zeros_like(distance)
    steps = distance.abs() if both_ways else distance.clamp(min=0)
    exact = buckets // 2
    # In float32 and in this order, as the published models were trained: at powers of two the
    # quotient is whole, and which bucket it falls in is a matter of rounding.
    share = torch.log(steps.clamp(min=1).float() / exact) / log(position.max_distance / exact)
    far = (exact + (share * (buckets - exact)).long()).clamp(max=buckets - 1)
    return ahead + torch.where(steps < exact, steps, far)


def alibi_divisor(position: Position, length: int) -> float:
    """What the slopes are divided by for a sequence of ``length`` positions (arXiv:2310.13017)."""
    scaling = position.scaling
    if not isinstance(scaling, LinearScaling):
        return 1.0
    if scaling.original is None:
        return scaling.factor or 1.0
    return max(1.0, length / scaling.original)


def alibi_slopes(heads: int) -> Tensor:
    """One slope per head (arXiv:2108.12409, section 3). Shape (heads,), float32.

    For n a power of two: r, r², ... with r = 2^(-8/n). Otherwise those of the next lower power
    of two, then every second slope of twice that power.
    """
    power = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
    if power < heads:
        slopes += [2.0 ** (-4.0 * (2 * i + 1) / power) for i in range(heads - power)]
    return torch.tensor(slopes, dtype=torch.float32)
