"""The head's product and the cross-entropy together, in chunks, gradients and all."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from flyweight.engine._native import kernels
from flyweight.train.kernels import instruction_set, numbers
from flyweight.train.threads import share

# Logits held at a time, in the hidden states' dtype (128 MiB in bfloat16): enough rows for products
# at full rate, and so few chunks that adding up their gradients by the weights costs little.
_LOGITS_AT_ONCE = 1 << 26


class Terms(NamedTuple):
    """Of a loss of logits x: cross-entropy of ``scale`` x, plus ``z`` times the squared log of the
    softmax's sum (arXiv:2204.02311), with ``smoothing`` of the target's weight spread over the
    vocabulary (arXiv:1512.00567); summed over the targets and divided by ``divisor``.
    """

    scale: float = 1.0
    divisor: float = 1.0
    smoothing: float = 0.0
    z: float = 0.0


class LinearCrossEntropy(torch.autograd.Function):
    """The loss of the logits h Wᵀ (X, V) for ``targets_X``; negative targets count for nothing.

    h (X, D), W (V, D). Gradients are made in the forward pass, chunk by chunk, so that no more
    than a chunk of logits exists at a time. One backward pass each. In nats, float32.
    """

    @staticmethod
    def forward(
        ctx: Any, h_XD: Tensor, weight_VD: Tensor, targets_X: Tensor, terms: Terms
    ) -> Tensor:
        weight = weight_VD.to(h_XD.dtype)
        vocab = len(weight)
        chunk = max(1, min(len(h_XD), _LOGITS_AT_ONCE // vocab))
        # The same buffers serve every chunk: fresh ones cost a page fault per 4 KiB.
        logits_CV = h_XD.new_empty(chunk, vocab)
        need = any(ctx.needs_input_grad)
        if need:
            grad_h, grad_w = torch.empty_like(h_XD), torch.empty_like(weight_VD)
            part_DV = weight.new_empty(weight.shape[1], vocab)
            ctx.gradients = grad_h, grad_w
        total: float | Tensor = 0.0
        for start in range(0, len(h_XD), chunk):
            part = h_XD[start : start + chunk]
            logits = torch.mm(part, weight.t(), out=logits_CV[: len(part)])
            total += cross_entropy(logits, targets_X[start : start + chunk], terms)
            if need:
                torch.mm(logits, weight, out=grad_h[start : start + chunk])
                # Transposing the narrow factor, not the logits, saves the product half its time.
                part_VD = torch.mm(part.t().contiguous(), logits, out=part_DV).t()
                if start == 0:
                    grad_w.copy_(part_VD)
                else:
                    grad_w.add_(part_VD)
        return torch.as_tensor(total, dtype=torch.float32, device=h_XD.device)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_h, grad_w = ctx.gradients
        # Handed on, not copied: a second backward pass has nothing to start from.
        del ctx.gradients
        if grad != 1:
            grad_h.mul_(grad)
            grad_w.mul_(grad)
        return grad_h, grad_w, None, None


def cross_entropy(logits_XV: Tensor, targets_X: Tensor, terms: Terms) -> float | Tensor:
    """The loss of these logits, over ``terms.divisor``; its gradient takes the logits' place.

    With lse = ln sum exp(u), u = scale x, e = smoothing: lse - (1 - e) u[target] - e mean(u)
    + z lse², whose gradient by u is (1 + 2 z lse) softmax(u) - (1 - e) onehot(target) - e / V.
    """
    if logits_XV.device.type == "cpu" and logits_XV.dtype in (torch.bfloat16, torch.float32):
        return _on_cpu(logits_XV, targets_X, terms)
    u_XV = logits_XV.float() * terms.scale
    counts_X1 = (targets_X >= 0)[:, None]
    target_X1 = targets_X.clamp(min=0)[:, None]
    lse_X1 = torch.logsumexp(u_XV, dim=-1, keepdim=True)
    kept = 1 - terms.smoothing
    loss_X1 = lse_X1 - kept * u_XV.gather(1, target_X1) + terms.z * lse_X1.square()
    if terms.smoothing:
        loss_X1 -= terms.smoothing * u_XV.mean(dim=-1, keepdim=True)
    grad_XV = u_XV.sub_(lse_X1).exp_().mul_(1 + 2 * terms.z * lse_X1)
    grad_XV.sub_(terms.smoothing / u_XV.shape[1])
    grad_XV.scatter_add_(1, target_X1, torch.full_like(lse_X1, -kept))
    logits_XV.copy_(grad_XV.mul_(counts_X1 * (terms.scale / terms.divisor)))
    return (loss_X1 * counts_X1).sum() / terms.divisor


def _on_cpu(logits_XV: Tensor, targets_X: Tensor, terms: Terms) -> float:
    """One pass over each row, while it is in the cache; the rows are shared among the threads."""
    logits, targets, isa = numbers(logits_XV), targets_X.numpy(), instruction_set()
    losses = np.empty(len(logits), np.float32)
    some = terms.scale, 1 / terms.divisor, terms.smoothing, terms.z

    def part(first: int, last: int) -> None:
        kernels.cross_entropy(isa, logits, targets, *some, losses, first, last)

    share(len(logits), part)
    # Summed all at once and in float64: the same for any number of threads.
    return float(losses.sum(dtype=np.float64)) / terms.divisor
