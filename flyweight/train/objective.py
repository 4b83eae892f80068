"""The next-token loss, with the head and the cross-entropy computed together in chunks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flyweight.model.decoder import Decoder
from flyweight.spec.model import SlotInput

# Logits held at a time: 2^23 float32 values, 32 MiB, about a last-level cache.
_LOGITS_AT_ONCE = 1 << 23


class LinearCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies of ``scale * h Wᵀ`` against targets, in nats.

    Gradients are made in the forward pass, chunk by chunk, so that no more than a chunk of
    logits exists at a time: dL/dz = softmax(z) - onehot(target).
    """

    @staticmethod
    def forward(
        ctx: Any, h_XD: Tensor, weight_VD: Tensor, targets_X: Tensor, scale: float
    ) -> Tensor:
        weight = weight_VD.to(h_XD.dtype)
        vocab = len(weight)
        chunk = max(1, min(len(h_XD), _LOGITS_AT_ONCE // vocab))
        need = any(ctx.needs_input_grad)
        grad_h = torch.empty_like(h_XD) if need else None
        grad_w = torch.zeros_like(weight_VD) if need else None
        total = h_XD.new_zeros((), dtype=torch.float32)
        for start in range(0, len(h_XD), chunk):
            part = h_XD[start : start + chunk]
            target = targets_X[start : start + chunk]
            logits = F.linear(part, weight).float()
            if scale != 1.0:
                logits *= scale
            log_probs = torch.log_softmax(logits, dim=-1)
            picked = log_probs.gather(1, target[:, None])
            total -= picked.sum()
            if grad_h is None or grad_w is None:
                continue
            grad = log_probs.exp_()
            grad.scatter_add_(1, target[:, None], torch.full_like(picked, -1.0))
            grad_z = (grad if scale == 1.0 else grad * scale).to(h_XD.dtype)
            torch.mm(grad_z, weight, out=grad_h[start : start + chunk])
            grad_w += (grad_z.t() @ part).to(grad_w.dtype)
        ctx.save_for_backward(grad_h, grad_w)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_h, grad_w = ctx.saved_tensors
        return grad_h * grad.to(grad_h.dtype), grad_w * grad, None, None


def next_token_loss(
    model: Decoder,
    tokens_BT: Tensor,
    targets_BT: Tensor,
    documents_BT: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Sum over all positions of -ln p(target), float32, in nats.

    For byte slots: of the target's bytes and its end, each slot alone (an upper bound).
    """
    hidden = model.hidden(tokens_BT, documents_BT, dtype=dtype)
    if model.slots is not None:
        return model.slots.loss(hidden.flatten(0, 1), targets_BT.flatten())
    head = model.embedding.weight if model.head is None else model.head.weight
    return LinearCrossEntropy.apply(
        hidden.flatten(0, 1), head, targets_BT.flatten(), model.spec.scale.logits
    )


def reconstruction_loss(model: Decoder, tokens_BT: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The byte-slot model's auxiliary loss: each token spelled from its own pooled vector.

    Weighted by ``input.reconstruction`` (arXiv:2405.14159); None for other models.
    """
    spec = model.spec.input
    if model.slots is None or not isinstance(spec, SlotInput) or spec.reconstruction == 0:
        return None
    vectors = model.slots.embed(tokens_BT, dtype).flatten(0, 1)
    return spec.reconstruction * model.slots.loss(vectors, tokens_BT.flatten())
