"""Optimisers: PyTorch's AdamW and Muon, and row-wise Adagrad for sparse n-gram tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flyweight.model.decoder import Decoder
from flyweight.model.init import BLOCKS
from flyweight.spec.run import Optimizer as OptimizerSpec
from flyweight.train.layout import HERE, Layout

TABLE = "embedding.ngrams.table"


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

    def __init__(self, spec: OptimizerSpec, model: Decoder, layout: Layout = HERE) -> None:
        self.spec, self.layout = spec, layout
        matrices: dict[str, nn.Parameter] = {}
        embeddings: dict[str, nn.Parameter] = {}
        vectors: dict[str, nn.Parameter] = {}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            piece = layout.piece_of(name, parameter)
            if parameter.ndim < 2:
                vectors[name] = piece
            elif name.startswith("embedding.") and not name.endswith("project.weight"):
                embeddings[name] = piece
            elif name.endswith(("head.weight", "offset", "positions.bias")):
                embeddings[name] = piece
            elif name == "slots.embedding":
                embeddings[name] = piece
            else:
                matrices[name] = piece
        self.dense = {**matrices, **embeddings, **vectors}
        self.names = {id(piece): name for name, piece in self.dense.items()}
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
            settings = {"momentum": spec.momentum, "weight_decay": spec.weight_decay}
            self.optimizers.append(layout.muon(_param_groups(muon), **settings))
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
        self.layout.collect()
        taken = self.ngrams.take() if self.ngrams is not None else None
        self.touched = None if taken is None else self.layout.collect_rows(coalesce(*taken))
        grads = {n: p.grad for n, p in self.dense.items() if p.grad is not None}
        if self.touched is not None:
            grads[TABLE] = self.touched[1]
        return self.layout.norm(grads)

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
        self.layout.forget()
        for piece in self.dense.values():
            piece.grad = None
        if self.ngrams is not None:
            self.ngrams.take()

    def tensors(self) -> dict[str, Tensor]:
        """Every state tensor, whole, named ``parameter/key``; none but in the leader."""
        result: dict[str, Tensor] = {}
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    name = self.names[id(parameter)]
                    for key, value in optimizer.state[parameter].items():
                        whole = self.layout.whole(name, torch.as_tensor(value))
                        if whole is not None:
                            result[f"{name}/{key}"] = whole
        if self.tables is not None and self.layout.processes.leader:
            result[f"{TABLE}/sums"] = self.tables.sums
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
                    name = self.names[id(parameter)]
                    state = by_name.pop(name, None)
                    if state:
                        optimizer.state[parameter] = {
                            # A copy: a piece must not keep the whole in memory.
                            key: self.layout.piece(name, value).to(parameter.device, copy=True)
                            for key, value in state.items()
                        }
        table = by_name.pop(TABLE, None)
        if self.tables is not None and table is not None:
            self.tables.sums = table["sums"].to(self.tables.table.device)
        assert not by_name, f"optimiser state of unknown parameters: {sorted(by_name)}"


def _grows_with_width(name: str) -> bool:
    """Whether a matrix has more inputs in a wider model (muP: AdamW's rate falls with them)."""
    return name.startswith(BLOCKS) and not (".update." in name and name.endswith(".up.weight"))


def _param_groups(groups: list[Group]) -> list[dict[str, Any]]:
    return [{"params": list(g.parameters.values()), "rate": g.rate} for g in groups if g.parameters]
