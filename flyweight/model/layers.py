"""Linear maps and norms whose weights stay in float32 while activations may be bfloat16."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flyweight.model.kernels import kernels_for
from flyweight.spec.model import Norm as NormSpec


class Linear(nn.Module):
    """y = x Wᵀ + b in the dtype of x. ``weight``: (outputs, inputs)."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class Norm(nn.Module):
    """RMSNorm (arXiv:1910.07467) or LayerNorm (arXiv:1607.06450), per the spec."""

    def __init__(self, spec: NormSpec, width: int) -> None:
        super().__init__()
        self.kind, self.eps, self.width = spec.kind, spec.eps, width
        self.weight = nn.Parameter(torch.ones(width)) if spec.gain else None
        self.bias = nn.Parameter(torch.zeros(width)) if spec.bias else None

    def forward(self, x: Tensor) -> Tensor:
        kernels = kernels_for(x) if self.kind == "rms" else None
        if kernels is not None:
            return kernels.rms_norm(x, self.weight, self.eps)
        weight = None if self.weight is None else self.weight.to(x.dtype)
        if self.kind == "rms":
            return F.rms_norm(x, (self.width,), weight, self.eps)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.layer_norm(x, (self.width,), weight, bias, self.eps)


def dropped(x: Tensor, share: Tensor) -> Tensor:
    """x with a random ``share`` of its values zero, the others larger by 1 / (1 - share)."""
    kept = torch.rand(x.shape, device=x.device) >= share
    return x * (kept / (1 - share)).to(x.dtype)
