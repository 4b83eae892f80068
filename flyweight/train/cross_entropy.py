"""The head's product and the cross-entropy together, in chunks, gradients and all."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flyweight.engine._native import kernels
from flyweight.train.kernels import call, numbers

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

    A second value, for the record and without a gradient: the cross-entropy alone, whatever
    smoothing and z add to it.
    """

    @staticmethod
    def forward(
        ctx: Any, h_XD: Tensor, weight_VD: Tensor, targets_X: Tensor, terms: Terms
    ) -> tuple[Tensor, Tensor]:
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
        plain: float | Tensor = 0.0
        for start in range(0, len(h_XD), chunk):
            part = h_XD[start : start + chunk]
            logits = torch.mm(part, weight.t(), out=logits_CV[: len(part)])
            whole, bare = cross_entropy(logits, targets_X[start : start + chunk], terms)
            total, plain = total + whole, plain + bare
            if need:
                torch.mm(logits, weight, out=grad_h[start : start + chunk])
                # Transposing the narrow factor, not the logits, saves the product half its time.
                part_VD = torch.mm(part.t().contiguous(), logits, out=part_DV).t()
                if start == 0:
                    grad_w.copy_(part_VD)
                else:
                    grad_w.add_(part_VD)
        loss = torch.as_tensor(total, dtype=torch.float32, device=h_XD.device)
        record = torch.as_tensor(plain, dtype=torch.float32, device=h_XD.device)
        ctx.mark_non_differentiable(record)
        return loss, record

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_h, grad_w = ctx.gradients
        # Handed on, not copied: a second backward pass has nothing to start from.
        del ctx.gradients
        # A card is not asked what it has computed, for that would wait for it.
        if grad.device.type != "cpu" or grad != 1:
            grad_h.mul_(grad)
            grad_w.mul_(grad)
        return grad_h, grad_w, None, None


def cross_entropy(
    logits_XV: Tensor, targets_X: Tensor, terms: Terms
) -> tuple[float | Tensor, float | Tensor]:
    """The loss of these logits and its cross-entropy alone, over ``terms.divisor``; the loss's
    gradient takes the logits' place.

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
    own_X1 = u_XV.gather(1, target_X1)
    loss_X1 = lse_X1 - kept * own_X1 + terms.z * lse_X1.square()
    if terms.smoothing:
        loss_X1 -= terms.smoothing * u_XV.mean(dim=-1, keepdim=True)
    grad_XV = u_XV.sub_(lse_X1).exp_().mul_(1 + 2 * terms.z * lse_X1)
    grad_XV.sub_(terms.smoothing / u_XV.shape[1])
    grad_XV.scatter_add_(1, target_X1, torch.full_like(lse_X1, -kept))
    logits_XV.copy_(grad_XV.mul_(counts_X1 * (terms.scale / terms.divisor)))
    plain_X1 = (lse_X1 - own_X1) * counts_X1
    return (loss_X1 * counts_X1).sum() / terms.divisor, plain_X1.sum() / terms.divisor


def _on_cpu(logits_XV: Tensor, targets_X: Tensor, terms: Terms) -> tuple[float, float]:
    """One pass over each row, while it is in the cache; the rows are shared among the threads."""
    more = terms.smoothing != 0 or terms.z != 0
    if more:
        own, mean = _before(logits_XV, targets_X, terms)
    losses = np.empty(len(logits_XV), np.float32)
    some = terms.scale, 1 / terms.divisor, terms.smoothing, terms.z
    call(kernels.cross_entropy, numbers(logits_XV), numbers(targets_X), *some, losses)
    # Summed all at once and in float64: the same for any number of threads.
    loss = plain = float(losses.sum(dtype=np.float64)) / terms.divisor
    if more:
        # lse + z lse² is known from the loss; solved for lse so that nothing cancels at a small z.
        known = losses + (1 - terms.smoothing) * own + terms.smoothing * mean
        counts = numbers(targets_X) >= 0
        known, own = known[counts], own[counts]
        lse = 2 * known / (1 + np.sqrt(1 + 4 * terms.z * known))
        plain = float((lse - own).sum()) / terms.divisor
    return loss, plain


def _before(
    logits_XV: Tensor, targets_X: Tensor, terms: Terms
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The target's scaled logit and the mean of all, (X,) each, before the gradient takes over."""
    own_X = logits_XV.gather(1, targets_X.clamp(min=0)[:, None])[:, 0]
    mean_X = logits_XV.mean(dim=1, dtype=torch.float32)
    return terms.scale * own_X.double().numpy(), terms.scale * mean_X.double().numpy()
