"""Kernels for the model's steps between products, and attention's gradient, handed in by train.

The model may not import the engine, which has them; without them it is PyTorch alone.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Kernels(Protocol):
    """Differentiable, on the CPU, in float32 and bfloat16; the plain versions are in the model."""

    def rms_norm(self, x: Tensor, gain: Tensor | None, eps: float) -> Tensor: ...

    def rotate(self, x_BHTD: Tensor, cos_TR: Tensor, sin_TR: Tensor, layout: str) -> Tensor: ...

    def relu2(self, x: Tensor) -> Tensor: ...

    def attention_gradients(
        self,
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        mask: Tensor | None,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of q (B, H, T, D), k and v (B, G, T, D), bfloat16 (arXiv:2205.14135, appendix B.2).

        ``out`` and ``grad`` as q; ``lse`` (B, H, T) float32, the scores' log-sum-exp; ``mask``
        (B or 1, 1, T, T) bool, True where the query (row) sees the key; None: causal.
        """


handed_in: Kernels | None = None


def kernels_for(x: Tensor) -> Kernels | None:
    """The kernels, where ``x`` is part of a training step on the CPU.

    Not under torch.compile, which fuses such steps itself.
    """
    if handed_in is None or torch.compiler.is_compiling():
        return None
    training = x.requires_grad and torch.is_grad_enabled() and x.device.type == "cpu"
    return handed_in if training and x.dtype in (torch.bfloat16, torch.float32) else None
