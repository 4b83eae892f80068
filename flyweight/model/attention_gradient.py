"""A faster gradient for PyTorch's attention on the CPU, in bfloat16.

PyTorch computes the attention; its fused kernel also returns each row's log-sum-exp. With that,
the backward pass is five matrix products over tiles of the scores and two passes between them,
where PyTorch's own backward kernel takes about 1.5 times as long (docs/lab-notes.md).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import (
    register_flop_formula,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

# Keys a tile: of the scores on the diagonal's tiles, half are for nothing.
_TILE = 128
# Scores at a time, so that they stay in the cache between one product and the next.
_SCORES = 1 << 19


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float
) -> Tensor:
    """softmax(scale q kᵀ + bias) v. Returns (B, H, T, D).

    q (B, H, T, D), k and v (B, G, S, D) with H a multiple of G. What a query sees: itself and
    what stands before it where ``causal`` (then S = T and no mask), else what ``mask`` tells,
    bool or additive, broadcastable to (B, H, T, S); None: everything. A bool mask over S = T
    shows nothing later than the query either.
    """
    training = torch.is_grad_enabled() and q.requires_grad and q.shape[2] == k.shape[2]
    known = causal if mask is None else mask.dtype == torch.bool
    if training and known and q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return causal_attention(q, k, v, mask, scale)[0]
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        is_causal=causal,
        scale=scale,
        enable_gqa=k.shape[1] < q.shape[1],
    )


@torch.library.custom_op("flyweight::causal_attention", mutates_args=())
def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """PyTorch's fused kernel: the output (B, H, T, D) and each row's log-sum-exp (B, H, T).

    An operator of its own, as its gradient is: torch.compile takes each as one call, where
    tracing the tiles costs it minutes.
    """
    bias = None
    if mask is not None:
        bias = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, float("-inf"))
    k, v = _repeated(k, v, q.shape[1])
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, mask is None, attn_mask=bias, scale=scale
    )
    # The layout that the fake below promises, and that the model's next reshape needs.
    return out.transpose(1, 2).contiguous().transpose(1, 2), lse.contiguous()


@torch.library.custom_op("flyweight::causal_attention_backward", mutates_args=())
def causal_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    mask: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, tile by tile of keys, with L the log-sum-exp:

    P = exp(scale q kᵀ - L), dV = Pᵀ dO, dS = P ∘ (dO vᵀ - rowsum(dO ∘ O)), dQ = scale dS k,
    dK = scale dSᵀ q (arXiv:2205.14135, appendix B.2). Both subtractions happen inside the matrix
    products, in float32, as two more columns of q and dO against ones in k and v: where P is
    large its exponent is near zero, and bfloat16 loses next to nothing.
    """
    batch, heads, length, dim = q.shape
    groups = heads // k.shape[1]
    repeated_k, repeated_v = _repeated(k, v, heads)
    delta = (grad * out).sum(-1, dtype=torch.float32)
    queries = _joined(q * scale, -lse.view(batch, heads, length))
    grads = _joined(grad, -delta)
    ones = q.new_ones(batch, heads, length, 2)
    keys, values = (torch.cat((t, ones), dim=-1).flatten(0, 1) for t in (repeated_k, repeated_v))
    if mask is not None:
        mask = mask.expand(batch, heads, length, length)
    dq = torch.zeros(batch * heads, length, dim + 2)
    dk, dv = (q.new_empty(batch * heads, length, dim) for _ in range(2))
    at_once = max(1, _SCORES // (_TILE * length))
    for start in range(0, length, _TILE):
        # A tile of keys against every query that may see some of them.
        tile, later = slice(start, min(start + _TILE, length)), slice(start, None)
        key, value = keys[:, tile].contiguous(), values[:, tile].contiguous()
        for first in range(0, batch * heads, at_once):
            some = slice(first, first + at_once)
            query, theirs = queries[some, later].contiguous(), grads[some, later].contiguous()
            weights = torch.bmm(key[some], query.mT).exp_()  # (·, keys, queries)
            if mask is None:
                weights[:, :, : tile.stop - start].triu_()
            else:
                one = torch.arange(first, min(first + at_once, batch * heads))
                seen = mask[:, :, later, tile][one // heads, one % heads]
                weights.masked_fill_(~seen.mT, 0.0)
            dv[some, tile] = torch.bmm(weights, theirs)[..., :dim]
            weights *= torch.bmm(value[some], theirs.mT)
            dk[some, tile] = torch.bmm(weights, query)[..., :dim]
            dq[some, later] += torch.bmm(weights.mT, key[some])
    dq = (dq[..., :dim] * scale).to(q.dtype).view(q.shape)
    if groups == 1:
        return dq, dk.view(k.shape), dv.view(k.shape)
    grouped = (batch, k.shape[1], groups, length, dim)
    return dq, dk.view(grouped).sum(2), dv.view(grouped).sum(2)


@causal_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    batch, heads, length, dim = q.shape
    out = q.new_empty(batch, length, heads, dim).transpose(1, 2)
    return out, q.new_empty(q.shape[:3], dtype=torch.float32)


@causal_attention_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.mask, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, *output)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
    return *causal_attention_backward(grad, *ctx.saved_tensors, ctx.mask, ctx.scale), None, None


causal_attention.register_autograd(_backward, setup_context=_keep)


@register_flop_formula(torch.ops.flyweight.causal_attention)
def _flops(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(q, k, v))


@register_flop_formula(torch.ops.flyweight.causal_attention_backward)
def _backward_flops(grad: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(grad, q, k, v))


def _repeated(k: Tensor, v: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Keys and values once for every query head that reads them."""
    groups = heads // k.shape[1]
    if groups == 1:
        return k, v
    return k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)


def _joined(x: Tensor, column: Tensor) -> Tensor:
    """x with float32 ``column`` as two more bfloat16 columns, its value and what that rounds off.

    (B, H, T, D) and (B, H, T) to (B·H, T, D + 2).
    """
    high = column.to(x.dtype)
    low = (column - high.float()).to(x.dtype)
    return torch.cat((x, high[..., None], low[..., None]), dim=-1).flatten(0, 1)
