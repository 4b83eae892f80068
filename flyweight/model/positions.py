"""Order in attention: rotary embeddings, linear biases, and buckets of distances."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor

from flyweight.model.kernels import kernels_for
from flyweight.spec import frequencies as spec_frequencies
from flyweight.spec.position import Position


def rope_frequencies(position: Position, rotary_dim: int, length: int = 0) -> Tensor:
    """``spec.frequencies.rope_frequencies`` as a tensor, on the CPU. Shape (d/2,)."""
    return torch.tensor(spec_frequencies.rope_frequencies(position, rotary_dim, length))


def rope_tables(frequencies: Tensor, positions_T: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of position times frequency, float32. Shape (T, d/2) each."""
    angles = positions_T.to(torch.float32)[:, None] * frequencies[None]
    return angles.cos(), angles.sin()


def positions_in_document(documents_BT: Tensor) -> Tensor:
    """``text.ngrams.positions_in_document`` where the tensor is. (B, T), int64."""
    index_T = torch.arange(documents_BT.shape[1], device=documents_BT.device)
    starts_BT = torch.zeros_like(documents_BT, dtype=torch.bool)
    starts_BT[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
    return index_T - torch.where(starts_BT, index_T, 0).cummax(dim=1).values


def rotate(x_BHTD: Tensor, cos_TR: Tensor, sin_TR: Tensor, layout: str) -> Tensor:
    """Turn the first 2R of D dimensions by their position's angle, leave the others.

    Layout "half" pairs dimension i with i + R, "interleaved" pairs 2i with 2i + 1.
    """
    kernels = kernels_for(x_BHTD)
    if kernels is not None:
        return kernels.rotate(x_BHTD, cos_TR, sin_TR, layout)
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


def alibi_slopes(heads: int) -> Tensor:
    """``spec.frequencies.alibi_slopes`` as a tensor, on the CPU. Shape (heads,)."""
    return torch.tensor(spec_frequencies.alibi_slopes(heads))
