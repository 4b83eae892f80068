"""Optimisers: PyTorch's AdamW and Muon, and row-wise Adagrad for sparse n-gram tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flyweight.model.decoder import Decoder
from flyweight.model.init import BLOCKS
from flyweight.spec.run import Optimizer as OptimizerSpec


class RowAdagrad:
    """Adagrad (Duchi et al. 2011) with one accumulator a row, on the rows that a batch touched.

    s_r += mean(g_r²); w_r -= rate * g_r / (sqrt(s_r) + eps). The cost is that of the batch's
    rows, whatever the size of the table. Row-wise as in DLRM (arXiv:1906.00091).
    """

    def __init__(self, table: Tensor, eps: float) -> None:
        self.table, self.eps = table, eps
        self.sums = torch.zeros(len(table), 1, dtype=torch.float32, device=table.device)

    @torch.no_grad()
    def step(self, rows_U: Tensor, grads_UD: Tensor, rate: float) -> None:
        sums = self.sums[rows_U] + grads_UD.square().mean(dim=1, keepdim=True)
        self.sums[rows_U] = sums
        self.table[rows_U] -= rate * grads_UD / (sums.sqrt() + self.eps)


@torch.no_grad()
def coalesce(index_X: Tensor, grads_XD: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the gradients of equal rows: unique rows (U,), ascending, and their sums (U, D)."""
    rows, inverse = torch.unique(index_X, return_inverse=True)
    total = grads_XD.new_zeros(len(rows), grads_XD.shape[1])
    return rows, total.index_add_(0, inverse, grads_XD)


@dataclass
class Group:
    """Parameters that share a rate: a multiple of the schedule's."""

    rate: float
    parameters: dict[str, nn.Parameter]


class Optimizer:
    """All optimisers of a model: ``gather`` the gradients, look at their norm, then ``apply``."""

    def __init__(self, spec: OptimizerSpec, model: Decoder) -> None:
        self.spec = spec
        matrices: dict[str, nn.Parameter] = {}
        embeddings: dict[str, nn.Parameter] = {}
        vectors: dict[str, nn.Parameter] = {}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if parameter.ndim < 2:
                vectors[name] = parameter
            elif name.startswith("embedding.") and not name.endswith("project.weight"):
                embeddings[name] = parameter
            elif name.endswith(("head.weight", "offset", "positions.bias")):
                embeddings[name] = parameter
            elif name == "slots.embedding":
                embeddings[name] = parameter
            else:
                matrices[name] = parameter
        self.names = {id(p): n for n, p in model.named_parameters()}
        self.dense = {**matrices, **embeddings, **vectors}
        adam = [Group(spec.embedding_rate, embeddings), Group(spec.vector_rate, vectors)]
        muon: list[Group] = []
        if spec.kind == "muon":
            # Its updates have one size whatever the width, so that muP asks for nothing here.
            muon.append(Group(1.0, matrices))
        else:
            wide = {name: p for name, p in matrices.items() if _grows_with_width(name)}
            others = {name: p for name, p in matrices.items() if name not in wide}
            adam.append(Group(1 / model.spec.width_multiplier, wide))
            adam.append(Group(1.0, others))
        self.optimizers: list[torch.optim.Optimizer] = []
        if muon:
            self.optimizers.append(
                torch.optim.Muon(
                    _param_groups(muon), momentum=spec.momentum, weight_decay=spec.weight_decay
                )
            )
        if any(group.parameters for group in adam):
            # Decay pulls on matrices and embeddings, not on gains and biases.
            groups = _param_groups(adam)
            for group in groups:
                vector = all(p.ndim < 2 for p in group["params"])
                group["weight_decay"] = 0.0 if vector else spec.weight_decay
            self.optimizers.append(
                torch.optim.AdamW(groups, betas=(spec.beta1, spec.beta2), eps=spec.eps, fused=True)
            )
        self.ngrams = model.embedding.ngrams
        self.tables = None if self.ngrams is None else RowAdagrad(self.ngrams.table, spec.eps)

    def gather(self) -> float:
        """Coalesce the tables' gradients and return the norm over all gradients."""
        taken = self.ngrams.take() if self.ngrams is not None else None
        self.touched = None if taken is None else coalesce(*taken)
        grads = [p.grad for p in self.dense.values() if p.grad is not None]
        if self.touched is not None:
            grads.append(self.touched[1])
        norms = torch._foreach_norm(grads)
        return float(torch.linalg.vector_norm(torch.stack(norms)))

    @torch.no_grad()
    def apply(self, rate: float, clip: float | None, norm: float) -> None:
        """Update every parameter at ``rate`` times its group's, gradients scaled to ``clip``."""
        shrink = 1.0 if clip is None or norm <= clip else clip / (norm + 1e-6)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["rate"]
            if isinstance(optimizer, torch.optim.AdamW):
                # The fused step divides as it goes, which spares a pass over all gradients.
                scale = None if shrink == 1.0 else torch.tensor(1 / shrink)
                optimizer.grad_scale = scale  # type: ignore[attr-defined]
            elif shrink != 1.0:
                grads = [p.grad for g in optimizer.param_groups for p in g["params"]]
                torch._foreach_mul_([grad for grad in grads if grad is not None], shrink)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.tables is not None and self.touched is not None:
            rows, grads_UD = self.touched
            self.tables.step(rows, grads_UD * shrink, rate * self.spec.table_rate)
        self.touched = None

    def forget(self) -> None:
        """Drop all gradients without an update."""
        for parameter in self.dense.values():
            parameter.grad = None
        if self.ngrams is not None:
            self.ngrams.take()

    def tensors(self) -> dict[str, Tensor]:
        """Every state tensor, named ``parameter/key``."""
        result: dict[str, Tensor] = {}
        for optimizer in self.optimizers:
            for parameter, state in optimizer.state.items():
                for key, value in state.items():
                    result[f"{self.names[id(parameter)]}/{key}"] = torch.as_tensor(value)
        if self.tables is not None:
            result["embedding.ngrams.table/sums"] = self.tables.sums
        return result

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore what ``tensors`` returned, for the same model and configuration."""
        by_name: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            parameter, _, key = name.rpartition("/")
            by_name.setdefault(parameter, {})[key] = tensor
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    state = by_name.pop(self.names[id(parameter)], None)
                    if state:
                        optimizer.state[parameter] = {
                            key: value.to(parameter.device) for key, value in state.items()
                        }
        table = by_name.pop("embedding.ngrams.table", None)
        if self.tables is not None and table is not None:
            self.tables.sums = table["sums"].to(self.tables.table.device)
        assert not by_name, f"optimiser state of unknown parameters: {sorted(by_name)}"


def _grows_with_width(name: str) -> bool:
    """Whether a matrix has more inputs in a wider model (muP: AdamW's rate falls with them)."""
    return name.startswith(BLOCKS) and not (".update." in name and name.endswith(".up.weight"))


def _param_groups(groups: list[Group]) -> list[dict[str, Any]]:
    return [{"params": list(g.parameters.values()), "rate": g.rate} for g in groups if g.parameters]
