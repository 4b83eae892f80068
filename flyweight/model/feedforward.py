"""The feed-forward branch: gated or not, alone or shared with low-rank updates."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flyweight.model.kernels import kernels_for
from flyweight.model.layers import Linear
from flyweight.spec.model import FeedForward as FeedForwardSpec


class LowRank(nn.Module):
    """The update V U x of rank r that one use adds to a shared matrix (arXiv:2405.14159)."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.down = Linear(inputs, rank)
        self.up = Linear(rank, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


class FeedForward(nn.Module):
    """SwiGLU(x) = W_down(silu(W_gate x) * W_up x); W_gate and W_up are the rows of one matrix.

    GEGLU has the GELU for silu; the others are W_down f(W_up x).
    """

    def __init__(self, spec: FeedForwardSpec, width: int, output: int | None = None) -> None:
        super().__init__()
        self.kind, self.gated = spec.kind, spec.gated
        if spec.gated:
            self.gate_up = Linear(width, 2 * spec.hidden, spec.bias)
        else:
            self.up = Linear(width, spec.hidden, spec.bias)
        self.down = Linear(spec.hidden, output or width, spec.bias)

    def forward(self, x: Tensor, update: FeedForwardUpdate | None = None) -> Tensor:
        expanded = self.gate_up(x) if self.gated else self.up(x)
        if update is not None:
            expanded = expanded + update.expand(x)
        if self.gated:
            gate, up = expanded.chunk(2, dim=-1)
            opened = F.silu(gate) if self.kind == "swiglu" else F.gelu(gate, approximate="tanh")
            hidden = opened * up
        elif self.kind == "gelu":
            hidden = F.gelu(expanded, approximate="tanh")
        elif self.kind == "gelu-exact":
            hidden = F.gelu(expanded)
        elif self.kind == "relu2":
            kernels = kernels_for(expanded)
            hidden = torch.relu(expanded).square() if kernels is None else kernels.relu2(expanded)
        else:
            hidden = torch.relu(expanded)
        out = self.down(hidden)
        return out if update is None else out + update.down(hidden)


class FeedForwardUpdate(nn.Module):
    """One use's low-rank updates of a shared feed-forward's matrices, gate and up each its own."""

    def __init__(self, spec: FeedForwardSpec, width: int, rank: int) -> None:
        super().__init__()
        self.gate = LowRank(width, spec.hidden, rank) if spec.gated else None
        self.up = LowRank(width, spec.hidden, rank)
        self.down = LowRank(spec.hidden, width, rank)

    def expand(self, x: Tensor) -> Tensor:
        """What is added to gate and up, side by side, or to up alone."""
        return self.up(x) if self.gate is None else torch.cat((self.gate(x), self.up(x)), dim=-1)
