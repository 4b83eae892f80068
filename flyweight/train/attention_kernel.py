"""The engine's kernel for the gradients of attention, for the model, which may not import it."""

from __future__ import annotations

import os

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flyweight.engine._native import kernels
from flyweight.model import attention_gradient
from flyweight.train.threads import share


def hand_in() -> None:
    """Let the model's attention compute its gradients on the CPU in bfloat16 with the kernel.

    Not where the processor has but the portable kernels: PyTorch's own gradient is faster there.
    """
    isa = os.environ.get("FLYWEIGHT_ISA") or kernels.instruction_sets()[0]
    if isa != "portable":
        attention_gradient.kernel = gradients


def gradients(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    mask: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q (B, H, T, D), k and v (B, G, T, D), all bfloat16, as q, k and v are.

    ``grad`` and ``out`` (B, H, T, D), ``lse`` (B, H, T) float32, the log-sum-exp of the scores;
    ``mask`` (B or 1, 1, T, T) bool, True where the query (row) sees the key; None: causal.
    """
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    isa = os.environ.get("FLYWEIGHT_ISA", "")
    seen = None if mask is None else mask[:, 0].mT.contiguous().view(torch.uint8).numpy()
    given = [_bits(t) for t in (grad, q, k, v, out)]
    sums = lse.detach().numpy()
    made = [_bits(t) for t in (dq, dk, dv)]

    def part(first: int, last: int) -> None:
        kernels.attention_gradient(isa, *given, sums, seen, scale, *made, first, last)

    share(k.shape[0] * k.shape[1], part)
    return dq, dk, dv


def _bits(x: Tensor) -> NDArray[np.uint16]:
    return x.detach().view(torch.uint16).numpy()
