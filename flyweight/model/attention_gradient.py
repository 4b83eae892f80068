"""PyTorch's attention on the CPU, in bfloat16, with a faster gradient.

PyTorch computes the attention; its fused kernel also returns each row's log-sum-exp. With that, a
kernel of ours, which train hands in (kernels.py), makes the gradients: times in docs/lab-notes.md.
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

from flyweight.model import kernels


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float
) -> Tensor:
    """softmax(scale q kᵀ + bias) v. Returns (B, H, T, D).

    q (B, H, T, D), k and v (B, G, S, D) with H a multiple of G. What a query sees: itself and
    what stands before it where ``causal`` (then S = T and no mask), else what ``mask`` tells,
    bool or additive, broadcastable to (B, H, T, S); None: everything.
    """
    if mask is not None and mask.ndim == 2:
        mask = mask[None, None]
    training = torch.is_grad_enabled() and q.requires_grad and q.shape[2] == k.shape[2]
    known = causal if mask is None else mask.dtype == torch.bool and mask.shape[1] == 1
    ours = kernels.handed_in is not None and q.device.type == "cpu" and q.dtype == torch.bfloat16
    if training and known and ours:
        return flash_attention(q, k, v, mask, scale)[0]
    if mask is not None and q.device.type == "cuda":
        # Of a card's fused kernels none is sure to take a mask and groups; the plain one, which
        # does, holds every score.
        k, v = _repeated(k, v, q.shape[1])
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        is_causal=causal,
        scale=scale,
        enable_gqa=k.shape[1] < q.shape[1],
    )


@torch.library.custom_op("flyweight::flash_attention", mutates_args=())
def flash_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """PyTorch's fused kernel: the output (B, H, T, D) and each row's log-sum-exp (B, H, T).

    ``mask`` (B or 1, 1, T, T) bool; None: causal. An operator of its own, as its gradient is, so
    that torch.compile takes each as one call.
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


@torch.library.custom_op("flyweight::flash_attention_backward", mutates_args=())
def flash_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    mask: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, whose shapes they have (arXiv:2205.14135, appendix B.2)."""
    assert kernels.handed_in is not None, "attention above asks for it"
    return kernels.handed_in.attention_gradients(grad, q, k, v, out, lse, mask, scale)


@flash_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    batch, heads, length, dim = q.shape
    out = q.new_empty(batch, length, heads, dim).transpose(1, 2)
    return out, q.new_empty(q.shape[:3], dtype=torch.float32)


@flash_attention_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.mask, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, *output)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
    return *flash_attention_backward(grad, *ctx.saved_tensors, ctx.mask, ctx.scale), None, None


flash_attention.register_autograd(_backward, setup_context=_keep)


@register_flop_formula(torch.ops.flyweight.flash_attention)
def _flops(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(q, k, v))


@register_flop_formula(torch.ops.flyweight.flash_attention_backward)
def _backward_flops(grad: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(grad, q, k, v))


def _repeated(k: Tensor, v: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Keys and values once for every query head that reads them."""
    groups = heads // k.shape[1]
    if groups == 1:
        return k, v
    return k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
