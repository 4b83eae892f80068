"""Causal attention for training on the CPU in bfloat16, in tiles that stay in the cache.

PyTorch's kernel behind ``scaled_dot_product_attention`` multiplies at about a third of the
machine's rate in bfloat16, and computes whole squares of scores up to a context of 512, hidden
half included. Here a tile is a block of queries of a few sequences against the keys up to the
block's end: little of what the mask hides is computed, products run at nearly the rate of large
ones, and scores live in one small buffer. The backward pass makes the scores again.

Probabilities are rounded to bfloat16 before they meet the values, as in PyTorch's kernel. Scores
are rounded as well, by no more than the rounding of queries and keys has already moved them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

# Queries a tile: smaller blocks skip more of what the mask hides, larger ones multiply faster.
_BLOCK = 128
# Matrices a product: enough of them keep every thread busy to the end.
_MATRICES = 16


def applies(q_BHTD: Tensor, k_BGSD: Tensor) -> bool:
    """Whether this is training on the CPU in bfloat16, with queries and keys side by side."""
    return (
        q_BHTD.device.type == "cpu"
        and q_BHTD.dtype == torch.bfloat16
        and q_BHTD.shape[2] == k_BGSD.shape[2]
        and torch.is_grad_enabled()
    )


def tiled_attention(
    q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """softmax(scale q kᵀ + mask) v, causal. (B, H, T, D).

    ``mask``: None, or one that hides the future itself: bool (True is visible) or additive,
    broadcastable to (B, H, T, T). H is a multiple of G (grouped queries).
    """
    groups, heads = k_BGTD.shape[1], q_BHTD.shape[1]
    if groups < heads:
        # Copies of keys and values are small beside the scores.
        k_BGTD = k_BGTD.repeat_interleave(heads // groups, dim=1)
        v_BGTD = v_BGTD.repeat_interleave(heads // groups, dim=1)
    return _attend(q_BHTD, k_BGTD, v_BGTD, mask, scale)


@torch.library.custom_op("flyweight::tiled_attention", mutates_args=())
def _attend(
    q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    q, k, v = (t.contiguous() for t in (q_BHTD, k_BHTD, v_BHTD))
    y = torch.empty_like(q)
    for tile in _Tiles(q.shape, mask, scale):
        p_NQS = tile.probabilities(q, k)
        tile.queries(y).copy_(torch.bmm(p_NQS, tile.keys(v)))
    return y


@torch.library.custom_op("flyweight::tiled_attention_backward", mutates_args=())
def _attend_backward(
    dy_BHTD: Tensor,
    q_BHTD: Tensor,
    k_BHTD: Tensor,
    v_BHTD: Tensor,
    mask: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """dV = Pᵀ dY, dP = dY Vᵀ, dS = P (dP - Σ P dP), dQ = scale dS K, dK = scale dSᵀ Q."""
    dy, q, k, v = (t.contiguous() for t in (dy_BHTD, q_BHTD, k_BHTD, v_BHTD))
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    for tile in _Tiles(q.shape, mask, scale):
        p_NQS = tile.probabilities(q, k)
        dy_NQD = tile.queries(dy)
        ds_NQS = tile.buffer(1)
        torch.bmm(dy_NQD, tile.keys(v).transpose(1, 2), out=ds_NQS)
        tile.add(dv, torch.bmm(p_NQS.transpose(1, 2), dy_NQD))
        torch.ops.aten._softmax_backward_data.out(
            ds_NQS, p_NQS, -1, ds_NQS.dtype, grad_input=ds_NQS
        )
        ds_NQS *= scale
        tile.queries(dq).copy_(torch.bmm(ds_NQS, tile.keys(k)))
        tile.add(dk, torch.bmm(ds_NQS.transpose(1, 2), tile.queries(q)))
    return dq, dk, dv


class _Tiles:
    """The tiles of one call: sequences a few at a time, blocks of queries from the last back."""

    def __init__(self, shape: torch.Size, mask: Tensor | None, scale: float) -> None:
        self.batch, self.heads, self.length, self.dim = shape
        self.scale = scale
        self.rows = min(self.batch, -(-_MATRICES // self.heads))
        block = min(_BLOCK, self.length)
        size = self.rows * self.heads * block * self.length
        self.buffers = torch.empty(2, size, dtype=torch.bfloat16)
        self.hidden: Tensor | None = None
        self.bias: Tensor | None = None
        if mask is None:
            future = torch.ones(block, block, dtype=torch.bool).triu(1)
            self.bias = torch.zeros(block, block).masked_fill(future, float("-inf")).bfloat16()
        elif mask.dtype == torch.bool:
            self.hidden = ~mask
        else:
            self.bias = mask
        self.given = mask is not None

    def __iter__(self) -> Iterator[_Tile]:
        for row in range(0, self.batch, self.rows):
            for begin in reversed(range(0, self.length, _BLOCK)):
                yield _Tile(self, row, min(self.batch, row + self.rows), begin)


class _Tile:
    """Queries ``begin`` to ``end`` of sequences ``first`` to ``last``, all heads: N matrices."""

    def __init__(self, tiles: _Tiles, first: int, last: int, begin: int) -> None:
        self.tiles, self.rows, self.begin = tiles, slice(first, last), begin
        self.end = min(tiles.length, begin + _BLOCK)
        self.shape = (last - first, tiles.heads, self.end - begin, self.end)

    def queries(self, x_BHTD: Tensor) -> Tensor:
        return x_BHTD[self.rows].flatten(0, 1)[:, self.begin : self.end]

    def keys(self, x_BHTD: Tensor) -> Tensor:
        return x_BHTD[self.rows].flatten(0, 1)[:, : self.end]

    def add(self, total_BHTD: Tensor, part_NSD: Tensor) -> None:
        """Sum over a sequence's blocks; the last block comes first and reaches every key."""
        if self.end == self.tiles.length:
            self.keys(total_BHTD).copy_(part_NSD)
        else:
            self.keys(total_BHTD).add_(part_NSD)

    def buffer(self, which: int) -> Tensor:
        rows, heads, queries, keys = self.shape
        flat = self.tiles.buffers[which, : rows * heads * queries * keys]
        return flat.view(rows * heads, queries, keys)

    def probabilities(self, q_BHTD: Tensor, k_BHTD: Tensor) -> Tensor:
        """softmax(scale q kᵀ + mask) of the tile, in buffer 0. (N, queries, keys)."""
        s_NQS = self.buffer(0)
        q_NQD, k_NSD = self.queries(q_BHTD), self.keys(k_BHTD)
        torch.baddbmm(s_NQS, q_NQD, k_NSD.mT, beta=0, alpha=self.tiles.scale, out=s_NQS)
        if self.tiles.hidden is not None:
            s_NQS.view(self.shape).masked_fill_(self._part(self.tiles.hidden), float("-inf"))
        elif self.tiles.bias is not None and self.tiles.given:
            s_NQS.view(self.shape).add_(self._part(self.tiles.bias))
        elif self.tiles.bias is not None:
            queries = self.end - self.begin
            s_NQS[:, :, self.begin :].add_(self.tiles.bias[:queries, :queries])
        return torch.softmax(s_NQS, dim=-1, out=s_NQS)

    def _part(self, mask: Tensor) -> Tensor:
        """The mask's part that lies on the tile, broadcastable to its shape."""
        mask = mask[(None,) * (4 - mask.ndim)]
        rows = self.rows if mask.shape[0] > 1 else slice(None)
        return mask[rows, :, self.begin : self.end, : self.end]


@_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


@_attend_backward.register_fake
def _(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))
    return dq, dk, dv


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, v, mask, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, mask)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, mask = ctx.saved_tensors
    return *_attend_backward(dy, q, k, v, mask, ctx.scale), None, None


_attend.register_autograd(_gradients, setup_context=_remember)


@register_flop_formula(torch.ops.flyweight.tiled_attention)
def _flops(q: tuple[int, ...], *_: Any, **__: Any) -> int:
    """Two products over the scores that a causal mask leaves, plus the blocks' corners."""
    batch, heads, length, dim = q
    return 2 * batch * heads * length * (length + min(_BLOCK, length)) * dim


@register_flop_formula(torch.ops.flyweight.tiled_attention_backward)
def _backward_flops(dy: tuple[int, ...], *_: Any, **__: Any) -> int:
    return 5 * _flops(dy) // 2
