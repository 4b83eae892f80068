"""Where a model's tensors are: all of them here, or a part of each in every process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flyweight.model.decoder import Decoder
from flyweight.model.weights import load_weights
from flyweight.train.processes import ALONE, Processes

Rows = tuple[Tensor, Tensor]


class Layout:
    """One process that holds everything. ``distributed.Sharded`` is the other kind.

    A parameter's *piece* is what this process updates, and the optimisers' states belong to
    pieces; a tensor is *whole* as a single process would have it, and as checkpoints do.
    """

    processes: Processes = ALONE

    def piece_of(self, name: str, parameter: nn.Parameter) -> nn.Parameter:
        """The part of a parameter that this process updates; it shares the parameter's memory."""
        return parameter

    def accumulate(self, last: bool) -> None:
        """Before each micro-batch: whether it is the ``last`` of the step."""

    def collect(self) -> None:
        """After the step's backward passes: every piece's gradient summed over all processes."""

    def forget(self) -> None:
        """Drop what gradients lie elsewhere than at the pieces."""

    def collect_rows(self, rows: Rows) -> Rows:
        """Rows of a sparse table (U,) and their gradients (U, D), summed over all processes."""
        return rows

    def norm(self, grads: Mapping[str, Tensor]) -> float:
        """The norm over all ``grads``, of which other processes may hold other pieces."""
        norms = torch._foreach_norm(list(grads.values()))
        return float(torch.linalg.vector_norm(torch.stack(norms)))

    def muon(self, groups: list[dict[str, Any]], **settings: Any) -> torch.optim.Optimizer:
        """Muon for pieces of matrices."""
        return torch.optim.Muon(groups, **settings)

    def whole(self, name: str, piece: Tensor) -> Tensor | None:
        """A parameter or its state from every process's piece; None but in the leader."""
        return piece

    def piece(self, name: str, whole: Tensor) -> Tensor:
        """This process's piece of a parameter or of its state."""
        return whole

    def weights(self, model: Decoder) -> dict[str, Tensor]:
        """The model's tensors, whole; nothing but in the leader."""
        return model.state_dict()

    def load_weights(self, model: Decoder, path: Path) -> None:
        """Fill the model from safetensors of whole tensors."""
        load_weights(model, path)


HERE = Layout()
