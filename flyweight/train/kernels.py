"""The engine's kernels for training on the CPU: what the model takes, as autograd functions.

Each is one pass where PyTorch's own takes several. Rows are shared among as many threads as
PyTorch computes with; their number changes no bit. FLYWEIGHT_ISA forces an instruction set.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flyweight.engine._native import kernels
from flyweight.model import kernels as model_kernels
from flyweight.train.threads import share

# Rows whose parts of a gain's gradient are summed one by one, so that threads make no difference.
_BLOCK = 256


def instruction_set() -> str:
    return os.environ.get("FLYWEIGHT_ISA") or str(kernels.instruction_sets()[0])


def hand_in() -> None:
    """Let the model train with the kernels from here on.

    Not where the processor has but the portable ones: PyTorch's are faster there.
    """
    portable = instruction_set() == "portable"
    model_kernels.handed_in = None if portable else TrainingKernels()


class TrainingKernels:
    """What ``model.kernels.Kernels`` asks for."""

    def rms_norm(self, x: Tensor, gain: Tensor | None, eps: float) -> Tensor:
        return _RmsNorm.apply(x, gain, eps)

    def rotate(self, x_BHTD: Tensor, cos_TR: Tensor, sin_TR: Tensor, layout: str) -> Tensor:
        return _Rotate.apply(x_BHTD, cos_TR, sin_TR, layout)

    def relu2(self, x: Tensor) -> Tensor:
        return _Relu2.apply(x)

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
        dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
        isa = instruction_set()
        seen = None if mask is None else mask[:, 0].mT.contiguous().view(torch.uint8).numpy()
        given = [numbers(t) for t in (grad, q, k, v, out)]
        sums = lse.detach().numpy()
        made = [numbers(t) for t in (dq, dk, dv)]

        def part(first: int, last: int) -> None:
            kernels.attention_gradient(isa, *given, sums, seen, scale, *made, first, last)

        share(k.shape[0] * k.shape[1], part)
        return dq, dk, dv


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor | None, eps: float) -> Tensor:
        y, isa = torch.empty_like(x), instruction_set()
        rows, out = _rows(x), _rows(y)
        factors = torch.empty(_count(rows))
        weight = None if gain is None else gain.detach().float().numpy()
        kept = factors.numpy()

        def part(first: int, last: int) -> None:
            kernels.rms_norm_rows(isa, rows, weight, eps, out, kept, first, last)

        share(_count(rows), part)
        ctx.save_for_backward(x, gain, factors)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, factors = ctx.saved_tensors
        dx, isa = torch.empty_like(x), instruction_set()
        rows, of, out, kept = _rows(x), _rows(grad), _rows(dx), factors.numpy()
        blocks = -(-_count(rows) // _BLOCK)
        weight = parts = found = None
        if gain is not None:
            weight = gain.detach().float().numpy()
            if ctx.needs_input_grad[1]:
                parts = torch.zeros(blocks, x.shape[-1])
                found = parts.numpy()

        def part(first: int, last: int) -> None:
            kernels.rms_norm_gradient(isa, of, rows, weight, kept, out, found, _BLOCK, first, last)

        share(blocks, part)
        return dx, None if parts is None else parts.sum(0).to(gain.dtype), None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, layout: str) -> Tensor:
        ctx.turn = cos, sin, layout
        return _turned(x, cos, sin, layout, back=False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin, layout = ctx.turn
        return _turned(grad, cos, sin, layout, back=True), None, None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, layout: str, back: bool) -> Tensor:
    y, isa = torch.empty_like(x), instruction_set()
    rows, out, angles = _rows(x), _rows(y), (cos.numpy(), sin.numpy())

    def part(first: int, last: int) -> None:
        kernels.rotate_rows(isa, rows, *angles, layout != "half", back, out, first, last)

    share(_count(rows), part)
    return y


class _Relu2(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _squared(x, None)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return _squared(x, grad)


def _squared(x: Tensor, grad: Tensor | None) -> Tensor:
    x = x.contiguous()
    y, isa = torch.empty_like(x), instruction_set()
    rows, out = numbers(x.flatten(0, -2)), numbers(y.flatten(0, -2))
    of = None if grad is None else numbers(grad.contiguous().flatten(0, -2))

    def part(first: int, last: int) -> None:
        kernels.relu2_rows(isa, of, rows, out, first, last)

    share(len(rows), part)
    return y


def numbers(x: Tensor) -> NDArray[Any]:
    """The memory of a tensor on the CPU as an array; bfloat16 as uint16."""
    x = x.detach()
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


def _rows(x: Tensor) -> NDArray[Any]:
    """A view with four dimensions, the last one a row's."""
    if x.stride(-1) != 1:
        x = x.contiguous()
    found = numbers(x)
    if found.ndim < 4:
        return found[(None,) * (4 - found.ndim)]
    return found if found.ndim == 4 else found.reshape(-1, *found.shape[-3:])


def _count(rows: NDArray[Any]) -> int:
    return int(np.prod(rows.shape[:-1]))
