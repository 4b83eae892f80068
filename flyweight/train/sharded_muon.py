"""Muon for matrices that many processes hold in pieces: each is orthogonalised whole, by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import _muon as torch_muon

if TYPE_CHECKING:
    from flyweight.train.distributed import Sharded


class ShardedMuon(torch.optim.Optimizer):
    """torch.optim.Muon's update (Jordan et al. 2024), momentum in pieces, matrices whole.

    Newton-Schulz needs all of a matrix. As many matrices as there are processes are gathered at a
    time; each process orthogonalises one of them and sends it to all, in bfloat16, as it is.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        names: dict[int, str],
        layout: Sharded,
        momentum: float,
        weight_decay: float,
    ) -> None:
        super().__init__(groups, {"lr": 0.0, "momentum": momentum, "weight_decay": weight_decay})
        self.names, self.layout = names, layout

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every piece that has a gradient; the same ones in all processes."""
        processes = self.layout.processes
        for group in self.param_groups:
            pieces = [piece for piece in group["params"] if piece.grad is not None]
            for start in range(0, len(pieces), processes.size):
                some = pieces[start : start + processes.size]
                # Whole updates: this process's own with its numbers, of the others' the shapes.
                updates: list[Tensor] = []
                for owner, piece in enumerate(some):
                    name = self.names[id(piece)]
                    update = self.layout.gathered(name, self._momentum(piece, group))
                    own = owner == processes.rank
                    updates.append(update if own else torch.empty_like(update, device="meta"))
                # After all were gathered, so that all processes compute at the same time.
                if processes.rank < len(updates):
                    updates[processes.rank] = _orthogonal(updates[processes.rank]).contiguous()
                for owner, (piece, update) in enumerate(zip(some, updates, strict=True)):
                    if update.is_meta:
                        update = torch.empty(
                            update.shape, dtype=torch.bfloat16, device=piece.device
                        )
                    dist.broadcast(update, src=owner)
                    rate = torch_muon._adjust_lr(group["lr"], None, update.shape)
                    piece.mul_(1 - group["lr"] * group["weight_decay"])
                    mine = self.layout.piece(self.names[id(piece)], update)
                    piece.add_(mine, alpha=-rate)

    def _momentum(self, piece: Tensor, group: dict[str, Any]) -> Tensor:
        state, grad = self.state[piece], piece.grad
        assert grad is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        buffer = state["momentum_buffer"]
        buffer.lerp_(grad, 1 - group["momentum"])
        return grad.lerp(buffer, group["momentum"])


def _orthogonal(update: Tensor) -> Tensor:
    coefficients = torch_muon.DEFAULT_A, torch_muon.DEFAULT_B, torch_muon.DEFAULT_C
    return torch_muon._zeropower_via_newtonschulz(
        update, coefficients, torch_muon.DEFAULT_NS_STEPS, torch_muon.EPS
    )
