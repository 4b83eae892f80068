"""The engine's kernels for training on the CPU: what the model takes, as autograd functions.

Each is one pass where PyTorch's own takes several. Rows are shared among the threads that PyTorch
computes with; their number changes no bit. FLYWEIGHT_ISA forces an instruction set.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from flyweight.engine._native import kernels
from flyweight.engine.processor import forced_instruction_set
from flyweight.model import kernels as model_kernels

# Rows whose parts of a gain's gradient are summed one by one, so that threads make no difference.
_BLOCK = 256


# PyTorch's own OpenMP threads, where it has GNU's: others would have to wait for a processor until
# those have given up spinning.
for _folder in ("torch/lib", "torch.libs"):
    for _library in (Path(torch.__file__).parents[1] / _folder).glob("libgomp*"):
        kernels.use_openmp(str(_library))


def call(kernel: Callable[..., None], *arguments: Any) -> None:
    """A kernel of `_native.kernels`, with as many threads as PyTorch computes with."""
    kernel(instruction_set(), *arguments, torch.get_num_threads())


def instruction_set() -> str:
    return forced_instruction_set() or str(kernels.instruction_sets()[0])


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
        seen = None if mask is None else mask[:, 0].mT.contiguous().view(torch.uint8).numpy()
        given = [numbers(t) for t in (grad, q, k, v, out, lse)]
        made = [numbers(t) for t in (dq, dk, dv)]
        call(kernels.attention_gradient, *given, seen, scale, *made)
        return dq, dk, dv


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor | None, eps: float) -> Tensor:
        x = _in_rows(x)
        y, factors = torch.empty_like(x), torch.empty(x.shape[:-1].numel())
        weight = None if gain is None else numbers(_copied(gain))
        call(kernels.rms_norm_rows, _rows(x), weight, eps, _rows(y), numbers(factors))
        ctx.save_for_backward(x, gain, factors)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, factors = ctx.saved_tensors
        grad, dx = _in_rows(grad), torch.empty_like(x)
        weight = parts = None
        if gain is not None:
            weight = numbers(_copied(gain))
            parts = torch.zeros(-(-len(factors) // _BLOCK), x.shape[-1])
        given = _rows(grad), _rows(x), weight, numbers(factors)
        made = _rows(dx), None if parts is None else numbers(parts)
        call(kernels.rms_norm_gradient, *given, *made, _BLOCK)
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
    x = _in_rows(x)
    y = torch.empty_like(x)
    angles = numbers(cos), numbers(sin)
    call(kernels.rotate_rows, _rows(x), *angles, layout != "half", back, _rows(y))
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
    y = torch.empty_like(x)
    of = None if grad is None else numbers(grad.contiguous().flatten(0, -2))
    call(kernels.relu2_rows, of, numbers(x.flatten(0, -2)), numbers(y.flatten(0, -2)))
    return y


def _copied(gain: Tensor) -> Tensor:
    """A gain that NumPy may look at: the memory that it saw can never be freed by FSDP2."""
    return gain.detach().to(torch.float32, copy=True)


def numbers(x: Tensor) -> NDArray[Any]:
    """The memory of a tensor on the CPU as an array; bfloat16 as uint16."""
    x = x.detach()
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


def _in_rows(x: Tensor) -> Tensor:
    """``x``, copied where its last dimension is not contiguous."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _rows(x: Tensor) -> NDArray[Any]:
    """A view with four dimensions, the last one a row's; ``x`` has at most four."""
    found = numbers(x)
    return found[(None,) * (4 - found.ndim)]
