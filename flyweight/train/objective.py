"""The next-token loss, with the head and the cross-entropy computed together in chunks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flyweight.model.decoder import Decoder
from flyweight.spec.model import SlotInput

# Logits held at a time, in the hidden states' dtype (128 MiB in bfloat16): enough rows for products
# at full rate, and so few chunks that adding up their gradients by the weights costs little.
_LOGITS_AT_ONCE = 1 << 26
# Of those, float32 values at a time on the CPU: 4 MiB, so that each pass finds them in the cache.
_FLOATS_AT_ONCE = 1 << 20
# Below, a float32 probability loses digits.
_TINY = 1e-35


class LinearCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies of ``scale * h Wᵀ`` against targets over ``divisor``, in nats.

    Gradients are made in the forward pass, chunk by chunk, so that no more than a chunk of
    logits exists at a time: dL/dz = softmax(z) - onehot(target). One backward pass each.
    """

    @staticmethod
    def forward(
        ctx: Any,
        h_XD: Tensor,
        weight_VD: Tensor,
        targets_X: Tensor,
        scale: float,
        divisor: float,
    ) -> Tensor:
        weight = weight_VD.to(h_XD.dtype)
        vocab = len(weight)
        chunk = max(1, min(len(h_XD), _LOGITS_AT_ONCE // vocab))
        # The same buffers serve every chunk: fresh ones cost a page fault per 4 KiB.
        logits_CV = h_XD.new_empty(chunk, vocab)
        few = _FLOATS_AT_ONCE if h_XD.device.type == "cpu" else _LOGITS_AT_ONCE
        floats_RV = logits_CV.new_empty(
            max(1, min(chunk, few // vocab)), vocab, dtype=torch.float32
        )
        need = any(ctx.needs_input_grad)
        if need:
            grad_h, grad_w = torch.empty_like(h_XD), torch.empty_like(weight_VD)
            part_DV = weight.new_empty(weight.shape[1], vocab)
            ctx.gradients = grad_h, grad_w
        total = h_XD.new_zeros((), dtype=torch.float32)
        for start in range(0, len(h_XD), chunk):
            part = h_XD[start : start + chunk]
            target = targets_X[start : start + chunk]
            logits = torch.mm(part, weight.t(), out=logits_CV[: len(part)])
            for rows in range(0, len(part), len(floats_RV)):
                some = slice(rows, rows + len(floats_RV))
                total += _cross_entropy(logits[some], target[some], scale, floats_RV)
            if need:
                torch.mm(logits, weight, out=grad_h[start : start + chunk]).div_(divisor)
                # Transposing the narrow factor, not the logits, saves the product half its time.
                part_VD = torch.mm(part.t().contiguous(), logits, out=part_DV).t()
                # Divided on the way to float32: a pass over the weights for nothing is spared.
                if start == 0:
                    torch.div(part_VD, divisor, out=grad_w)
                else:
                    grad_w.add_(part_VD, alpha=1 / divisor)
        return total / divisor

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_h, grad_w = ctx.gradients
        # Handed on, not copied: a second backward pass has nothing to start from.
        del ctx.gradients
        if grad != 1:
            grad_h.mul_(grad)
            grad_w.mul_(grad)
        return grad_h, grad_w, None, None, None


def _cross_entropy(logits_RV: Tensor, targets_R: Tensor, scale: float, floats_RV: Tensor) -> Tensor:
    """The sum of cross-entropies; their gradient by the logits takes the logits' place."""
    p_RV = floats_RV[: len(logits_RV)].copy_(logits_RV)
    if scale != 1.0:
        p_RV *= scale
    torch.softmax(p_RV, dim=-1, out=p_RV)
    target_R1 = targets_R[:, None]
    picked_R1 = p_RV.gather(1, target_R1)
    log_R1 = picked_R1.log()
    # A target's probability too small for float32 still has a logarithm.
    tiny_R = picked_R1[:, 0] < _TINY
    if tiny_R.any():
        exact = (logits_RV[tiny_R].float() * scale).log_softmax(dim=-1)
        log_R1[tiny_R] = exact.gather(1, target_R1[tiny_R])
    p_RV.scatter_(1, target_R1, picked_R1 - 1)
    if scale != 1.0:
        p_RV *= scale
    logits_RV.copy_(p_RV)
    return -log_R1.sum()


def next_token_loss(
    model: Decoder,
    tokens_BT: Tensor,
    targets_BT: Tensor,
    documents_BT: Tensor | None,
    dtype: torch.dtype,
    divisor: float = 1.0,
) -> Tensor:
    """Sum over all positions of -ln p(target), over ``divisor``, float32, in nats.

    For byte slots: of the target's bytes and its end, each slot alone (an upper bound).
    """
    hidden = model.hidden(tokens_BT, documents_BT, dtype=dtype)
    if model.slots is not None:
        return model.slots.loss(hidden.flatten(0, 1), targets_BT.flatten()) / divisor
    head: Tensor | None = model.embedding.weight if model.head is None else model.head.weight
    assert head is not None
    hidden_XD = hidden.flatten(0, 1)
    if model.head is not None and model.head.bias is not None:
        # h Wᵀ + b is (h, 1) (W, b)ᵀ.
        head = torch.cat((head, model.head.bias[:, None]), dim=1)
        hidden_XD = torch.cat((hidden_XD, hidden_XD.new_ones(len(hidden_XD), 1)), dim=1)
    scale = model.spec.scale.logits
    return LinearCrossEntropy.apply(hidden_XD, head, targets_BT.flatten(), scale, divisor)


def reconstruction_loss(model: Decoder, tokens_BT: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The byte-slot model's auxiliary loss: each token spelled from its own pooled vector.

    Weighted by ``input.reconstruction`` (arXiv:2405.14159); None for other models.
    """
    spec = model.spec.input
    if model.slots is None or not isinstance(spec, SlotInput) or spec.reconstruction == 0:
        return None
    vectors = model.slots.embed(tokens_BT, dtype).flatten(0, 1)
    return spec.reconstruction * model.slots.loss(vectors, tokens_BT.flatten())
